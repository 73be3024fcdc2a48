"""Checks of a model's wiring that a person can act on."""

import math
from typing import Any, NamedTuple

from karat import types
from karat.engine.padded import PaddedEngine, PaddedForward
from karat.models import checkpoint
from karat.models.backbone import choose_device
from karat.models.checkpoint import Parts, golden_inputs
from karat.models.render import Rendered
from karat.rewards import _open, _parity
from karat.rewards._local import LocalModel, golden_values
from karat.rewards.base import RewardModel
from karat.types import Example, KaratError, Message, Reward, Unscored

_ASKED, _RIGHT, _WRONG = "What is 7*8?", "It is 56.", "It is 54."
TRANSFORMERS = "transformers"  # the word for its own class, where else a file of scores stands


class Finding(NamedTuple):
    """One check."""

    check: str
    ok: bool
    found: str


def examine(
    path: str,
    device: str = "auto",
    dtype: str = "auto",
    parity: str = "",
    tolerance: float = _parity.TOLERANCE,
    **options: Any,
) -> list[Finding]:
    """Load a model and check it; a model that cannot be loaded is one finding.

    `parity` is a file of texts and scores that others have (see `_parity.read_known`), which may differ by `tolerance`,
    or "transformers". `options` are the spec's.

    Raises:
        BadInput: the file is none.
    """
    known = _parity.read_known(parity) if parity and parity != TRANSFORMERS else []
    try:
        model = _open.open_model(path, device, dtype, **options)
    except KaratError as error:
        return [Finding("loads", False, str(error))]
    if not isinstance(model, LocalModel):
        return [Finding("loads", True, f"{type(model).__name__.lower()} of kind {_kind_of(model)}"), _answers(model)]
    found = _examined(model)
    if not all(own.ok for own in found if own.check in ("loads", "renders")):
        return found
    if known:
        return [*found, Finding("parity", *_parity.compared(model, known, tolerance))]
    if parity == TRANSFORMERS:
        sequences = [own.sequence for own in _rendered(model)]
        return [*found, Finding("parity", *_parity.by_transformers(model, path, sequences))]
    return found


def _kind_of(model: RewardModel) -> str:
    return str(getattr(getattr(model, "spec", None), "kind", "unknown"))


def _answers(model: RewardModel) -> Finding:
    """What a model that has no wiring of its own says to a question with a right and a wrong answer."""
    prompt = (Message("user", _ASKED),)
    try:
        if model.compares:
            (one,) = model.compare_many([Example(prompt, _RIGHT, other=_WRONG)])
        else:
            one, other = model.score(prompt, [_RIGHT, _WRONG])
            one = other if isinstance(other, Unscored) else one
    except KaratError as error:
        return Finding("answers", False, str(error))
    if not isinstance(one, Reward):
        return Finding("answers", False, one.reason)
    if model.compares:
        first, second = one.orders or (one.value, one.value)
        orders = f"{first:.3g} where it is read first and {second:.3g} second"
        return Finding(
            "answers", True, f"a right answer beats a wrong one with a probability of {one.value:.3g}: {orders}"
        )
    assert isinstance(other, Reward)  # else it is `one`
    return Finding("answers", True, f"{one.value:.4g} for a right answer, {other.value:.4g} for a wrong one")


def _rendered(local: LocalModel) -> list[Rendered]:
    return [r for r in local.renderer(golden_inputs(local.spec)) if isinstance(r, Rendered)]


def _examined(local: LocalModel) -> list[Finding]:
    parts, rendered = local.parts, _rendered(local)
    found = [Finding("loads", True, _described(parts)), _golden(parts)]
    if not rendered:
        return [*found, Finding("renders", False, "no golden input can be rendered; check the template and max_length")]
    ids = rendered[0].sequence.ids
    own = [_bos(local, ids), _pad(parts), _read(parts, rendered[0].sequence), _padding(local, rendered)]
    return [*found, *own, *_effects(local, rendered)]


def _described(parts: Parts) -> str:
    spec = parts.spec
    where = choose_device(str(parts.device))
    return (
        f"{type(parts.backbone).__name__}, kind {spec.kind}, layout {spec.render.layout}, {spec.head.type} head read at"
        f" {spec.pooling}, activation {spec.activation}, max_length {spec.render.max_length or parts.positions}"
        f", on {where}"
    )


