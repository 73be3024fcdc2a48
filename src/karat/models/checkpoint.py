"""Checkpoints: a Hugging Face model taken apart into backbone and head, saved, loaded and verified.

Folders keep the ordinary Hugging Face layout, so that `AutoModelForSequenceClassification` reads them wherever such a
class can express the head; other heads lie in `reward_head.safetensors` beside the backbone. It does not know how
texts are scored: it is handed the scoring function.
"""

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from karat.models import _language, _outline
from karat.models import backbone as backbones
from karat.models._fitting import add_lora, add_pad_token, add_step_token
from karat.models._golden import GOLDEN, Scorer, golden_drift, golden_examples, golden_inputs, golden_tolerance
from karat.models._outline import Outline
from karat.models._parts import (
    HEAD_FILE,
    Parts,
    apart,
    around_language,
    bare,
    base_of_adapter,
    classifier,
    fill,
    logits_head,
    probe,
    read_tensors,
    stored_head,
    token_ids,
    try_out,
    with_adapter,
    with_language_adapter,
)
from karat.models._reading import Defaults, Reading, check_same_reading, family_of, published, reading, refuse_head
from karat.models._rereading import reread
from karat.models._vocabulary import stored_as
from karat.models._writing import check_replaceable, publish, write
from karat.models.heads import Head, Layout, check_output
from karat.models.render import Renderer, chat_template, render_part, tokenizer_hash
from karat.spec import Head as HeadSpec
from karat.spec import RewardSpec, ids_hash
from karat.types import CheckpointError, Refused, Unscored

__all__ = [
    "GOLDEN",
    "Defaults",
    "Outline",
    "Parts",
    "Reading",
    "add_lora",
    "add_pad_token",
    "add_step_token",
    "check_same_reading",
    "golden_drift",
    "golden_examples",
    "golden_inputs",
    "golden_tolerance",
    "load",
    "outline",
    "reading",
    "reread",
    "save",
    "start",
]


# Loading


def load(
    path: str | Path, device: str = "auto", dtype: str = "auto", defaults: Defaults = dict, **options: Any
) -> Parts:
    """A model with its reward head, ready to score.

    `options` are spec fields by name (`kind`, `pooling`, `max_length`, …); they complete a checkpoint that carries no
    spec, and override one that does. `defaults` gives, for options, what the kind says beside them; it is asked for a
    checkpoint without a spec.

    Raises:
        Refused: the folder holds no reward model, or one whose meaning cannot be decided.
        CheckpointError: weights, tokenizer or template are not those that the spec was saved with.
    """
    told = reading(path, defaults, **options)
    before = stored_as(told.folder)
    parts = _checked(told, _load_parts(told, device, dtype), before)
    return replace(parts, reference=_language.reference(parts, device, dtype)) if parts.spec.head.reference else parts


def outline(path: str | Path, defaults: Defaults = dict, **options: Any) -> Outline:
    """A model with its reward head and without the weights of its backbone, which a server has to run; see `load`.

    Raises:
        Refused: as of `load`, or no server can run it.
        CheckpointError: as of `load`.
    """
    told = reading(path, defaults, **options)
    before = stored_as(told.folder)
    found = _outline.outline(told)
    return replace(found, parts=_checked(told, found.parts, before))


def _checked(told: Reading, parts: Parts, before: tuple[tuple[str | int, ...], ...]) -> Parts:
    """Parts that are what the folder's spec says, or that what was asked for fits; `before`: as `stored_as` said."""
    if told.saved is not None:
        _verify(parts, told.saved)
        return parts
    if "type" in told.spec.head.model_fields_set and told.spec.head.type != parts.spec.head.type:
        refuse_head(told.folder, parts.spec.head.type, told.spec.head.type)
    return replace(parts, open=told.folder, stored=before)


