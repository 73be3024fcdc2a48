"""How a folder is read: by its own spec, or by the family that its files show. No weights are loaded for that."""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from karat.models import backbone as backbones
from karat.models._named import spelled_out
from karat.models._parts import HEAD_FILE, base_of_adapter
from karat.models.families.base import Found, detect
from karat.spec import RewardSpec
from karat.types import CheckpointError, Refused

# Spec options → what the kind says beside them.
Defaults: TypeAlias = Callable[[Mapping[str, Any]], Mapping[str, Any]]


class Reading(NamedTuple):
    """How a folder is read, before any of its weights is."""

    folder: Path
    spec: RewardSpec
    saved: RewardSpec | None  # the folder's own spec
    found: Found | None  # its family, where its head is stored as a family's


def reading(path: str | Path, defaults: Defaults = dict, **options: Any) -> Reading:
    """How a folder is read with these options: by its own spec, or by the family that its files show.

    The option `spec` stands for those of a spec by name, or in a file; `family` says which of several heads is meant.

    Raises:
        BadInput: an option is none, or is out of range.
        Refused: the folder holds no reward model, or one whose meaning cannot be decided.
        CheckpointError: its files cannot be read.
    """
    folder = backbones.locate(path)
    options = spelled_out(options)
    family = str(options.pop("family", ""))
    saved = RewardSpec.read(folder)
    if saved is not None:
        spec = saved.with_options(**options)
        check_same_reading(saved, spec)
        found = family_of(folder, spec, family)
        if found and not found.names:
            raise Refused(
                f"{folder} has no reward head beside its backbone; restore it, or train one with `karat train`"
            )
        if found and not found.by_class(spec) and "type" not in saved.head.model_fields_set:  # written by hand
            spec = spec.model_copy(update={"head": found.head_spec() if found.family.of_class else found.head})
    else:
        spec, found = _spec_of(folder, defaults, options, family)
    if spec.render.over_length == "cut_end":
        raise Refused("over_length='cut_end' is for training; a reward of part of an answer is none: use 'cut_prompt'")
    return Reading(folder, spec, saved, found)


_OF_NO_HEAD = ("lm_logits", "log_ratio", "hidden")


def family_of(folder: Path, spec: RewardSpec, family: str = "") -> Found | None:
    """The family whose head a folder has, where one is read; of this name, where there are several.

    Raises:
        Refused: none is known that is stored so, or nothing of the model can be read.
    """
    if spec.head.type not in _OF_NO_HEAD and not (folder / HEAD_FILE).is_file():
        return detect(folder, family)
    base = base_of_adapter(folder) if (folder / "adapter_config.json").is_file() else folder
    backbones.check_states(backbones.load_config(base), folder)
    return None


def _spec_of(
    folder: Path, defaults: Defaults, options: Mapping[str, Any], family: str
) -> tuple[RewardSpec, Found | None]:
    """A spec for a folder without one: its tensors say what its head is, and its family how it is read."""
    base = RewardSpec(kind="bradley_terry")
    asked = base.with_options(**{**defaults(options), **options})
    found = family_of(folder, asked, family)
    if found is None:
        return asked, None
    told = found.reading(options)  # first, as it may ask
    own = found.head
    if options.get("outputs", own.outputs) != own.outputs:
        raise Refused(f"outputs={options['outputs']}, but the head in {folder} has {own.outputs}; leave outputs out")
    given = {**told, **options, "outputs": own.outputs}
    spec = base.with_options(**{**defaults(given), **given})
    if found.by_class(spec):
        return spec, found
    own = found.head_spec() if found.family.of_class else own
    if "head" in options and spec.head.type != own.type:
        refuse_head(folder, own.type, spec.head.type)
    return spec.model_copy(update={"head": own}), found


def published(folder: Path, wanted: RewardSpec) -> Reading | None:
    """A published reward model whose head no class of transformers has, where it gives what a training run wants.

    Training goes on from its head then, and from its text; otherwise it starts a head of its own.
    """
    try:
        found = detect(folder)
    except (Refused, CheckpointError):  # of no family: a model to start from
        return None
    open_or_usual = found.family.asks or found.family.of_class or not found.names
    if open_or_usual or found.head.type not in ("linear", "mlp") or found.head.outputs != wanted.head.outputs:
        return None
    spec = RewardSpec(kind=wanted.kind).with_options(**found.reading({"kind": wanted.kind}))
    return Reading(folder, spec.model_copy(update={"head": found.head}), None, found)


def refuse_head(folder: Path, has: str, asked: str) -> None:
    """Raise Refused: another head was asked for than there is."""
    raise Refused(f"{folder} has a {has} head, not a {asked} one; leave head out")


def check_same_reading(saved: RewardSpec, asked: RewardSpec, free: Collection[str] = ()) -> None:
    """Refuse to read a checkpoint otherwise than it was trained, but for what is `free`."""
    steps = (
        "step_token",
        "step_join",
        "step_template",
        "between_steps",
        "prompt_end",
        "pair_template",
        "turn_template",
        "append",
        "pair_tokens",
    )
    for name in ("kind", "pooling", "layout", "template", "eos", *steps):
        was, now = (getattr(spec if hasattr(spec, name) else spec.render, name) for spec in (saved, asked))
        if was != now and name not in free:
            shown = repr(was) if len(repr(was)) <= 60 else f"{was!r:.60}…"
            raise Refused(f"this reward model was trained with {name}={shown}; leave {name} out")
    was_head, now_head = ((spec.head.type, () if "tokens" in free else spec.head.tokens) for spec in (saved, asked))
    if was_head != now_head:
        shown = ":".join([saved.head.type, *([",".join(saved.head.tokens)] if saved.head.tokens else [])])
        raise Refused(f"this reward model was trained with head={shown!r}; leave head out")
