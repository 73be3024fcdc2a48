"""Linear layers of bfloat16 in the CPU's matrix tiles: a row gets the same bits, whatever it shares a product with."""

import ctypes
import functools
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from karat.engine import _native

STEP = 32  # numbers of a row that a tile takes: widths are multiples of it


class Product(ctypes.Structure):
    """The kernel's `Product`, field by field."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("x", "weight", "bias", "y")),
        *((name, ctypes.c_int64) for name in ("rows", "stride")),
        *((name, ctypes.c_int32) for name in ("depth", "width", "threads")),
    )


class TiledLinear(nn.Linear):
    """A linear layer while karat runs it."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] → [..., E] as the layer's own, rounded once, after its bias."""
        if x.dtype != torch.bfloat16 or torch.is_grad_enabled():
            return super().forward(x)
        out: Tensor = torch.ops.karat.linear(x, self.weight, self.bias)
        return out


def takes(module: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether the kernel computes this layer."""
    if type(module) is not nn.Linear or not has_tiles():
        return False
    held = [module.weight] if module.bias is None else [module.weight, module.bias]
    fits = all(t.dtype == torch.bfloat16 and t.device.type == "cpu" and t.is_contiguous() for t in held)
    return fits and not any(size % STEP for size in module.weight.shape)


@functools.cache
def has_tiles() -> bool:
    """Whether this CPU multiplies bfloat16 in tiles, and the kernel that does is there."""
    kernel = _native.kernel()
    if kernel is None or not kernel.karat_has_tiles():
        return False
    # An operator of torch's, which its compiler does not look into.
    registry: Any = torch.library
    library = registry.Library("karat", "DEF")
    library.define("linear(Tensor x, Tensor weight, Tensor? bias) -> Tensor")
    library.impl("linear", _linear, "CPU")
    registry.register_fake("karat::linear", _shape, lib=library)
    _kept.append(library)
    return True


_kept: list[Any] = []  # what is registered goes when its library does


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    width, depth = weight.shape
    rows_RD = x.reshape(-1, depth)
    if rows_RD.stride(-1) != 1:
        rows_RD = rows_RD.contiguous()
    y = x.new_empty((*x.shape[:-1], width))
    if len(rows_RD):
        product = Product(
            rows_RD.data_ptr(), weight.data_ptr(), None if bias is None else bias.data_ptr(), y.data_ptr(),
            len(rows_RD), rows_RD.stride(0), depth, width, torch.get_num_threads(),
        )  # fmt: skip
        _native.call_kernel("karat_linear", product)
    return y


def _shape(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))