def start(
    path: str | Path, spec: RewardSpec, device: str = "auto", dtype: str = "float32", plain: str = "concat"
) -> Parts:
    """A model to train: its own reward head where it has one, else a new one.

    The head is that of the architecture's classification class where that fits the spec, so that other tools read
    what comes out. `plain` is the layout where neither spec nor tokenizer has one.

    Raises:
        Refused: the folder cannot be loaded, or is a reward model with another head than the spec's.
        CheckpointError: it is a reward model that is not as it was saved.
    """
    folder = backbones.locate(path)
    if spec.render.layout == "pair" or spec.render.pair_tokens:
        raise Refused("segments are for models that were trained elsewhere; use layout='chat', 'dialogue' or 'concat'")
    if (folder / "adapter_config.json").is_file():
        raise Refused(f"{folder} is a LoRA adapter; merge it into its base before training from it")
    saved = RewardSpec.read(folder)
    if saved is not None and not _continues(saved, spec):
        asked = spec.render.model_dump(exclude_unset=True)
        spec = spec.model_copy(update={"render": saved.render.model_copy(update=asked)})
        saved = None
    if spec.head.type == "log_ratio":
        return _language.start(path, _continued(saved, spec) if saved else spec, device, dtype, plain)
    if saved is not None:
        gates = spec.head.type == "gated" != saved.head.type
        own = _continued(saved, spec if not gates else _without_head(spec))
        parts = _load_parts(Reading(folder, own, saved, family_of(folder, own)), device, dtype)
        _verify(parts, saved)
        return _with_gate(parts, spec.head) if gates else parts
    if (told := published(folder, spec)) is not None:
        return _load_parts(told._replace(spec=_continued(told.spec, spec)), device, dtype)
    tokenizer = backbones.load_tokenizer(folder)
    spec = spec.model_copy(update={"render": render_part(tokenizer, spec.render, append_eos=True, plain=plain)})
    if spec.head.type == "lm_logits":
        base, head = logits_head(folder, device, dtype, token_ids(tokenizer, spec.head.tokens))
        spec = spec.model_copy(update={"head": _as_built(spec, head)})
        return apart(base, base, head, None, tokenizer, spec)
    if spec.head.type == "gated":
        base = bare(folder, device, dtype)
        return apart(base, base, Head(spec.head, base.config.hidden_size), None, tokenizer, spec)
    model, missing = classifier(folder, device, dtype, spec.at_steps, spec.head.outputs)
    base = getattr(model, model.base_model_prefix)
    # What a LoRA adapter calls its base: a hub id says more elsewhere than the folder it was fetched to.
    model.name_or_path = base.name_or_path = str(path) if folder != Path(path) else str(folder.absolute())
    layout = probe(model, base)
    if layout is None or not _fits(layout, spec):
        return apart(base, base, Head(spec.head, base.config.hidden_size), None, tokenizer, spec)
    spec = spec.model_copy(update={"head": layout.spec, "pooling": spec.pooling if spec.at_steps else layout.pooling})
    head = Head(layout.spec, base.config.hidden_size)
    new = head.state_dict()
    found = {n: model.get_parameter(t).data for n, t in layout.tensors.items() if t not in missing}
    fill(head, {**new, **found})
    return apart(model, base, head, layout, tokenizer, spec)


def language_head(path: str | Path, device: str) -> tuple[Head, int]:
    """The head of a causal language model, logits of the whole vocabulary, and how many tokens its tokenizer has.

    Raises:
        Refused: the folder holds no language model, or one whose logits are not linear in its states.
    """
    folder = backbones.locate(path)
    return logits_head(folder, device, "float32", slice(None))[1], len(backbones.load_tokenizer(folder))


def _without_head(spec: RewardSpec) -> RewardSpec:
    return spec.model_copy(update={"head": HeadSpec(), "output": 0})


def _with_gate(parts: Parts, head: HeadSpec) -> Parts:
    """A model of several objectives with a new gate over them."""
    assert parts.head.out is not None
    outputs = parts.spec.head.outputs
    own = head.model_copy(update={"outputs": outputs, "bias": parts.spec.head.bias})
    spec = parts.spec.model_copy(update={"head": own, "output": 0})
    made = Head(spec.head, parts.head.out.in_features)
    made.out = parts.head.out
    base = parts.backbone
    return apart(base, base, made, None, parts.tokenizer, spec)


def _fits(layout: Layout, spec: RewardSpec) -> bool:
    """Is the classification class's own head what the spec asks for, where it asks?"""
    pooling = layout.pooling if "pooling" not in spec.model_fields_set or spec.at_steps else spec.pooling
    head = layout.spec.type if "type" not in spec.head.model_fields_set else spec.head.type
    bias = spec.head.bias if "bias" in spec.head.model_fields_set else layout.spec.bias
    return (layout.pooling, layout.spec.type, layout.spec.bias) == (pooling, head, bias)


def _continues(saved: RewardSpec, spec: RewardSpec) -> bool:
    """Whether a new run goes on with a reward model's own head: of another kind, only one with the same outputs."""
    if saved.kind == spec.kind:
        return True
    same = ("at_steps", "of_tokens", "compares", "objectives")
    outputs = {"outputs", "type"} & spec.head.model_fields_set
    return all(getattr(saved, n) == getattr(spec, n) for n in same) and all(
        getattr(saved.head, n) == getattr(spec.head, n) for n in outputs
    )


def _continued(saved: RewardSpec, spec: RewardSpec) -> RewardSpec:
    """A reward model's own spec, with what a new run says otherwise."""
    if "type" in spec.head.model_fields_set and spec.head.type != saved.head.type:
        raise Refused(
            f"this reward model has a {saved.head.type} head, and head={spec.head.type!r} would lose it;"
            " leave head out, or start from the model it was trained from"
        )
    given = spec.model_dump(exclude_unset=True, exclude={"head", "render", "options"})
    return saved.with_options(**given, options=spec.options, **spec.render.model_dump(exclude_unset=True))


