"""What lies between a layer's products in one pass over memory each, where a module computes what the kernels do.

Which modules do is found by what they give, not by their names: a norm by root mean square is one that gives the same
numbers as its formula, and a gated feed-forward one that hands `act(gate) * up` to its third linear layer, where `act`
is SiLU or GELU by tanh.
"""

import contextlib
import ctypes
import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from karat.engine import _native, _patches, linear, rotary

STEP = 16  # numbers that widths are multiples of
Forward = Callable[..., Any]


class Norm(ctypes.Structure):
    """The kernel's `Norm`, field by field."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("x", "weight", "y")),
        ("rows", ctypes.c_int64),
        *((name, ctypes.c_int32) for name in ("width", "threads", "rounded")),
        *((name, ctypes.c_float) for name in ("epsilon", "offset")),
    )


class Gate(ctypes.Structure):
    """The kernel's `Gate`, field by field."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("gate", "up")),
        ("count", ctypes.c_int64),
        *((name, ctypes.c_int32) for name in ("threads", "gelu")),
    )


class Feed(NamedTuple):
    """The layers of `down(act(gate(x)) * up(x))`; act is GELU by tanh, or SiLU."""

    gate: nn.Linear
    up: nn.Linear
    down: nn.Linear
    gelu: bool

    def act(self, x: Tensor) -> Tensor:
        """By torch's operations."""
        return functional.gelu(x, approximate="tanh") if self.gelu else functional.silu(x)


class Formula(NamedTuple):
    """x / √(mean x² + epsilon) · (weight + offset), rounded before the weight is applied where `rounded`."""

    epsilon: float
    offset: float
    rounded: bool

    def __call__(self, x: Tensor, weight: Tensor) -> Tensor:
        """By torch's operations."""
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.epsilon)
        if self.rounded:
            return weight * wide.to(x.dtype)
        return (wide * (self.offset + weight.float())).to(x.dtype)


def forwards(backbone: nn.Module) -> dict[Any, Forward]:
    """Forwards, by module, of norms, gated feed-forwards and rotations that the kernels compute, without gradients."""
    if _native.kernel() is None or any(weight.device.type != "cpu" for weight in backbone.parameters()):
        return {}
    found: dict[Any, Forward] = {}
    with torch.no_grad():
        for module in backbone.modules():
            if "forward" in module.__dict__:  # someone's own, such as accelerate's
                continue
            if (formula := formula_of(module)) is not None:
                found[module] = _norm(module, formula)
            elif (feed := feed_of(module)) is not None:
                found[module] = _gated(module, feed)
            elif (forward := rotary.forward_of(module)) is not None:
                found[module] = forward
    return found


def formula_of(module: nn.Module) -> Formula | None:
    """The formula by which a module norms rows, where the kernel knows it."""
    weight = next(module.parameters(recurse=False), None)
    if len(list(module.parameters())) != 1 or weight is None or weight.dim() != 1 or not _is_plain(weight):
        return None
    x = torch.randn(4, len(weight), generator=torch.Generator().manual_seed(0)).to(weight.dtype)
    x *= torch.tensor([[1.0], [1e-4], [1e-2], [30.0]], dtype=weight.dtype)  # such that an epsilon shows
    given = _given(module, x)
    if given is None:
        return None
    epsilons = {value for value in vars(module).values() if isinstance(value, float) and 0 < value < 0.1}
    kinds = ((0.0, True), (0.0, False), (1.0, False))
    formulas = (Formula(epsilon, *kind) for epsilon in sorted(epsilons) for kind in kinds)
    return next((own for own in formulas if torch.equal(given, own(x, weight))), None)


