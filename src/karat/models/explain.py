"""What a model is read as, and why: its family, the evidence, and how text becomes a number. No weights are loaded."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from karat import types
from karat.models import backbone as backbones
from karat.models import checkpoint
from karat.models._quantised import stored_by
from karat.models.checkpoint import Defaults, Reading
from karat.models.families.evidence import Evidence
from karat.models.render import Rendered, Renderer, render_part
from karat.spec import RewardSpec
from karat.types import Example, Message, Unscored

_SAMPLE = Example((Message("user", "What is 7*8?"),), "7*8 is 56.", steps=("7*8 is 56.", "So 56."))
_SHOWN = 6  # tensors, and tokens around a read


class Line(NamedTuple):
    """One thing that there is to say."""

    what: str
    said: str


def explain(path: str | Path, defaults: Defaults = dict, **options: Any) -> list[Line]:
    """What decides how a model's text becomes its reward, with these options.

    Raises:
        Refused: the folder holds no reward model, or one whose meaning cannot be decided.
        CheckpointError: its files cannot be read.
    """
    told = checkpoint.reading(path, defaults, **options)
    tokenizer = backbones.load_tokenizer(told.folder)
    spec = told.spec
    if told.found and told.found.family.of_class and "pooling" not in spec.model_fields_set:
        spec = spec.model_copy(update={"pooling": _pooling(told)})
    spec = spec.model_copy(update={"render": render_part(tokenizer, spec.render)})
    lines = [*_family(told), *_spec(spec), *_rendered(Renderer(tokenizer, spec, None), spec)]
    notes = told.found.family.notes if told.found else ()
    return [*lines, *(Line("note", note) for note in notes)]


def _pooling(told: Reading) -> Any:
    """Where a class reads: encoders at their first token."""
    assert told.found is not None
    if "score.weight" in told.found.names.values():
        return "last"
    return "mean" if told.found.evidence.config.get("classifier_pooling") == "mean" else "cls"


def _family(told: Reading) -> list[Line]:
    if told.saved is not None:
        return [Line("family", "karat's own: reward_spec.json says how it is read")]
    if told.found is None:
        return [Line("family", f"none: read as {told.spec.head.type}, as asked for")]
    evidence, names = told.found.evidence, told.found.names
    held = [f"{theirs} {[*evidence.shapes[theirs]]}" for theirs in list(names.values())[:_SHOWN]]
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    lines = [Line("family", told.found.family.name), Line("head", ", ".join(held) + more)]
    return [*lines, Line("backbone", _backbone(evidence)), *_packed(evidence), *_ignored(evidence)]


def _backbone(evidence: Evidence) -> str:
    own = type(evidence.skeleton).__name__
    stands = f" in the place of {evidence.config.get('model_type')}" if evidence.stand_in else ""
    return f"{own}{stands}, tensors under {evidence.prefix!r}, of {evidence.width} numbers to a state"


def _packed(evidence: Evidence) -> list[Line]:
    """What the backbone is stored in, where that is fewer bits than its numbers have."""
    method = stored_by(evidence.settings)
    return [Line("weights", f"in fewer bits, by {method}; the head is not among them")] if method else []


def _ignored(evidence: Evidence) -> list[Line]:
    """What config.json says that was not followed."""
    lines = []
    if "auto_map" in evidence.config:
        lines.append(Line("not followed", "auto_map in config.json: no code of the folder is run"))
    if evidence.architecture:
        lines.append(Line("says of itself", f"{evidence.architecture}; tensors decide"))
    return lines


def _spec(spec: RewardSpec) -> list[Line]:
    head = spec.head
    size = f"{head.outputs} output{'s' * (head.outputs != 1)}"
    lines = [Line("kind", spec.kind), Line("computed by", f"{head.type} head of {size}")]
    whole = spec.activation != "identity" and isinstance(spec.output, int) and spec.scale is None
    ranges = "unbounded" if spec.activation == "identity" else "0 to 1" if whole else "bounded by its weights"
    lines.append(Line("activation", f"{spec.activation}; the reward is {ranges}"))
    if head.type == "gated" and not spec.weights:
        lines.append(Line("reward", "the objectives, weighed by the gate"))
    elif isinstance(spec.output, int):
        lines.append(Line("reward", f"output {spec.output}" if head.outputs > 1 else "the output"))
    else:
        lines.append(Line("reward", f"outputs weighed by {[*spec.output]}"))
    if spec.scale:
        lines.append(Line("scale", f"less {spec.scale[0]:g}, divided by {spec.scale[1]:g}"))
    if spec.at_steps:
        lines.append(Line("aggregate", f"{spec.aggregate} of the steps"))
    return lines


def _rendered(render: Renderer, spec: RewardSpec) -> list[Line]:
    example = _SAMPLE if spec.at_steps else Example(_SAMPLE.prompt, _SAMPLE.response)
    if spec.compares:
        example = Example(example.prompt, example.response, other="It is 54.")
    (found,) = render([example])
    lines = [Line("layout", spec.render.layout)]
    if isinstance(found, Unscored):
        return [*lines, Line("an example", found.reason)]
    ids = found.sequence.ids
    lines.append(Line("an example", repr(render.tokenizer.decode(list(ids)))))
    return [*lines, *_reads(render, found, ids)]


def _reads(render: Renderer, found: Rendered, ids: Sequence[int]) -> list[Line]:
    lines = []
    for name, read in found.sequence.reads.items():
        if isinstance(read, types.Span):
            lines.append(Line(f"read at {name}", f"the mean of {read.stop - read.start} tokens"))
            continue
        shown = []
        for at in read[:_SHOWN]:
            *before, own = (str(render.tokenizer.decode([i])) for i in ids[max(0, at - 2) : at + 1])
            shown.append(f"{own!r} (id {ids[at]})" + (f" behind {' '.join(map(repr, before))}" if before else ""))
        lines.append(Line(f"read at {name}", "; ".join(shown)))
    return lines
