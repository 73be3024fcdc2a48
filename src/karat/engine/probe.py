"""Which engine a model can have, found by trying: a list of architectures would go stale, and be silently wrong.

The faster path is taken only where it gives the padded one's answers, and where branches do not touch each other.
"""

import contextlib
import os
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from karat import types
from karat.engine.base import Engine
from karat.engine.forest import ForestEngine
from karat.engine.padded import PaddedEngine, PaddedForward
from karat.models.backbone import quiet

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
PROMPT, ANSWERS = 13, (5, 3, 9)


def choose(backbone: nn.Module, deterministic: bool = False) -> Engine:
    """The fastest engine that is right for a backbone; `deterministic` ones give the same bits in any company."""
    reference = PaddedEngine(PaddedForward(backbone))
    dtypes = {p.dtype for p in backbone.parameters()}
    if len(dtypes) == 1 and dtypes <= set(TOLERANCE):
        for candidate in _candidates(backbone, reference, deterministic):
            if agrees(candidate, reference):
                candidate.clear()
                candidate.computed = 0
                return candidate
    return reference


def _candidates(backbone: nn.Module, reference: Engine, deterministic: bool) -> Iterator[ForestEngine]:
    with contextlib.suppress(AttributeError, TypeError, ValueError, RuntimeError):  # not even of a transformer's shape
        causal, widen = _is_causal(reference), _is_faster_in_float32(backbone)
        for trim in (True, False):
            yield ForestEngine(backbone, causal=causal, trim=trim, deterministic=deterministic, widen=widen)


def _is_faster_in_float32(backbone: nn.Module) -> bool:
    """Whether this CPU multiplies the backbone's type much slower than float32, and has room for a copy."""
    weight = next(backbone.parameters())
    if weight.device.type != "cpu" or weight.dtype == torch.float32:
        return False
    size = 4 * sum(p.numel() for p in backbone.parameters())
    if size > os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2:
        return False
    return _seconds(weight.dtype) > 1.5 * _seconds(torch.float32)


def _seconds(dtype: torch.dtype) -> float:
    """The time of a product, the best of three."""
    a, b = torch.ones(256, 512, dtype=dtype), torch.ones(512, 512, dtype=dtype)
    took = []
    for _ in range(4):
        start = time.perf_counter()
        a @ b
        took.append(time.perf_counter() - start)
    return min(took[1:])


def _is_causal(engine: Engine) -> bool:
    """Whether a token's state is blind to what follows."""
    a, b = (_read(ids, 3) for ids in ((5, 6, 7, 8, 9, 10), (5, 6, 7, 8, 11, 12)))
    with quiet():
        first, second = engine.run([a])[0]["last"], engine.run([b])[0]["last"]
    return bool(torch.equal(first, second))


def agrees(engine: ForestEngine, reference: Engine) -> bool:
    """Whether an engine gives the reference's answers: branching, grown over two calls, and beside other branches."""
    backbone: Any = engine.backbone
    vocabulary = backbone.get_input_embeddings().num_embeddings
    chance = torch.Generator().manual_seed(0)

    def draw(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(vocabulary, (count,), generator=chance).tolist())

    prompt, answers, stranger = draw(PROMPT), [draw(n) for n in ANSWERS], draw(ANSWERS[0])
    sequences = [_read(prompt + a, *range(3, PROMPT + len(a), 2), PROMPT + len(a) - 1) for a in answers]
    grown = [_read(s.ids + draw(4), len(s.ids) + 3) for s in sequences]
    try:
        with quiet(), torch.no_grad():
            wanted = _stack(reference.run(sequences + grown))
            engine.clear()
            got = _stack(engine.run(sequences) + engine.run(grown))
            engine.clear()
            alone = _stack(engine.run(sequences)[1:])
            engine.clear()
            other = types.Sequence(prompt + stranger, sequences[0].reads)
            beside = _stack(engine.run([other, *sequences[1:]])[1:])
    except (RuntimeError, TypeError, ValueError, AttributeError, KeyError, IndexError):
        return False
    tolerance = TOLERANCE[next(backbone.parameters()).dtype]
    close = bool(((got - wanted).abs() <= tolerance * (1 + wanted.abs().max())).all())
    apart = bool(((alone - beside).abs() <= tolerance / 10 * (1 + wanted.abs().max())).all())
    return close and apart


def _read(ids: tuple[int, ...], *positions: int) -> types.Sequence:
    return types.Sequence(ids, {"last": positions})


def _stack(found: Any) -> Tensor:
    return torch.cat([f["last"] for f in found])
