"""Rotary position embeddings of queries and keys in one pass over memory, where attention calls a function for them.

The function is a global of the file that a model is written in, so an attention module gets its class's own forward
with other globals: nothing that another thread or another model sees is changed.
"""

import ctypes
import inspect
from collections.abc import Callable
from types import FunctionType, MethodType
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from karat.engine import _native

STEP = 32  # numbers that the size of a head is a multiple of: the halves are whole vectors
TAKES = ["q", "k", "cos", "sin"]
Rotation = Callable[..., Any]


class Rotary(ctypes.Structure):
    """The kernel's `Rotary`, field by field."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("x", "cos", "sin", "y")),
        *((name, ctypes.c_int64) for name in ("rows", "x_row", "x_head", "angle_row")),
        *((name, ctypes.c_int32) for name in ("heads", "size", "threads")),
    )


def halves(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Number i of a head turned with number i + size / 2: [B, heads, T, size] each, angles [B, T, size]."""
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)

    def turned(x: Tensor) -> Tensor:
        left, right = x.chunk(2, -1)
        return x * cos + torch.cat((-right, left), -1) * sin

    return turned(q), turned(k)


def forward_of(module: nn.Module) -> Callable[..., Any] | None:
    """A module's forward with the kernel in the place of its class's rotation; None where it calls none of `halves`."""
    own = type(module).forward
    if not isinstance(own, FunctionType):
        return None
    found = {name: own.__globals__.get(name) for name in own.__code__.co_names}
    replaced = {name: _by_kernel(value) for name, value in found.items() if _is_halves(value)}
    if not replaced:
        return None
    copy = FunctionType(own.__code__, own.__globals__ | replaced, own.__name__, own.__defaults__, own.__closure__)
    copy.__kwdefaults__ = own.__kwdefaults__
    return MethodType(copy, module)


def _is_halves(value: Any) -> TypeGuard[FunctionType]:
    """Whether this is a function that gives what `halves` gives, to the bit."""
    if not isinstance(value, FunctionType) or list(inspect.signature(value).parameters)[: len(TAKES)] != TAKES:
        return False
    chance = torch.Generator().manual_seed(0)
    shapes = ((1, 2, 3, STEP), (1, 1, 3, STEP), (1, 3, STEP), (1, 3, STEP))
    drawn = [torch.randn(shape, generator=chance) for shape in shapes]
    try:
        for dtype in _native.NAMES:
            q, k, cos, sin = (own.to(dtype) for own in drawn)
            pairs = zip(value(q, k, cos, sin), halves(q, k, cos, sin), strict=True)
            if not all(torch.equal(own, whole) for own, whole in pairs):
                return False
    except Exception:  # of whatever a model's file is made of
        return False
    return True


def _by_kernel(whole: Rotation) -> Rotation:
    def rotation(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *more: Any, **named: Any) -> Any:
        if more or named or not all(_fits(x, cos, sin) for x in (q, k)):
            return whole(q, k, cos, sin, *more, **named)
        return _rotated(q, cos, sin), _rotated(k, cos, sin)

    return rotation


def _fits(x: Tensor, cos: Tensor, sin: Tensor) -> bool:
    size = x.shape[-1]
    plain = all(t.dtype == x.dtype and t.device.type == "cpu" and t.stride(-1) == 1 for t in (x, cos, sin))
    shaped = cos.shape == (1, x.shape[-2], size) and sin.stride() == cos.stride() and sin.shape == cos.shape
    return plain and shaped and x.dim() == 4 and len(x) == 1 and size % STEP == 0 and x.dtype in _native.NAMES


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """[1, heads, T, size], as a view of [1, T, heads, size]: rows are what attention goes by."""
    _, heads, rows, size = x.shape
    y = x.new_empty(1, rows, heads, size)
    what = Rotary(
        x.data_ptr(), cos.data_ptr(), sin.data_ptr(), y.data_ptr(), rows, x.stride(2), x.stride(1), cos.stride(1),
        heads, size, torch.get_num_threads(),
    )  # fmt: skip
    _native.call_kernel(f"karat_rotary_{_native.NAMES[x.dtype]}", what)
    return y.transpose(1, 2)