def _golden(parts: Parts) -> Finding:
    if not parts.spec.golden:
        return Finding("golden scores", True, "none: this checkpoint was not saved by karat")
    float32 = next(parts.backbone.parameters()).dtype.itemsize >= 4
    tolerance = 1e-4 if float32 else 5e-2  # another machine's kernels; bf16 rounds hidden states
    drift = checkpoint.golden_drift(parts, parts.spec, golden_values, tolerance)
    if not drift:
        return Finding("golden scores", True, f"{len(parts.spec.golden)} inputs score as when it was saved")
    return Finding("golden scores", False, f"{drift}; {_why(parts) or _OTHER}")


_OTHER = "weights or spec are others than were saved: copy all files of the folder together"


def _why(parts: Parts) -> str:
    """The mistake that makes all golden scores what they are now, if there is one."""
    now = golden_values(parts, checkpoint.golden_examples(parts.spec))
    both = [(a, golden.value) for a, golden in zip(now, parts.spec.golden, strict=True) if a is not None]
    return _parity.explained([a for a, _ in both], [b for _, b in both]) if len(both) == len(now) else ""


def _pad(parts: Parts) -> Finding:
    """Two ids of padding are a mistake that other tools trip over; karat looks at lengths alone."""
    said, own = parts.model.config.get_text_config().pad_token_id, parts.tokenizer.pad_token_id
    if None not in (said, own) and said != own:
        token = parts.tokenizer.convert_ids_to_tokens(said)
        return Finding(
            "padding id",
            False,
            f"config.json says {said} ({token!r}) and the tokenizer {own} ({parts.tokenizer.pad_token!r}): tools that"
            f" look for the first one read another token; set pad_token_id to {own} in config.json",
        )
    return Finding("padding id", True, "none" if own is None else f"{own} ({parts.tokenizer.pad_token!r})")


def _effects(local: LocalModel, rendered: list[Rendered]) -> list[Finding]:
    """How far the classic mistakes of other tools would move a score of this model."""
    moved = _parity.effects(local, [r.sequence for r in rendered])
    said = "; ".join(f"{by:.3g} if {what}" for what, by in moved.items())
    return [Finding("mistakes", True, f"would move a score by up to {said}")] if said else []


def _bos(local: LocalModel, ids: tuple[int, ...]) -> Finding:
    tokenizer, render = local.parts.tokenizer, local.spec.render
    bos, count = tokenizer.bos_token_id, 0
    while count < len(ids) and ids[count] == bos:
        count += 1
    text = local.renderer.text(golden_inputs(local.spec)[0]) if render.layout == "chat" else ""
    if bos is not None and text.startswith(2 * str(tokenizer.bos_token)):
        return Finding(
            "BOS", False, "the chat template writes it twice: karat reads one, other tools two; take one out of it"
        )
    return Finding("BOS", count <= 1, f"{count} at the start of a rendered answer")


def _read(parts: Parts, sequence: types.Sequence) -> Finding:
    read = sequence.reads[parts.spec.pooling]
    if isinstance(read, types.Span):
        return Finding("read", True, f"the mean of {len(sequence.ids)} tokens")
    found = _around(parts, sequence, read[-1])
    for name in parts.spec.reads[1:]:
        gate = sequence.reads[name]
        found += "" if isinstance(gate, types.Span) else f"; {name} {_around(parts, sequence, gate[-1])}"
    return Finding("read", True, found)


def _around(parts: Parts, sequence: types.Sequence, at: int) -> str:
    around = [parts.tokenizer.convert_ids_to_tokens(i) for i in sequence.ids[max(0, at - 3) : at + 1]]
    return f"at {around[-1]!r}, behind {' '.join(map(repr, around[:-1]))}"


def _padding(local: LocalModel, rendered: list[Rendered]) -> Finding:
    """The same sequences alone, together, and padded on the left."""
    parts, sequences = local.parts, [r.sequence for r in rendered]
    alone = [local.values([s])[0] for s in sequences]
    forwards = [PaddedForward(parts.backbone)]
    if forwards[0].takes_positions:
        forwards.append(PaddedForward(parts.backbone, side="left", pad_id=1))
    together = [LocalModel(parts, PaddedEngine(f)).values(sequences) for f in forwards]
    moved = [abs(a - b) / max(1.0, abs(a)) for row in together for a, b in zip(alone, row, strict=True)]
    worst = max(math.inf if math.isnan(m) else m for m in moved)
    float32 = next(parts.backbone.parameters()).dtype.itemsize >= 4
    return Finding("padding", worst <= (1e-5 if float32 else 5e-2), f"moves a score by {worst:.1e} of itself at most")
