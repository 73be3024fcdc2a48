"""Which engine a model can have, found by trying: a list of architectures would go stale, and be silently wrong.

The faster path is taken only where it gives the padded one's answers, and where branches do not touch each other.
"""

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from karat import types
from karat.engine import _heap, _patches, linear
from karat.engine.base import Engine, States
from karat.engine.forest import ForestEngine
from karat.engine.packed import PackedForward
from karat.engine.padded import PaddedEngine, PaddedForward, to_device
from karat.models._quantised import is_alone, is_quantised
from karat.models.backbone import position_offset, positions, quiet, vocabulary

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
# What an architecture of another shape raises somewhere inside.
UNFIT = (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)
PROMPT, ANSWERS = 13, (5, 3, 9)
ON_CUDA = 4096  # tokens to a forward there, and of the cache: memory is dear, and to compute again is not


def choose(backbone: nn.Module, deterministic: bool = False, compiled: bool = False) -> Engine:
    """The fastest engine that is right for a backbone; `deterministic` ones give the same bits in any company.

    Raises:
        Refused: it has to be `compiled`, and cannot be.
    """
    if deterministic and compiled:
        raise types.Refused("compiled layers round by the shape of their batch; leave deterministic or compiled out")
    engine = _chosen(backbone, deterministic)
    return _compiled(backbone, engine) if compiled else engine


def _compiled(backbone: nn.Module, like: Engine) -> ForestEngine:
    """A compiled engine that gives the answers of one that is not."""
    if not isinstance(like, ForestEngine) or not len(_patches.layers(backbone)):
        raise types.Refused("only what shares prefixes, in one number format, is compiled; leave compiled out")
    engine = ForestEngine(backbone, like.budget, like.cache, like.causal, like.trim, widen=like.widen, compiled=True)
    if not agrees(engine, like):
        raise types.Refused(
            "torch cannot compile this model, or not rightly; a C++ compiler is needed; leave compiled out"
        )
    return _fresh(engine)


def _chosen(backbone: nn.Module, deterministic: bool) -> Engine:
    # Alone in its forward, a sequence has no company that its bits could depend on.
    alone = deterministic or is_alone(backbone)
    reference = PaddedEngine(PaddedForward(backbone, budget=1) if alone else PaddedForward(backbone))
    if is_quantised(backbone):
        return reference
    dtypes = {p.dtype for p in backbone.parameters()}
    if deterministic and torch.get_num_threads() > 2:
        return reference  # torch shares out an activation's numbers so that their bits depend on how many there are
    device = next(backbone.parameters()).device.type
    if device == "cpu":
        _heap.keep_freed()
    # On CUDA a sum's order depends on the shape of its product, so only a sequence alone has the same bits.
    known = device == "cpu" or (device == "cuda" and not deterministic)
    if known and len(dtypes) == 1 and dtypes <= set(TOLERANCE):
        for candidate in _candidates(backbone, reference, deterministic):
            if agrees(candidate, reference):
                return _fresh(candidate) if device == "cpu" or is_faster(candidate, reference) else reference
    return reference


def _fresh(engine: ForestEngine) -> ForestEngine:
    """As if nothing had been tried."""
    engine.clear()
    engine.computed = 0
    return engine


def choose_forward(backbone: nn.Module) -> PaddedForward | PackedForward:
    """The fastest forward that trains a backbone as the padded one does."""
    reference = PaddedForward(backbone)
    on_cpu = next(backbone.parameters()).device.type == "cpu"
    if any(_drops(m) for m in backbone.modules()) or is_quantised(backbone):
        return reference  # shared rows would drop the same
    with contextlib.suppress(*UNFIT), quiet(), _patches.evaluating(backbone):
        packed = PackedForward(backbone, is_causal(PaddedEngine(reference)))
        if _learns_alike(packed, reference) and (on_cpu or learns_faster(packed, reference)):
            return packed
    return reference


def _drops(module: nn.Module) -> bool:
    """Whether a module drops at random: by a Dropout of its own, or by the rate that it hands to its attention."""
    names = ("attention_dropout", "dropout", "dropout_prob")
    rates = [module.p] if isinstance(module, nn.Dropout) else [getattr(module, name, 0.0) for name in names]
    return any(isinstance(rate, float) and rate > 0 for rate in rates)