def _load_parts(told: Reading, device: str, dtype: str) -> Parts:
    folder, spec, found = told.folder, told.spec, told.found
    adapter = (folder / "adapter_config.json").is_file()
    base_folder = base_of_adapter(folder) if adapter else folder
    tokenizer = backbones.load_tokenizer(folder)
    layout: Layout | None = None
    if (folder / HEAD_FILE).is_file() or spec.head.type == "hidden":
        model = base = bare(base_folder, device, dtype)
        tensors = {} if spec.head.type == "hidden" else read_tensors(folder / HEAD_FILE)
    elif spec.head.type in ("lm_logits", "log_ratio"):
        chosen = slice(None) if spec.head.type == "log_ratio" else token_ids(tokenizer, spec.head.tokens)
        model, built = logits_head(base_folder, device, dtype, chosen)
        base, tensors = model, built.state_dict()
        spec = spec.model_copy(update={"head": _as_built(spec, built)})
        if adapter and spec.of_tokens:
            model, base = around_language(base_folder, folder, built, device, dtype)
    elif found is not None and not found.by_class(spec):
        tensors = found.tensors()
        if adapter:
            model, base = with_language_adapter(base_folder, folder, device, dtype)
        else:
            model = base = found.backbone(device, dtype)
        try_out(folder, base)
    else:
        model, _ = classifier(base_folder, device, dtype, spec.at_steps, spec.head.outputs)
        base = getattr(model, model.base_model_prefix)
        layout = probe(model, base)
        if layout is None:
            raise Refused(f"{type(model).__name__} computes its head in a way that karat does not know")
        tensors = stored_head(folder, layout, adapter)
    if adapter and not hasattr(model, "peft_config"):
        model = with_adapter(model, folder)
    if layout is not None:
        spec = spec.model_copy(update={"head": layout.spec.model_copy(update={"sha256": spec.head.sha256})})
        if "pooling" not in spec.model_fields_set:
            spec = spec.model_copy(update={"pooling": layout.pooling})
    check_output(spec)
    head = Head(spec.head, base.config.hidden_size).to(base.device)
    fill(head, tensors)
    return apart(model, base, head, layout, tokenizer, spec)


def _as_built(spec: RewardSpec, head: Head) -> HeadSpec:
    """The spec of a head of logits, with what only the model says."""
    assert head.out is not None
    return spec.head.model_copy(update={"outputs": len(head.out.weight), "bias": head.out.bias is not None})


def _verify(parts: Parts, saved: RewardSpec) -> None:
    """Refuse what is not the model, tokenizer or template that the spec was saved with."""
    if saved.head.sha256 and parts.head.sha256() != saved.head.sha256:
        raise CheckpointError("the reward head is not the one that reward_spec.json was saved with; copy both together")
    if saved.tokenizer_sha256 and tokenizer_hash(parts.tokenizer) != saved.tokenizer_sha256:
        raise CheckpointError("the tokenizer is not the one this reward model was trained with; restore its files")
    template = saved.render.template  # a spec that was written by hand may leave it to the tokenizer
    if template and saved.render.layout == "chat" and chat_template(parts.tokenizer) != template:
        raise CheckpointError(
            "the tokenizer's chat template is not the one this reward model was trained with; restore chat_template"
        )
    if not saved.golden:
        return
    rendered = Renderer(parts.tokenizer, saved, parts.positions)(golden_examples(saved))
    for golden, got in zip(saved.golden, rendered, strict=True):
        if isinstance(got, Unscored) or ids_hash(got.sequence.ids) != golden.ids_sha256:
            raise CheckpointError(
                "the tokenizer gives other ids than when this reward model was saved; restore its files"
            )


# Saving


def save(parts: Parts, folder: Path, score: Scorer, also: Callable[[Path], None] | None = None) -> RewardSpec:
    """Write a checkpoint, load it again, compare its scores, and only then put it in place of what was there.

    `also` may add files (a report) to the folder before it appears.

    Raises:
        CheckpointError: it could not be written, what was written does not score the same, or `folder` holds
            something else than a checkpoint. What stood at `folder` before is untouched.
    """
    folder = folder.absolute()
    check_replaceable(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except OSError as error:
        raise CheckpointError(
            f"{folder.parent} cannot be written to ({error.strerror}); choose another folder"
        ) from None
    try:
        spec = write(parts, staging, score)
        _compare(staging, parts, spec, score)
        if also is not None:
            also(staging)
        publish(staging, folder)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{folder} could not be written ({getattr(error, 'strerror', None) or error});"
            " free space or choose another folder: what stood there before is untouched"
        ) from None
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return spec


def _compare(folder: Path, parts: Parts, spec: RewardSpec, score: Scorer) -> None:
    dtype = str(next(parts.backbone.parameters()).dtype).removeprefix("torch.")
    try:
        again = load(folder, device=str(parts.device), dtype=dtype)
    except (Refused, CheckpointError) as error:
        raise CheckpointError(f"the checkpoint was written but cannot be loaded again: {error}") from None
    if worst := golden_drift(again, spec, score):
        raise CheckpointError(f"the checkpoint was written but scores differently when loaded again: {worst}")
