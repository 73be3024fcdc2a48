"""Checkpoints: a Hugging Face model taken apart into backbone and head, saved, loaded and verified.

Folders keep the ordinary Hugging Face layout, so that `AutoModelForSequenceClassification` reads them wherever such a
class can express the head; other heads lie in `reward_head.safetensors` beside the backbone. It does not know how
texts are scored: it is handed the scoring function.
"""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForSequenceClassification, PreTrainedTokenizerBase

from karat.models import backbone as backbones
from karat.models.heads import Head, Layout, layouts_for
from karat.models.render import Renderer, render_part, tokenizer_hash
from karat.spec import Golden, RewardSpec, ids_hash
from karat.types import BadInput, CheckpointError, Example, Message, Refused, Unscored

HEAD_FILE = "reward_head.safetensors"
ADAPTER_FILE = "adapter_model.safetensors"

# What is scored when a checkpoint is saved, and again wherever it is checked. Control tokens in a text are text.
GOLDEN = (
    ("What is 7*8?", "56"),
    ("Name the colour of the sea.", "Bluë, mostly: 🌊\n\n(It depends.)"),
    ("Repeat: </s> [SEP] <|im_end|>", "</s> [SEP] <|im_end|> <|eot_id|>"),
)


@dataclass
class Parts:
    """A model taken apart. `model` is what is saved; `backbone` and `head` are what is run and trained."""

    model: Any  # PreTrainedModel, or the PeftModel around it
    backbone: nn.Module
    head: Head
    layout: Layout | None  # where `model` keeps the head, or None where it cannot
    tokenizer: PreTrainedTokenizerBase
    spec: RewardSpec
    pooler: nn.Module | None = None  # taken off the backbone: the head does its work

    @property
    def positions(self) -> int | None:
        """How many tokens the backbone takes."""
        limit = backbones.positions(self.model.config)
        return None if limit is None else limit - backbones.position_offset(self.backbone)

    @property
    def device(self) -> torch.device:
        """Where the backbone lies."""
        return next(self.backbone.parameters()).device


Scorer: TypeAlias = Callable[[Parts, Sequence[Example]], list[float | None]]


# Loading


def load(path: str | Path, device: str = "auto", dtype: str = "auto", **options: Any) -> Parts:
    """A model with its reward head, ready to score.

    `options` are spec fields by name (`kind`, `pooling`, `max_length`, …); they complete a checkpoint that carries no
    spec, and override one that does.

    Raises:
        Refused: the folder holds no reward model, or one whose meaning cannot be decided.
        CheckpointError: weights, tokenizer or template are not those that the spec was saved with.
    """
    folder = backbones.locate(path)
    saved = RewardSpec.read(folder)
    spec = (saved or RewardSpec(kind="bradley_terry")).with_options(**options)
    parts = _load_parts(folder, spec, device, dtype)
    if saved is not None:
        _verify(parts, saved)
    return parts


def start(path: str | Path, spec: RewardSpec, device: str = "auto", dtype: str = "float32") -> Parts:
    """A model to train: its own reward head where it has one, else a new one.

    The head is that of the architecture's classification class where that fits the spec, so that other tools read
    what comes out.

    Raises:
        Refused: the folder cannot be loaded.
    """
    folder = backbones.locate(path)
    if (folder / "adapter_config.json").is_file():
        raise Refused(f"{folder} is a LoRA adapter; merge it into its base before training from it")
    if (saved := RewardSpec.read(folder)) is not None:
        return _load_parts(folder, spec.model_copy(update={"head": saved.head}), device, dtype)
    tokenizer = backbones.load_tokenizer(folder)
    spec = spec.model_copy(update={"render": render_part(tokenizer, spec.render, append_eos=True)})
    model, missing = _classifier(folder, device, dtype)
    base = getattr(model, model.base_model_prefix)
    layout = _probe(model, base)
    if layout is None or ("pooling" in spec.model_fields_set and layout.pooling != spec.pooling):
        return _apart(base, base, Head(spec.head, base.config.hidden_size), None, tokenizer, spec)
    spec = spec.model_copy(update={"head": layout.spec, "pooling": layout.pooling})
    head = Head(layout.spec, base.config.hidden_size)
    if not missing & set(layout.tensors.values()):
        _fill(head, {n: model.get_parameter(t).data for n, t in layout.tensors.items()})
    return _apart(model, base, head, layout, tokenizer, spec)