def feed_of(module: nn.Module) -> Feed | None:
    """The layers of a gated feed-forward, where that is what a module computes."""
    linears = [child for child in module.children() if isinstance(child, nn.Linear)]
    others = [child for child in module.children() if not isinstance(child, nn.Linear)]
    if len(linears) != 3 or any(True for other in others for _ in other.parameters()):
        return None
    # What its layers take and give is made otherwise, where hooks would see nothing of it.
    hooked = any(child._forward_hooks or child._forward_pre_hooks for child in module.children())
    if hooked or not all(_is_plain(layer.weight) for layer in linears):
        return None
    chance = torch.Generator().manual_seed(0)
    x, *gives = (torch.randn(1, 4, STEP, generator=chance).to(linears[0].weight.dtype) for _ in range(4))
    for own in gives:
        own *= torch.tensor([[1.0], [1.0], [1e2], [1e4]], dtype=own.dtype)  # such that a limit shows
    with _standing_in(linears, gives) as took:
        given = _given(module, x)
    for gate, up, down in itertools.permutations(range(3)):
        product = took[down]
        if given is not gives[down] or not took[gate] is took[up] is x or product is None:
            continue
        feeds = (Feed(linears[gate], linears[up], linears[down], gelu) for gelu in (False, True))
        if found := next((feed for feed in feeds if torch.equal(product, feed.act(gives[gate]) * gives[up])), None):
            return found
    return None


@contextlib.contextmanager
def _standing_in(layers: list[nn.Linear], gives: list[Tensor]) -> Iterator[list[Tensor | None]]:
    """While it lasts, layers give what they are told to; what each took: a model's weights would take long to read."""
    took: list[Tensor | None] = [None] * len(layers)

    def stand_in(place: int) -> Forward:
        def forward(x: Tensor) -> Tensor:
            took[place] = x
            return gives[place]

        return forward

    with _patches.forwards({layer: stand_in(place) for place, layer in enumerate(layers)}):
        yield took


def _given(module: nn.Module, x: Tensor) -> Tensor | None:
    """What a module gives, None where it takes something else."""
    try:
        out = type(module).forward(module, x)
    except Exception:  # of whatever a module is made of
        return None
    return out if isinstance(out, Tensor) and out.dtype == x.dtype else None


def _is_plain(weight: Tensor) -> bool:
    """Whether the kernels can read it."""
    fits = weight.device.type == "cpu" and weight.dtype in _native.NAMES and weight.is_contiguous()
    return fits and type(weight) in (Tensor, nn.Parameter) and weight.shape[0] % STEP == 0


def _norm(module: nn.Module, formula: Formula) -> Forward:
    whole, weight = module.forward, next(module.parameters())

    def forward(x: Tensor, *more: Any, **named: Any) -> Any:
        width = x.shape[-1]
        if more or named or x.dtype != weight.dtype or width != len(weight) or not x.numel():
            return whole(x, *more, **named)
        x = x.contiguous()
        y = torch.empty_like(x)
        what = Norm(
            x.data_ptr(), weight.data_ptr(), y.data_ptr(), x.numel() // width, width, torch.get_num_threads(),
            formula.rounded, formula.epsilon, formula.offset,
        )  # fmt: skip
        _native.call_kernel(f"karat_norm_{_native.NAMES[x.dtype]}", what)
        return y

    return forward


def _gated(module: nn.Module, feed: Feed) -> Forward:
    whole, (gate, up, down, gelu) = module.forward, feed

    def forward(x: Tensor, *more: Any, **named: Any) -> Any:
        if not (more or named) and x.dtype == torch.bfloat16 and linear.are_tiled(gate, up):
            return down(linear.gated(x, gate, up, gelu))
        # The product is written over what the gate's layer gave, which a hook may have kept.
        if more or named or gate._forward_hooks or not x.numel():
            return whole(x, *more, **named)
        left, right = gate(x), up(x)
        if left.shape != right.shape or left.dtype != right.dtype or left.dtype not in _native.NAMES:
            return down(feed.act(left) * right)
        left, right = left.contiguous(), right.contiguous()
        what = Gate(left.data_ptr(), right.data_ptr(), left.numel(), torch.get_num_threads(), gelu)
        _native.call_kernel(f"karat_gate_{_native.NAMES[left.dtype]}", what)
        return down(left)

    return forward
