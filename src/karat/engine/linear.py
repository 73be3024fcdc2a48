"""Linear layers of bfloat16 in the CPU's matrix tiles: a row gets the same bits, whatever it shares a product with."""

import ctypes
from typing import Any, TypeGuard

import torch
from torch import Tensor, library, nn

from karat.engine import _native

STEP = 32  # numbers of a row that a tile takes: widths are multiples of it


class Product(ctypes.Structure):
    """The kernel's `Product`, field by field."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("x", "weight", "bias", "gate", "gate_bias", "y")),
        *((name, ctypes.c_int64) for name in ("rows", "stride")),
        *((name, ctypes.c_int32) for name in ("depth", "width", "threads", "gelu")),
    )


class TiledLinear(nn.Linear):
    """A linear layer while karat runs it; what is copied meanwhile is a linear layer."""

    def forward(self, input: Tensor) -> Tensor:
        """[..., D] → [..., E] as the layer's own, rounded once, after its bias; terms below 1e-38 may count as 0."""
        if input.dtype != torch.bfloat16 or torch.is_grad_enabled():
            return nn.Linear.forward(self, input)
        out: Tensor = torch.ops.karat.linear(input, self.weight, self.bias)
        return out

    def __reduce_ex__(self, protocol: Any) -> Any:
        whole: Any = super().__reduce_ex__(protocol)
        make, _, *state = whole
        return make, (nn.Linear,), *state


def takes(module: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether the kernel computes this layer."""
    if type(module) is not nn.Linear or "forward" in module.__dict__ or not has_tiles():
        return False
    weight, bias = module.weight, module.bias
    return (
        _is_plain(weight)
        and not any(size % STEP for size in weight.shape)
        and (bias is None or (_is_plain(bias) and bias.shape == weight.shape[:1]))
    )


def _is_plain(tensor: Tensor) -> bool:
    """Whether its numbers lie in memory as the kernel reads them."""
    known = type(tensor) in (Tensor, nn.Parameter) and tensor.dtype == torch.bfloat16
    return known and tensor.device.type == "cpu" and tensor.is_contiguous()


def has_tiles() -> bool:
    """Whether this CPU multiplies bfloat16 in tiles, and the kernel that does is there."""
    kernel = _native.kernel()
    return kernel is not None and bool(kernel.karat_has_tiles())


def are_tiled(*layers: nn.Module) -> bool:
    """Whether the kernel may do these layers' work at once, with nobody looking at what each takes and gives."""
    return all(
        type(layer) is TiledLinear and not (layer._forward_hooks or layer._forward_pre_hooks) for layer in layers
    )


def gated(x: Tensor, gate: nn.Linear, up: nn.Linear, gelu: bool = False) -> Tensor:
    """silu(gate(x)) * up(x) of tiled layers, [..., D] → [..., E]; rounded as operations of their own would be.

    `gelu`: by tanh, in the place of SiLU.
    """
    return _product(x, up.weight, up.bias, gate.weight, gate.bias, gelu)


def _product(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    gate: Tensor | None = None,
    gate_bias: Tensor | None = None,
    gelu: bool = False,
) -> Tensor:
    width, depth = weight.shape
    if x.shape[-1] != depth or (gate is not None and gate.shape != weight.shape):
        raise RuntimeError(f"{x.shape[-1]} numbers of a row cannot be multiplied with weights of {depth}")
    read = [part if part is None else part.contiguous() for part in (weight, bias, gate, gate_bias)]
    rows_RD = x.reshape(-1, depth)
    if rows_RD.stride(-1) != 1:
        rows_RD = rows_RD.contiguous()
    y = x.new_empty((*x.shape[:-1], width))
    if len(rows_RD):
        product = Product(
            rows_RD.data_ptr(), *(None if part is None else part.data_ptr() for part in read), y.data_ptr(),
            len(rows_RD), rows_RD.stride(0), depth, width, torch.get_num_threads(), gelu,
        )  # fmt: skip
        _native.call_kernel("karat_linear", product)
    return y


def _shape(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


# An operator of torch's, which its compiler does not look into.
_registry: Any = library
_library = _registry.Library("karat", "DEF")
_library.define("linear(Tensor x, Tensor weight, Tensor? bias) -> Tensor")
_library.impl("linear", _product, "CPU")
_registry.register_fake("karat::linear", _shape, lib=_library)
