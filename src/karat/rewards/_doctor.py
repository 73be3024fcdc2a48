"""Checks of a model's wiring that a person can act on."""

import math
from typing import Any

from karat.engine.padded import PaddedEngine, PaddedForward
from karat.formats import base as formats
from karat.models import checkpoint
from karat.models._quantised import is_alone, is_quantised, precision
from karat.models.backbone import choose_device
from karat.models.checkpoint import Parts, golden_inputs
from karat.models.render import Rendered
from karat.rewards import _open, _parity
from karat.rewards._doctor_shown import Finding, made_up, shown
from karat.rewards._examples import as_example
from karat.rewards._local import LocalModel, golden_values
from karat.rewards.base import RewardModel
from karat.types import Example, KaratError, Message, Reward, Unscored

_ASKED, _RIGHT, _WRONG = "What is 7*8?", "It is 56.", "It is 54."
TRANSFORMERS = "transformers"  # the word for its own class, where else a file of scores stands


def examine(
    path: str,
    device: str = "auto",
    dtype: str = "auto",
    parity: str = "",
    tolerance: float = _parity.TOLERANCE,
    example: str = "",
    **options: Any,
) -> list[Finding]:
    """Load a model and check it; a model that cannot be loaded is one finding.

    `example` is a file whose first row is shown as the model reads it, else one is made up. `parity` is a file of texts
    and scores that others have (see `_parity.read_known`), which may differ by `tolerance`, or
    "transformers". `options` are the spec's.

    Raises:
        BadInput: a file is none.
    """
    given = as_example(formats.rows(example)[0][1]) if example else None
    known = _parity.read_known(parity) if parity and parity != TRANSFORMERS else []
    try:
        model = _open.open_model(path, device, dtype, **options)
    except KaratError as error:
        return [Finding("loads", False, str(error))]
    if not isinstance(model, LocalModel):
        return [Finding("loads", True, f"{type(model).__name__.lower()} of kind {_kind_of(model)}"), _answers(model)]
    found = _examined(model, given)
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


def _examined(local: LocalModel, given: Example | None) -> list[Finding]:
    parts, rendered = local.parts, _rendered(local)
    found = [Finding("loads", True, _described(parts)), _golden(parts)]
    if not rendered:
        return [*found, Finding("renders", False, "no golden input can be rendered; check the template and max_length")]
    return [*found, *_shown(local, given), _pad(parts), _padding(local, rendered), *_effects(local, rendered)]


def _shown(local: LocalModel, given: Example | None) -> list[Finding]:
    """How one example is read: the one that was given, or one that is made up, or the shortest that is known."""
    found = [shown(local, example) for example in ([given] if given else [made_up(local), *golden_inputs(local.spec)])]
    first = next((own for own in found if given or isinstance(own, Unscored) or not own.refused), found[0])
    return [Finding("text", False, first.reason)] if isinstance(first, Unscored) else first.findings()


def _described(parts: Parts) -> str:
    spec = parts.spec
    where = choose_device(str(parts.device))
    return (
        f"{type(parts.backbone).__name__}, kind {spec.kind}, layout {spec.render.layout}, weights"
        f" {precision(parts.backbone)}, {spec.head.type} head read at {spec.pooling}, activation {spec.activation},"
        f" max_length {spec.render.max_length or parts.positions}, on {where}"
    )


def _golden(parts: Parts) -> Finding:
    if not parts.spec.golden:
        return Finding("golden scores", True, "none: this checkpoint was not saved by karat")
    drift = checkpoint.golden_drift(parts, parts.spec, golden_values, checkpoint.golden_tolerance(parts))
    if not drift and is_quantised(parts.backbone):
        return Finding("golden scores", True, _rounded(parts))
    if not drift:
        return Finding("golden scores", True, f"{len(parts.spec.golden)} inputs score as when it was saved")
    return Finding("golden scores", False, f"{drift}; {_why(parts) or _OTHER}")


def _rounded(parts: Parts) -> str:
    """How far fewer bits move the golden scores."""
    known = [golden.value for golden in parts.spec.golden]
    now = golden_values(parts, checkpoint.golden_examples(parts.spec))
    moved = max(abs(a - b) for a, b in zip(now, known, strict=True) if a is not None)
    return (
        f"{len(known)} inputs score within {moved:.3g} of what they did when it was saved, from {min(known):.3g} to"
        f" {max(known):.3g}: its weights are in fewer bits now"
    )


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


def _padding(local: LocalModel, rendered: list[Rendered]) -> Finding:
    """The same sequences alone, together, and padded on the left."""
    parts, sequences = local.parts, [r.sequence for r in rendered]
    alone = [local.values([s])[0] for s in sequences]
    # In eight bits each text is run alone, whatever is asked beside it.
    forwards = [PaddedForward(parts.backbone, budget=1) if is_alone(parts.backbone) else PaddedForward(parts.backbone)]
    if forwards[0].takes_positions and not is_alone(parts.backbone):
        forwards.append(PaddedForward(parts.backbone, side="left", pad_id=1))
    together = [LocalModel(parts, PaddedEngine(f)).values(sequences) for f in forwards]
    moved = [abs(a - b) / max(1.0, abs(a)) for row in together for a, b in zip(alone, row, strict=True)]
    worst = max(math.inf if math.isnan(m) else m for m in moved)
    float32 = precision(parts.backbone) in ("float32", "float64")
    return Finding("padding", worst <= (1e-5 if float32 else 5e-2), f"moves a score by {worst:.1e} of itself at most")
