"""A language model's output embeddings, beside a backbone that is loaded already: some rows of them, or all."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoModelForCausalLM

from karat.models import backbone as backbones
from karat.models._parts import ADAPTER_FILE, Parts, base_of_adapter
from karat.types import BadInput, Refused


def outline(folder: Path) -> Any:  # PreTrainedModel
    """The language model of a folder, or of the base of the adapter that lies there, without any weights.

    Raises:
        Refused: its architecture has none.
    """
    config = backbones.load_config(_base_of(folder))
    try:
        with torch.device("meta"), backbones.quiet():
            return AutoModelForCausalLM.from_config(config)
    except ValueError:
        raise Refused(f"{config.model_type} models in transformers have no language-model head") from None


def stored_as(folder: Path) -> tuple[tuple[str | int, ...], ...]:
    """Name, place on the disk, size and time of each file of weights: they change where another model comes there."""
    found = [(file, file.stat()) for file in sorted(_base_of(folder).glob("*.safetensors"))]
    return tuple((file.name, at.st_ino, at.st_size, at.st_mtime_ns) for file, at in found)


def rows(parts: Parts, folder: Path, bare: Any, ids: Sequence[int] | None = None) -> dict[str, Tensor]:
    """`weight`, [rows, D], and `bias`, [rows], where there is one, of some tokens or all, in the backbone's precision.

    Raises:
        BadInput: an id is beyond the vocabulary.
        Refused: the folder does not hold them in a way that is known.
    """
    backbone: Any = parts.backbone
    own = backbone.get_input_embeddings().weight.data
    if own.is_meta:
        return rows_stored(folder, bare, ids)
    out = bare.get_output_embeddings()
    size, name = len(out.weight), _name(bare, out)
    _check_known(ids, size)
    if out.weight is bare.get_input_embeddings().weight and len(own) == size:
        found = {"weight": own if ids is None else own[torch.tensor(ids)]}
    else:
        found = _stored(_base_of(folder), name, ids)
    if _adapted(folder, name) or ("bias" in found) is not (out.bias is not None):
        raise Refused(f"{folder} stores its language-model head in a way that karat does not know")
    return {part: tensor.to(own.device, own.dtype) for part, tensor in found.items()}


def rows_stored(folder: Path, bare: Any, ids: Sequence[int] | None = None) -> dict[str, Tensor]:
    """`rows` of a folder whose backbone is not loaded, as they are stored.

    Raises:
        BadInput: an id is beyond the vocabulary.
        Refused: the folder does not hold them in a way that is known.
    """
    out, table = bare.get_output_embeddings(), bare.get_input_embeddings()
    _check_known(ids, len(out.weight))
    found = _stored(folder, _name(bare, table if out.weight is table.weight else out), ids)
    if ("bias" in found) is not (out.bias is not None):
        raise Refused(f"{folder} stores its language-model head in a way that karat does not know")
    return found


def _check_known(ids: Sequence[int] | None, size: int) -> None:
    if beyond := [i for i in ids or () if not 0 <= i < size]:
        raise BadInput(f"token id {beyond[0]} is not in the vocabulary of {size}; choose tokens of this model")


def _name(bare: Any, own: Any) -> str:
    return str(next(name for name, module in bare.named_modules() if module is own))


def _base_of(folder: Path) -> Path:
    return base_of_adapter(folder) if (folder / "adapter_config.json").is_file() else folder


def _adapted(folder: Path, name: str) -> bool:
    """Whether an adapter changes the head."""
    if not (folder / ADAPTER_FILE).is_file():
        return False
    with safe_open(folder / ADAPTER_FILE, framework="pt") as stored:
        return any(f".{name}." in f".{key}." for key in stored.keys())  # noqa: SIM118 - it is no mapping


def _stored(folder: Path, name: str, ids: Sequence[int] | None) -> dict[str, Tensor]:
    """A module's weight and bias, or rows of them, as they are stored; nothing else of the files is read."""
    found: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as stored:
            for part in ("weight", "bias"):
                if f"{name}.{part}" in stored.keys():  # noqa: SIM118 - it is no mapping
                    kept = stored.get_slice(f"{name}.{part}")
                    found[part] = kept[:] if ids is None else torch.stack([kept[i] for i in ids])
    if "weight" not in found:
        raise Refused(f"{folder} holds no language-model head; reward models with a head of their own seldom do")
    return found