def _load_parts(folder: Path, spec: RewardSpec, device: str, dtype: str) -> Parts:
    adapter = (folder / "adapter_config.json").is_file()
    base_folder = _base_of_adapter(folder) if adapter else folder
    tokenizer = backbones.load_tokenizer(folder)
    if (folder / HEAD_FILE).is_file():
        model = _bare(base_folder, device, dtype)
        base, layout = model, None
        tensors = _read(folder / HEAD_FILE)
    else:
        model, _ = _classifier(base_folder, device, dtype)
        base = getattr(model, model.base_model_prefix)
        layout = _probe(model, base)
        if layout is None:
            raise Refused(f"{type(model).__name__} computes its head in a way that karat does not know")
        tensors = _stored_head(folder, layout, adapter)
    if adapter:
        model = _with_adapter(model, folder)
    if layout is not None:
        spec = spec.model_copy(update={"head": layout.spec.model_copy(update={"sha256": spec.head.sha256})})
        if "pooling" not in spec.model_fields_set:
            spec = spec.model_copy(update={"pooling": layout.pooling})
    head = Head(spec.head, base.config.hidden_size).to(base.device)
    _fill(head, tensors)
    return _apart(model, base, head, layout, tokenizer, spec)


def _apart(
    model: Any, base: Any, head: Head, layout: Layout | None, tokenizer: PreTrainedTokenizerBase, spec: RewardSpec
) -> Parts:
    if not spec.render.template:
        spec = spec.model_copy(update={"render": render_part(tokenizer, spec.render)})
    parts = Parts(model, base, head.to(base.device), layout, tokenizer, spec, getattr(base, "pooler", None))
    if parts.pooler is not None:
        base.pooler = None
    return parts


def _placed(folder: Path, device: str, dtype: str) -> dict[str, Any]:
    where = backbones.choose_device(device)
    return {"dtype": backbones.choose_dtype(dtype, where, backbones.load_config(folder)), "device_map": {"": where}}


def _bare(folder: Path, device: str, dtype: str) -> Any:
    model, report = backbones.from_pretrained(AutoModel, folder, **_placed(folder, device, dtype))
    if lost := [k for k in report["missing_keys"] if "pooler" not in k]:
        raise CheckpointError(f"{folder} lacks weights of its backbone, such as {lost[0]}; download or save it again")
    return model


def _classifier(folder: Path, device: str, dtype: str) -> tuple[Any, set[str]]:
    """The architecture's one-output classification model, and which of its tensors the folder lacks."""
    model, report = backbones.from_pretrained(
        AutoModelForSequenceClassification, folder, num_labels=1, **_placed(folder, device, dtype)
    )
    missing = set(report["missing_keys"])
    base = model.base_model_prefix + "."
    if lost := [k for k in missing if k.startswith(base) and "pooler" not in k]:
        raise CheckpointError(f"{folder} lacks weights of its backbone, such as {lost[0]}; download or save it again")
    return model, missing


def _probe(model: Any, base: Any) -> Layout | None:
    """How a classification class computes its head, found by comparing with its own forward on a few tokens."""
    names = frozenset(model.state_dict())
    pad = model.config.get_text_config().pad_token_id
    ids = torch.tensor([[i for i in range(3, 12) if i != pad][:6]], device=base.device)
    model.eval()
    with torch.no_grad():
        wanted = model(input_ids=ids).logits.float()
        states = base(input_ids=ids).last_hidden_state.float()
        for layout in layouts_for(names, model.base_model_prefix):
            head = Head(layout.spec, states.shape[-1]).to(base.device)
            _fill(head, {ours: model.get_parameter(theirs).data for ours, theirs in layout.tensors.items()})
            got = head(states[:, -1 if layout.pooling == "last" else 0])
            if torch.allclose(got, wanted, rtol=2e-2 if base.dtype != torch.float32 else 1e-3, atol=1e-3):
                return layout
    return None


def _stored_head(folder: Path, layout: Layout, adapter: bool) -> dict[str, Tensor]:
    """The head's tensors as stored, in their own precision."""
    prefix = "base_model.model." if adapter else ""
    wanted = {prefix + theirs: ours for ours, theirs in layout.tensors.items()}
    found: dict[str, Tensor] = {}
    for file in [folder / ADAPTER_FILE] if adapter else sorted(folder.glob("*.safetensors")):
        found |= _read(file, set(wanted))
    if lost := set(wanted) - set(found):
        what = "the adapter was saved without its reward head" if adapter else "it has no reward head"
        raise Refused(
            f"{folder}: {what} ({min(lost)} is missing); train one with `karat train`,"
            " or give the folder of a reward model"
        )
    return {wanted[name]: tensor for name, tensor in found.items()}


def _read(file: Path, names: set[str] | None = None) -> dict[str, Tensor]:
    try:
        with safe_open(file, framework="pt") as stored:
            held = set(stored.keys())
            return {n: stored.get_tensor(n) for n in (held if names is None else held & names)}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} cannot be read ({error}); download or save it again") from None


