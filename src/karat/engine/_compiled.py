"""A backbone's layers compiled by torch: between two products, one pass over memory instead of a dozen."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface

from karat.engine.attention import NAME, forest

# What one function is compiled for, over all models of the process: beyond it torch would go on uncompiled.
LIMIT = 256


def forwards(layers: nn.ModuleList) -> dict[Any, Callable[..., Any]]:
    """Their forwards for any number of tokens; what is compiled of one layer serves all that are alike."""
    # Attention knows what is under way, which a compiler would take for a constant. Not where it is defined: that would
    # import the compiler, a second that most callers need not wait.
    compiler: Any = torch.compiler
    AttentionInterface.register(NAME, compiler.disable(forest))
    compiler.config.recompile_limit = max(compiler.config.recompile_limit, LIMIT)
    return {layer: torch.compile(layer.forward, dynamic=True) for layer in layers}
