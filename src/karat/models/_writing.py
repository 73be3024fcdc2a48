"""A model as the files of a folder: the ordinary Hugging Face layout, and a head of its own where no class holds it."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from karat.models import backbone as backbones
from karat.models._golden import Scorer, golden_scores
from karat.models._parts import HEAD_FILE, Parts, pooler_in_place
from karat.models.families import gated
from karat.models.heads import Layout
from karat.models.render import chat_template, tokenizer_hash
from karat.spec import FILE_NAME, RewardSpec
from karat.spec import Head as HeadSpec
from karat.types import CheckpointError, Refused

BESIDE = ("*.json", "*.txt", "*.model", "*.jinja")  # what a model has beside its weights
_OURS = ("config.json", "adapter_config.json", FILE_NAME)


def check_replaceable(folder: Path) -> None:
    """Raise CheckpointError where a checkpoint would take the place of something else."""
    known = folder.is_dir() and (any((folder / n).is_file() for n in _OURS) or not any(folder.iterdir()))
    if (folder.exists() or folder.is_symlink()) and (folder.is_symlink() or not known):
        raise CheckpointError(f"{folder} is there and is no checkpoint; choose another folder, or remove it")


def write(parts: Parts, folder: Path, score: Scorer) -> RewardSpec:
    """Write a model, its tokenizer and its spec into a folder; the spec, with golden scores.

    Raises:
        CheckpointError: no golden input can be scored.
        OSError: a file cannot be written.
    """
    golden = golden_scores(parts, score)
    if not golden:
        raise CheckpointError("no golden input could be scored, so the checkpoint cannot be verified; raise max_length")
    spec = parts.spec.model_copy(
        update={
            "head": parts.spec.head.model_copy(update={"sha256": parts.head.sha256()}),
            "tokenizer_sha256": tokenizer_hash(parts.tokenizer),
            "golden": golden,
        }
    )
    tensors = {name: t.detach().cpu().contiguous() for name, t in parts.head.state_dict().items()}
    _save_tokenizer(parts, folder)
    with pooler_in_place(parts), backbones.quiet():
        if hasattr(parts.model, "peft_config"):
            _save_adapter(parts, folder, tensors)
        elif _as_armorm(parts):
            gated.save(parts, folder, tensors)
        else:
            stored = parts.layout.tensors if parts.layout else {}
            placed = {theirs: tensors[ours] for ours, theirs in stored.items()}
            parts.model.save_pretrained(folder, state_dict={**parts.model.state_dict(), **placed})
    if parts.layout is None and not _as_armorm(parts):
        save_file(tensors, folder / HEAD_FILE)
    spec.save(folder)
    return spec


def _as_armorm(parts: Parts) -> bool:
    """Whether ArmoRM's layout holds the head: objectives of one matrix, and a gate at the prompt's end."""
    usual = HeadSpec()
    head = parts.spec.head
    same = all(getattr(head, name) == getattr(usual, name) for name in ("gate_act", "gate_at", "gate_softmax", "bias"))
    return parts.head.gate is not None and parts.head.dense is None and same


def _save_tokenizer(parts: Parts, folder: Path) -> None:
    tokenizer, render = parts.tokenizer, parts.spec.render
    if render.layout == "chat" and chat_template(tokenizer) != render.template:
        tokenizer.chat_template = render.template  # trained with a template of its own
    try:
        tokenizer.save_pretrained(folder)
    except Exception as error:  # tokenizers raises plain Exception for a full disk
        raise OSError(backbones.first_line(error)) from None


def _save_adapter(parts: Parts, folder: Path, tensors: dict[str, Tensor]) -> None:
    config = parts.model.peft_config["default"]
    base = Path(str(config.base_model_name_or_path))
    config.base_model_name_or_path = str(base.absolute()) if base.is_dir() else str(base)
    inner = parts.model.base_model.model
    for name in parts.layout.tensors if parts.layout else ():
        inner.get_parameter(_wrapped(parts.layout, name)).data.copy_(tensors[name])  # type: ignore[arg-type]
    parts.model.save_pretrained(folder)


def _wrapped(layout: Layout, name: str) -> str:
    """Where PEFT keeps the trained copy of a head's tensor."""
    steps = layout.tensors[name].split(".")
    at = max(i for i, step in enumerate(steps) if step in layout.modules) + 1
    return ".".join([*steps[:at], "modules_to_save", "default", *steps[at:]])


def publish(staging: Path, folder: Path) -> None:
    """Put a folder in the place of another, which is there whole until then."""
    staging.chmod(0o755)  # mkdtemp's folders are private, and so are safetensors' files
    for file in staging.rglob("*"):
        file.chmod(0o755 if file.is_dir() else 0o644)
    if not folder.exists():
        os.rename(staging, folder)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{folder.name}-old-", dir=folder.parent))
    os.rename(folder, old / "was")
    try:
        os.rename(staging, folder)
    except BaseException:
        os.rename(old / "was", folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def new_folder(output: str | Path) -> Iterator[Path]:
    """A folder to write into, which is at `output` once all is written, and nowhere before or if something fails.

    Raises:
        Refused: `output` is there already.
        CheckpointError: it cannot be written.
    """
    target = Path(output).absolute()
    if target.exists():
        raise Refused(f"{target} is there already; choose another folder, or remove it")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    except OSError as error:
        raise CheckpointError(f"{target} cannot be written to ({error.strerror}); choose another folder") from None
    try:
        yield staging
        staging.chmod(0o755)
        staging.rename(target)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{target} could not be written ({error}); free space or choose another folder") from None
    finally:
        shutil.rmtree(staging, ignore_errors=True)