def _fill(head: Head, tensors: dict[str, Tensor]) -> None:
    wanted = {name: tuple(t.shape) for name, t in head.state_dict().items()}
    given = {name: tuple(t.shape) for name, t in tensors.items()}
    if wanted != given:
        raise CheckpointError(f"the reward head has tensors {given}, but this model and spec need {wanted}")
    head.load_state_dict({name: t.float() for name, t in tensors.items()})


def _base_of_adapter(folder: Path) -> Path:
    base = backbones.read_json(folder / "adapter_config.json").get("base_model_name_or_path")
    try:
        return backbones.locate(base or "")
    except Refused:
        raise Refused(
            f"{folder} is a LoRA adapter for {base!r}, which is not there; put its base there,"
            " or correct base_model_name_or_path in adapter_config.json"
        ) from None


def _with_adapter(model: Any, folder: Path) -> Any:
    from peft import PeftModel, get_peft_model_state_dict

    wrapped = PeftModel.from_pretrained(model, folder)
    with safe_open(folder / ADAPTER_FILE, framework="pt") as stored:
        strange = set(stored.keys()) ^ set(get_peft_model_state_dict(wrapped))
    if strange:
        raise CheckpointError(f"the adapter in {folder} does not fit its base model (tensor {min(strange)})")
    return wrapped


def _verify(parts: Parts, saved: RewardSpec) -> None:
    """Refuse what is not the model, tokenizer or template that the spec was saved with."""
    if saved.head.sha256 and parts.head.sha256() != saved.head.sha256:
        raise CheckpointError("the reward head is not the one that reward_spec.json was saved with; copy both together")
    if saved.tokenizer_sha256 and tokenizer_hash(parts.tokenizer) != saved.tokenizer_sha256:
        raise CheckpointError("the tokenizer is not the one this reward model was trained with; restore its files")
    own = render_part(parts.tokenizer, saved.render)
    if saved.render.layout == "chat" and own.template != saved.render.template:
        raise CheckpointError(
            "the tokenizer's chat template is not the one this reward model was trained with; restore chat_template"
        )
    rendered = Renderer(parts.tokenizer, saved, parts.positions)([_example(g) for g in saved.golden])
    for golden, got in zip(saved.golden, rendered, strict=True):
        if isinstance(got, Unscored) or ids_hash(got.sequence.ids) != golden.ids_sha256:
            raise CheckpointError(
                "the tokenizer gives other ids than when this reward model was saved; restore its files"
            )


def _example(golden: Golden) -> Example:
    return Example(tuple(Message(m["role"], m["content"]) for m in golden.prompt), golden.response)


# Preparing for training


def add_pad_token(parts: Parts) -> None:
    """Give the tokenizer a pad token of its own where it has none or shares EOS, with a row in the embedding.

    karat needs none (masks come from lengths); classes that look for the last token that is no pad do, and with
    EOS as pad they read the wrong one.
    """
    tokenizer, config = parts.tokenizer, parts.model.config.get_text_config()
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        name = "<|pad|>"
        while name in tokenizer.get_vocab():
            name = name.replace("|>", "_|>")
        tokenizer.add_special_tokens({"pad_token": name})
        if len(tokenizer) > parts.backbone.get_input_embeddings().num_embeddings:  # type: ignore[operator]
            parts.model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    config.pad_token_id = tokenizer.pad_token_id


def add_lora(parts: Parts, options: dict[str, Any]) -> None:
    """Wrap the backbone's linear layers in LoRA; the head is trained and saved whole, whatever `options` say.

    `options` are the arguments of peft's LoraConfig; default rank 16 on all linear layers.

    Raises:
        BadInput: peft does not take an option.
    """
    import peft

    config: dict[str, Any] = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear", **options}
    heads = list(parts.layout.modules) if parts.layout else []
    config["modules_to_save"] = [*{*(config.get("modules_to_save") or []), *heads}] or None
    config["task_type"] = "SEQ_CLS" if parts.layout else "FEATURE_EXTRACTION"
    try:
        with _pooler_in_place(parts):
            parts.model = peft.get_peft_model(parts.model, peft.LoraConfig(**config))
    except (TypeError, ValueError) as error:
        raise BadInput(f"peft refuses the LoRA options: {error}") from None


# Saving


def save(parts: Parts, folder: Path, score: Scorer, also: Callable[[Path], None] | None = None) -> RewardSpec:
    """Write a checkpoint, load it again, compare its scores, and only then put it in place of what was there.

    `also` may add files (a report) to the folder before it appears.

    Raises:
        CheckpointError: it could not be written, or what was written does not score the same. What stood at
            `folder` before is untouched.
    """
    folder = folder.absolute()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except OSError as error:
        raise CheckpointError(
            f"{folder.parent} cannot be written to ({error.strerror}); choose another folder"
        ) from None
    try:
        spec = _write(parts, staging, score)
        _compare(staging, parts, spec, score)
        if also is not None:
            also(staging)
        _publish(staging, folder)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{folder} could not be written ({getattr(error, 'strerror', None) or error});"
            " free space or choose another folder: what stood there before is untouched"
        ) from None
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return spec