def _learns_alike(packed: PackedForward, reference: PaddedForward) -> bool:
    """Whether states, and gradients of a sum over them, agree."""
    sequences = _drawn(packed.backbone)
    ours, theirs = (_learnt(forward, sequences) for forward in (packed, reference))
    tolerance = TOLERANCE[theirs[0].dtype] * max(1.0, *(float(t.abs().max()) for t in theirs))
    return len(ours) == len(theirs) and all(
        bool(((a - b).abs() <= tolerance).all()) for a, b in zip(ours, theirs, strict=True)
    )


def _learnt(forward: PaddedForward | PackedForward, sequences: list[types.Sequence]) -> list[Tensor]:
    """States, and gradients of a sum over them."""
    weights = [p for p in forward.parameters() if p.requires_grad]
    states_RD = forward(**to_device(forward.collate(sequences), next(forward.parameters()).device))
    slopes = torch.autograd.grad((states_RD * states_RD.detach().cos()).sum(), weights, allow_unused=True)
    return [states_RD.detach(), *(s for s in slopes if s is not None)]


def learns_faster(packed: PackedForward, reference: PaddedForward) -> bool:
    """Whether a step over two answers to one prompt and two others takes less time than the reference's."""
    sequences = _answers(packed.backbone, 4, 256)
    # One number read waits for the device.
    return _takes_less(*(lambda own=own: _learnt(own, sequences)[-1].sum().item() for own in (packed, reference)))


def _candidates(backbone: nn.Module, reference: PaddedEngine, deterministic: bool) -> Iterator[ForestEngine]:
    with contextlib.suppress(*UNFIT):
        causal, widen = is_causal(reference), _is_faster_in_float32(backbone)
        on_cpu = next(backbone.parameters()).device.type == "cpu"
        budget, cache = (2048, 16384) if on_cpu else (ON_CUDA, ON_CUDA)
        for trim in (True, False):
            yield ForestEngine(backbone, budget, cache, causal, trim, deterministic, widen)


def is_faster(engine: Engine, reference: PaddedEngine) -> bool:
    """Whether it takes less time than the reference for answers to one prompt, and to none."""
    sequences = _answers(reference.forward.backbone, 32, 512)

    def run(one: Engine) -> None:
        if isinstance(one, ForestEngine):
            one.clear()
        _stack(one.run(sequences)).sum().item()  # which waits for the device

    return _takes_less(lambda: run(engine), lambda: run(reference))


