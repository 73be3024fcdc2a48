"""Pickled weights → a folder of safetensors with the rest of a model beside them. No code of a pickle is run.

Tensors are read by torch's loader of weights alone, which refuses whatever else a pickle holds.
"""

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import save_file
from torch import Tensor
from transformers.modeling_utils import load_state_dict

from karat.models import backbone as backbones
from karat.models import checkpoint
from karat.models._writing import BESIDE, new_folder
from karat.models.render import chat_template, tokenizer_hash
from karat.types import KaratError, Refused

_PICKLES = ("*.bin", "*.pt", "*.pth")
_NOT_WEIGHTS = re.compile(r"^(training_args|optimizer|scheduler|rng_state.*|scaler)\.(bin|pt|pth)$")
# Heads in pickles of their own: their tensors get the file's name, as a module of the model would.
_HEADS = ("regression_layer", "gating_layer", "reward_head")


class Converted(NamedTuple):
    """What was written."""

    folder: Path
    tensors: int
    family: str  # that it is read as; empty where the files leave that open
    question: str  # what they leave open


def convert(path: str | Path, output: str | Path) -> Converted:
    """Write a model with pickled weights as safetensors, and a reward_spec.json where its files decide how it is read.

    Raises:
        Refused: there is nothing to convert, a pickle holds more than tensors, or `output` is there already.
        CheckpointError: it cannot be written.
    """
    source = backbones.locate(path)
    pickles = _weights(source)
    with new_folder(output) as staging:
        count = _write(source, pickles, staging)
        family, question = _decided(staging)
    return Converted(Path(output).absolute(), count, family, question)


def _weights(source: Path) -> list[Path]:
    """The pickles of weights.

    Raises:
        Refused: there are none.
    """
    found = sorted({file for pattern in _PICKLES for file in source.glob(pattern)})
    pickles = [file for file in found if not _NOT_WEIGHTS.match(file.name)]
    whole = any(source.glob("model*.safetensors"))
    if whole:  # beside them, only heads are of use
        pickles = [file for file in pickles if file.stem in (*_HEADS, "value_head")]
    if not pickles:
        raise Refused(
            f"{source} has no pickled weights (*.bin, *.pt), so there is nothing to convert; load it as it is"
        )
    return pickles


def _write(source: Path, pickles: list[Path], staging: Path) -> int:
    """Every file of weights, an index over them, and what stands beside them; how many tensors there are."""
    for file in {f for pattern in BESIDE for f in source.glob(pattern)}:
        if not file.name.endswith(".index.json"):
            shutil.copyfile(file, staging / file.name)
    weights: list[Path] = [*sorted(source.glob("model*.safetensors")), *pickles]
    named: dict[str, str] = {}
    for number, file in enumerate(weights, 1):
        name = f"model-{number:05d}-of-{len(weights):05d}.safetensors"
        if file.suffix == ".safetensors":
            shutil.copyfile(file, staging / name)
            named |= dict.fromkeys(_names(file), name)
            continue
        tensors = _tensors(file)
        if twice := sorted({*tensors} & {*named}):
            raise Refused(f"{source} holds {twice[0]} in two files, so it is not known which counts; remove one")
        save_file(tensors, staging / name, metadata={"format": "pt"})
        named |= dict.fromkeys(tensors, name)
    index = {"metadata": {}, "weight_map": named}
    (staging / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    return len(named)


def _names(file: Path) -> list[str]:
    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened:
        return list(opened.keys())


def _tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a pickle, each with memory of its own.

    Raises:
        Refused: it holds more than tensors, or cannot be read.
    """
    try:
        with backbones.quiet():
            state: Any = load_state_dict(str(file), weights_only=True)
    except Exception as error:  # torch raises half a dozen types for what it refuses
        raise Refused(
            f"{file} is not read: it is no file of weights alone ({backbones.first_line(error)}); only plain tensors"
            " can be converted"
        ) from None
    for inner in ("state_dict", "model", "module"):  # what trainers put around it
        if isinstance(state, Mapping) and isinstance(state.get(inner), Mapping):
            state = state[inner]
    if not isinstance(state, Mapping) or not all(isinstance(t, Tensor) for t in state.values()) or not state:
        raise Refused(f"{file} holds no mapping of names to tensors; only such files can be converted")
    prefix = f"{file.stem}." if file.stem in _HEADS else ""
    return {f"{prefix}{name}": tensor.detach().clone().contiguous() for name, tensor in state.items()}


def _decided(folder: Path) -> tuple[str, str]:
    """The family that what was written is read as, with its spec in the folder; else the question.

    It is loaded for that, so that what cannot be loaded is noticed here.
    """
    try:
        told = checkpoint.reading(folder)
        parts = checkpoint.load(folder, "cpu", "bfloat16")
    except KaratError as error:
        return "", str(error).replace(str(folder), "the model")
    if parts.spec.render.layout == "chat" and chat_template(parts.tokenizer) != parts.spec.render.template:
        (folder / "chat_template.jinja").write_text(parts.spec.render.template, encoding="utf-8")
    head = parts.spec.head.model_copy(update={"sha256": parts.head.sha256()})
    known = {"head": head, "tokenizer_sha256": tokenizer_hash(parts.tokenizer)}
    parts.spec.model_copy(update=known).save(folder)
    return (told.found.family.name if told.found else ""), ""