def _write(parts: Parts, folder: Path, score: Scorer) -> RewardSpec:
    spec = parts.spec.model_copy(
        update={
            "head": parts.spec.head.model_copy(update={"sha256": parts.head.sha256()}),
            "tokenizer_sha256": tokenizer_hash(parts.tokenizer),
            "golden": _golden(parts, score),
        }
    )
    tensors = {name: t.detach().cpu().contiguous() for name, t in parts.head.state_dict().items()}
    parts.tokenizer.save_pretrained(folder)
    with _pooler_in_place(parts):
        if hasattr(parts.model, "peft_config"):
            _save_adapter(parts, folder, tensors)
        else:
            placed = {parts.layout.tensors[n]: t for n, t in tensors.items()} if parts.layout else {}
            parts.model.save_pretrained(folder, state_dict={**parts.model.state_dict(), **placed})
    if parts.layout is None:
        save_file(tensors, folder / HEAD_FILE)
    spec.save(folder)
    return spec


def _save_adapter(parts: Parts, folder: Path, tensors: dict[str, Tensor]) -> None:
    config = parts.model.peft_config["default"]
    base = Path(str(config.base_model_name_or_path))
    config.base_model_name_or_path = str(base.absolute()) if base.is_dir() else str(base)
    inner = parts.model.base_model.model
    for name, tensor in tensors.items() if parts.layout else ():
        inner.get_parameter(_wrapped(parts.layout, name)).data.copy_(tensor)  # type: ignore[arg-type]
    parts.model.save_pretrained(folder)


def _wrapped(layout: Layout, name: str) -> str:
    """Where PEFT keeps the trained copy of a head's tensor."""
    steps = layout.tensors[name].split(".")
    at = max(i for i, step in enumerate(steps) if step in layout.modules) + 1
    return ".".join([*steps[:at], "modules_to_save", "default", *steps[at:]])


@contextlib.contextmanager
def _pooler_in_place(parts: Parts) -> Iterator[None]:
    if parts.pooler is None:
        yield
        return
    backbone: Any = parts.backbone
    backbone.pooler = parts.pooler
    try:
        yield
    finally:
        parts.pooler, backbone.pooler = backbone.pooler, None


def _golden(parts: Parts, score: Scorer) -> tuple[Golden, ...]:
    examples = [Example((Message("user", prompt),), response) for prompt, response in GOLDEN]
    rendered = Renderer(parts.tokenizer, parts.spec, parts.positions)(examples)
    return tuple(
        Golden(
            prompt=[{"role": m.role, "content": m.content} for m in example.prompt],
            response=example.response,
            ids_sha256=ids_hash(r.sequence.ids),
            value=value,
        )
        for example, r, value in zip(examples, rendered, score(parts, examples), strict=True)
        if not isinstance(r, Unscored) and value is not None
    )


def _compare(folder: Path, parts: Parts, spec: RewardSpec, score: Scorer) -> None:
    dtype = str(next(parts.backbone.parameters()).dtype).removeprefix("torch.")
    try:
        again = load(folder, device=str(parts.device), dtype=dtype)
    except (Refused, CheckpointError) as error:
        raise CheckpointError(f"the checkpoint was written but cannot be loaded again: {error}") from None
    if worst := golden_drift(again, spec, score):
        raise CheckpointError(f"the checkpoint was written but scores differently when loaded again: {worst}")


def golden_drift(parts: Parts, spec: RewardSpec, score: Scorer, tolerance: float = 1e-5) -> str:
    """Empty where the golden inputs score as they did within `tolerance`·max(1, |score|), else the first difference."""
    values = score(parts, [_example(g) for g in spec.golden])
    for golden, value in zip(spec.golden, values, strict=True):
        if value is None or not abs(value - golden.value) <= tolerance * max(1.0, abs(golden.value)):
            return f"{golden.response!r} scored {golden.value} when it was saved and {value} now"
    return ""


def _publish(staging: Path, folder: Path) -> None:
    staging.chmod(0o755)  # mkdtemp's folders are private
    if not folder.exists():
        os.rename(staging, folder)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{folder.name}-old-", dir=folder.parent))
    os.rename(folder, old / "was")
    try:
        os.rename(staging, folder)
    except OSError:
        os.rename(old / "was", folder)
        raise
    shutil.rmtree(old, ignore_errors=True)
