"""What a backbone does differently while karat runs it; each is a context that leaves the model as it was."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from karat.engine import linear
from karat.engine.attention import NAME, Captured, Running
from karat.engine.tiles import alike, in_tiles

_LOCK = threading.Lock()
# Of configs, by their ids: how many have asked for karat's attention, and what was there before.
_ATTENDING: dict[int, tuple[int, str]] = {}


def configs_of(backbone: nn.Module) -> list[Any]:
    """Every config object that decides which attention its modules call."""
    return list({id(m.config): m.config for m in backbone.modules() if hasattr(m, "config")}.values())


@contextlib.contextmanager
def attending(configs: list[Any]) -> Iterator[None]:
    """With karat's attention, until all who asked for it have ended: models may share a config."""
    with _LOCK:
        for config in configs:
            count, before = _ATTENDING.get(id(config), (0, config._attn_implementation))
            _ATTENDING[id(config)] = count + 1, before
            config._attn_implementation_internal = NAME
    try:
        yield
    finally:
        with _LOCK:
            for config in configs:
                count, before = _ATTENDING.pop(id(config))
                if count > 1:
                    _ATTENDING[id(config)] = count - 1, before
                else:
                    config._attn_implementation_internal = before


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """In evaluation mode."""
    training = [part for part in module.modules() if part.training]
    if training:
        module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True


@contextlib.contextmanager
def multiplying(layers: list[nn.Linear]) -> Iterator[None]:
    """With karat's products, where a layer still is what it was when it was found fit for them."""
    own = [layer for layer in layers if type(layer) is nn.Linear]
    try:
        for layer in own:
            object.__setattr__(layer, "__class__", linear.TiledLinear)  # a module's own way takes ten times as long
        yield
    finally:
        for layer in own:
            object.__setattr__(layer, "__class__", nn.Linear)


@contextlib.contextmanager
def forwards(replaced: dict[Any, Callable[..., Any]]) -> Iterator[None]:
    """With other forward functions of some modules."""
    before = {module: module.__dict__.get("forward") for module in replaced}
    for module, forward in replaced.items():
        module.__dict__["forward"] = forward  # a module's own way takes several times as long
    try:
        yield
    finally:
        for module, forward in before.items():
            if forward is None:
                del module.__dict__["forward"]
            else:
                module.__dict__["forward"] = forward


def layers(backbone: nn.Module) -> nn.ModuleList:
    """The model's layers: its longest list of modules, which may be empty."""
    return max((m for m in backbone.modules() if isinstance(m, nn.ModuleList)), key=len, default=nn.ModuleList())


def trimmed(whole: Callable[..., Any], running: Running) -> Callable[..., Any]:
    """A last layer's forward that computes its read rows only, from the keys of all rows.

    It runs twice: up to its keys and values for all rows, and to its end for those that are read.
    """
    count, rows = len(running.batch.ids), running.batch.reads.rows

    def forward(*args: Any, **kwargs: Any) -> Any:
        running.capture = True
        with contextlib.suppress(Captured):
            whole(*args, **kwargs)
        running.capture, running.reading = False, True
        if not len(rows):
            raise Captured
        out = whole(*_at(args, rows, count), **_at(kwargs, rows, count))
        return _back(out, rows[: len(running.batch.reads.places)], count)

    return forward


def _at(value: Any, rows: Tensor, count: int) -> Any:
    """The same arguments at some of `count` rows."""
    if isinstance(value, Tensor):
        return value.index_select(1, rows) if value.dim() >= 2 and value.shape[1] == count else value
    if isinstance(value, tuple):
        return tuple(_at(v, rows, count) for v in value)
    if isinstance(value, dict):
        return {name: _at(v, rows, count) for name, v in value.items()}
    return value


def _back(value: Any, rows: Tensor, count: int) -> Any:
    """A layer's output at its rows among `count`, zero elsewhere: what follows may count on the number of rows."""
    if isinstance(value, tuple):
        return (_back(value[0], rows, count), *value[1:])
    return value.new_zeros(1, count, value.shape[-1]).index_copy(1, rows, value[:, : len(rows)])


def tiled(backbone: nn.Module) -> dict[Any, Callable[..., Any]]:
    """Forwards of linear layers in the shapes that give a row the same bits, however many; karat's own need none."""
    known: dict[Any, tuple[int, ...]] = {}
    own = (m for m in backbone.modules() if isinstance(m, nn.Linear | Conv1D) and not linear.takes(m))
    return {m: _in_tiles(m, known) for m in own}


def _in_tiles(layer: Any, known: dict[Any, tuple[int, ...]]) -> Callable[[Tensor], Tensor]:
    whole = layer.forward

    def forward(x: Tensor) -> Tensor:
        key = (layer.weight.shape, layer.bias is None, type(layer), torch.get_num_threads())
        if key not in known:
            known[key] = alike(whole, x.reshape(-1, x.shape[-1])[0])
        return in_tiles(whole, x.reshape(-1, x.shape[-1]), known[key]).view(*x.shape[:-1], -1)

    return forward
