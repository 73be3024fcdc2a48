"""A device that is not the CPU, computed on the CPU, and what karat does on it: `other_device.py` prints it as JSON.

It is as strict as CUDA about tensors of two devices in one operation, so that what would fail there fails here. It runs
in a process of its own, as torch takes it for the accelerator of the whole process from then on.
"""

import json
import random

import architectures
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from karat.engine import probe
from karat.engine.forest import ForestEngine
from karat.engine.packed import PackedForward
from karat.engine.padded import PaddedEngine, PaddedForward
from karat.types import Sequence, Span

NAME = "other"
ATEN = torch.ops.aten
COPIES = (ATEN._to_copy.default, ATEN.copy_.default)
# Indices may lie on the CPU.
INDEXED = (ATEN.index.Tensor, ATEN.index_put.default, ATEN.index_put_.default, ATEN._index_put_impl_.default)


class There(torch.Tensor):
    """A tensor on the device; `raw` has its numbers."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, raw):
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            raw.size(),
            strides=raw.stride(),
            storage_offset=raw.storage_offset(),
            dtype=raw.dtype,
            device=f"{NAME}:0",
        )
        made.raw = raw
        return made

    def data_ptr(self):
        return self.raw.data_ptr()

    def tolist(self):
        return self.raw.tolist()

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        with Device():  # in the threads of autograd
            return function(*args, **(kwargs or {}))


class Device(TorchDispatchMode):
    """Operations on the device, and copies from and to it."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        tensors = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, torch.Tensor)]
        there = [t for t in tensors if isinstance(t, There)]
        self._check(function, args, there, [t for t in tensors if t.dim() and not isinstance(t, There)])
        goes = isinstance(args[0], There) if function is COPIES[1] else bool(there)
        if kwargs.get("device") is not None:
            goes, kwargs["device"] = torch.device(kwargs["device"]).type == NAME, torch.device("cpu")
        known = {id(t.raw): t for t in there}
        raw_args, raw_kwargs = tree_map(_raw, (args, kwargs))
        with torch.no_grad():
            out = function(*raw_args, **raw_kwargs)

        def wrapped(value):
            if not goes or not isinstance(value, torch.Tensor):
                return value
            return known[id(value)] if id(value) in known else There(value)  # what was changed in place stays itself

        return tree_map(wrapped, out)

    @staticmethod
    def _check(function, args, there, here):
        indexed = function in INDEXED and isinstance(args[0], There)
        if there and here and function not in COPIES and not indexed:
            raise RuntimeError(f"tensors of two devices in {function}")


def _raw(value):
    return value.raw if isinstance(value, There) else value


def moved(module):
    """A module with its weights on the device; `Module.to` would ask torch for a guard that it does not have."""
    for own in module.modules():
        for name, weight in own._parameters.items():
            if weight is not None:
                own._parameters[name] = torch.nn.Parameter(There(weight.detach().clone()), weight.requires_grad)
        for name, buffer in own._buffers.items():
            if buffer is not None:
                own._buffers[name] = There(buffer.clone())
    return module


def sequences(count=8):
    chance = random.Random(0)
    prompts = [[chance.randrange(5, 300) for _ in range(n)] for n in (20, 150)]
    found = []
    for number in range(count):
        ids = tuple(prompts[number % 2] + [chance.randrange(5, 300) for _ in range(chance.randrange(1, 30))])
        found.append(Sequence(ids, {"last": (len(ids) - 1,), "some": (3, 19), "mean": Span(2, len(ids))}))
    return found


def furthest(found, wanted):
    """By how much tensors differ, of the largest number."""
    pairs = list(zip(found, wanted, strict=True))
    return max(float((f.cpu() - w).abs().max()) for f, w in pairs) / max(float(w.abs().max()) for _, w in pairs)


def scored(name, dtype):
    """How far states are from those of padded rows on the CPU, twice: the second time from the cache."""
    model, asked = architectures.build(name).to(dtype), sequences()
    wanted = [s for states in PaddedEngine(PaddedForward(model)).run(asked) for s in states.values()]
    with Device():
        engine = ForestEngine(moved(model), probe.ON_CUDA, probe.ON_CUDA)
        both = [[s for states in engine.run(asked) for s in states.values()] for _ in range(2)]
        return max(furthest(found, wanted) for found in both)


def learnt(name):
    """How far states and gradients are from those of padded rows on the CPU."""
    model, asked = architectures.build(name), sequences()
    wanted = probe._learnt(PaddedForward(model), asked)
    with Device():
        found = probe._learnt(PackedForward(moved(model)), asked)
        return furthest(found, wanted)


def chosen(faster):
    """What trains a model there, where sharing prefixes is faster and where it is not."""
    probe.learns_faster = lambda packed, reference: faster
    with Device():
        return type(probe.choose_forward(moved(architectures.build("Llama")))).__name__


def mixed():
    """What is said of an operation on two devices."""
    with Device():
        try:
            return str(There(torch.ones(2)) + torch.ones(2))
        except RuntimeError as error:
            return str(error)


if __name__ == "__main__":
    torch.set_num_threads(1)
    _setup_privateuseone_for_python_backend(NAME)
    # Mixtures of experts count rows by a histogram of whole numbers, which torch has on CUDA alone.
    plain = [name for name in architectures.DECODERS if "experts" not in str(architectures.DECODERS[name])]
    types = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    print(
        json.dumps(
            {
                "scored": {f"{name} {dtype}": scored(name, types[dtype]) for name in plain for dtype in types},
                "learnt": {name: learnt(name) for name in plain},
                "chosen": [chosen(True), chosen(False)],
                "mixed": mixed(),
            }
        )
    )
