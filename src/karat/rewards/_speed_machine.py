"""What this machine gives: the rate of its matrix products, its clock, and its peak of memory."""

import ctypes
import resource
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from karat.models._quantised import is_quantised

ROWS = 1024  # of the products that show the matrix rate
MIB = 2**20


class Rate(NamedTuple):
    """What a token costs and what the machine gives."""

    per_token: int  # FLOP of the model's linear layers for one token
    per_second: float  # FLOP/s in products of just these shapes


@torch.no_grad()
def matrix_rate(backbone: nn.Module) -> Rate | None:
    """The rate of products of the shapes of a model's linear layers.

    None where packed weights or experts make a token's cost unknown.

    On a CPU it is that of the faster of float32 and the model's own type.
    """
    if is_quantised(backbone) or any(name.endswith("experts") for name, _ in backbone.named_modules()):
        return None
    shapes = Counter(_shape(m) for m in backbone.modules() if isinstance(m, nn.Linear | Conv1D))
    if not shapes:
        return None
    weight = next(backbone.parameters())
    kinds = {weight.dtype, torch.float32} if weight.device.type == "cpu" else {weight.dtype}
    seconds = min(sum(n * _product(s, kind, weight.device) for s, n in shapes.items()) for kind in kinds)
    per_token = 2 * sum(n * a * b for (a, b), n in shapes.items())
    return Rate(per_token, per_token * ROWS / seconds)


def _shape(module: Any) -> tuple[int, int]:
    """Features out and in."""
    a, b = module.weight.shape
    return (b, a) if isinstance(module, Conv1D) else (a, b)


def _product(shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> float:
    """Seconds of a product of `ROWS` rows: the best of ten, or of as many as a second holds."""
    weight = torch.randn(shape, device=device).to(dtype)
    rows = torch.randn(ROWS, shape[1], device=device).to(dtype)
    took: list[float] = []
    while len(took) < 10 and sum(took) < 1:
        start = now(device)
        nn.functional.linear(rows, weight)
        took.append(now(device) - start)
    return min(took)


def now(device: torch.device) -> float:
    """Seconds, when everything that was asked of the device is done."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()


def give_back() -> None:
    """Let the system have memory that was freed, so that a peak holds nothing of runs before it; glibc keeps some."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def reset_peak(device: torch.device) -> bool:
    """Begin to look for the peak of memory anew; whether that can be done here."""
    if device.type != "cpu":
        torch.accelerator.reset_peak_memory_stats(device)
        return True
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def peak(device: torch.device) -> float:
    """Bytes at the peak since `_reset_peak`: of the process, or of a GPU's memory."""
    if device.type != "cpu":
        return float(torch.accelerator.max_memory_allocated(device))
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * float(line.split()[1])
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024))