def _answers(backbone: Any, count: int, longest: int) -> list[types.Sequence]:
    """So many sequences, from half of the longest up; half of them begin alike."""
    most = min(longest, positions(backbone.config) or longest) - position_offset(backbone)
    chance = torch.Generator().manual_seed(0)
    ids = torch.randint(vocabulary(backbone), (count, most), generator=chance)
    ids[: count // 2, : most // 2] = ids[0, : most // 2]
    lengths = [most - i * most // (2 * count) for i in range(count)]
    return [_read(tuple(row[:n].tolist()), n - 1) for row, n in zip(ids, lengths, strict=True)]


def _takes_less(ours: Callable[[], Any], theirs: Callable[[], Any]) -> bool:
    """Whether one takes less time, the best of three by turns; not where memory runs out."""
    took: tuple[list[float], list[float]] = ([], [])
    with contextlib.suppress(*UNFIT):
        for _ in range(4):
            for one, times in zip((ours, theirs), took, strict=True):
                start = time.perf_counter()
                one()
                times.append(time.perf_counter() - start)
        return min(took[0][1:]) < min(took[1][1:])
    return False


def _is_faster_in_float32(backbone: nn.Module) -> bool:
    """Whether this CPU multiplies the backbone's type much slower than float32, and has room for a copy."""
    weight = next(backbone.parameters())
    if weight.device.type != "cpu" or weight.dtype == torch.float32:
        return False
    if any(linear.takes(m) for m in backbone.modules()):
        return False  # karat's own product is not what is measured here, and quick
    size = 4 * sum(p.numel() for p in backbone.parameters())
    if size > os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2:
        return False
    own, single = _seconds(weight.dtype, torch.float32)
    return own > 1.5 * single


def _seconds(*dtypes: torch.dtype) -> list[float]:
    """The times of a product in each type, the best of four: by turns, as what else the machine does comes and goes."""
    pairs = [(torch.ones(256, 512, dtype=dtype), torch.ones(512, 512, dtype=dtype)) for dtype in dtypes]
    took: list[list[float]] = [[] for _ in pairs]
    for _ in range(4):
        for (a, b), times in zip(pairs, took, strict=True):
            start = time.perf_counter()
            a @ b
            times.append(time.perf_counter() - start)
    return [min(times) for times in took]


def is_causal(engine: PaddedEngine) -> bool:
    """Whether a token's state is blind to what follows.

    Raises:
        NotImplementedError: attention in chunks, which only a mask says, and no probe is long enough to see.
    """
    backbone: Any = engine.forward.backbone
    if getattr(backbone.config.get_text_config(), "attention_chunk_size", None):
        raise NotImplementedError("attention in chunks")
    a, b = (_read(ids, 3) for ids in ((5, 6, 7, 8, 9, 10), (5, 6, 7, 8, 11, 12)))
    with quiet():
        first, second = engine.run([a])[0]["last"], engine.run([b])[0]["last"]
    # Experts group rows by where they are sent, so the last bits may move; eight bits are rounded by what is beside.
    # Looking ahead moves far more.
    tolerance = TOLERANCE[torch.bfloat16 if is_alone(backbone) else torch.float32]
    return bool(((first - second).abs() <= tolerance * (1 + first.abs().max())).all())


def agrees(engine: ForestEngine, reference: Engine) -> bool:
    """Whether an engine gives the reference's answers: branching, read again, grown, beside other branches, and few.

    Where it compiles, one token and one read row are compiled for themselves, and are so before anybody waits for them.
    """
    sequences = _drawn(engine.backbone)
    strange = _drawn(engine.backbone, seed=1)
    grown = [_read(s.ids + t.ids[:4], len(s.ids) + 3) for s, t in zip(sequences, strange, strict=True)]
    few = [_read(sequences[0].ids, PROMPT), _read(sequences[0].ids[:1], 0)]
    again = [_read(s.ids, 4) for s in sequences]
    try:
        with quiet(), torch.no_grad():
            wanted = _stack(reference.run(sequences + again + grown + few))
            engine.clear()
            known = engine.run(sequences) + engine.run(again) + engine.run(grown)
            got = _stack(known + [_alone(engine, s) for s in few])
            engine.clear()
            alone = _stack(engine.run(sequences)[1:])
            engine.clear()
            other = types.Sequence(sequences[0].ids[:PROMPT] + strange[0].ids[PROMPT:], sequences[0].reads)
            beside = _stack(engine.run([other, *sequences[1:]])[1:])
    except UNFIT:
        return False
    # Of each dimension: some are a hundred times as large as others, beside which an error in these would not show.
    tolerance = TOLERANCE[next(engine.backbone.parameters()).dtype] * (1 + wanted.abs().amax(0))
    close = bool(((got - wanted).abs() <= tolerance).all())
    apart = bool(((alone - beside).abs() <= tolerance / 10).all())
    return close and apart and (not engine.deterministic or _same_bits(engine, sequences))


def _alone(engine: ForestEngine, sequence: types.Sequence) -> States:
    engine.clear()
    return engine.run([sequence])[0]


def _drawn(backbone: Any, seed: int = 0) -> list[types.Sequence]:
    """Answers of several lengths to one prompt, read here and there."""
    known = vocabulary(backbone)
    chance = torch.Generator().manual_seed(seed)

    def draw(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(known, (count,), generator=chance).tolist())

    prompt = draw(PROMPT)
    whole = [prompt + draw(n) for n in ANSWERS]
    return [_read(ids, *range(3, len(ids), 2), len(ids) - 1) for ids in whole]


def _same_bits(engine: ForestEngine, sequences: list[types.Sequence]) -> bool:
    """Whether each sequence gets the same alone, together, from the cache, and cut into small forwards."""
    alone = []
    for sequence in sequences:
        engine.clear()
        alone += engine.run([sequence])
    engine.clear()
    together = engine.run(sequences)
    shorter = [types.Sequence(s.ids[:-2], {"last": (len(s.ids) - 3,)}) for s in sequences]
    engine.clear()
    engine.run(shorter)
    cached = engine.run(sequences)
    engine.clear()
    whole, engine.budget = engine.budget, 8
    cut = engine.run(sequences)
    engine.budget = whole
    return all(torch.equal(_stack(alone), _stack(other)) for other in (together, cached, cut))


def _read(ids: tuple[int, ...], *positions: int) -> types.Sequence:
    return types.Sequence(ids, {"last": positions})


def _stack(found: Any) -> Tensor:
    return torch.cat([f["last"] for f in found])
