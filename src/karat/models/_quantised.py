"""Backbones in eight or four bits: as a folder stores them, or made at loading by bitsandbytes. Heads stay in float32.

Source: Dettmers et al. 2022, arXiv:2208.07339 (int8); Dettmers et al. 2023, arXiv:2305.14314 (nf4).
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import BitsAndBytesConfig, PreTrainedConfig
from transformers.utils.import_utils import is_bitsandbytes_available

from karat.models import backbone as backbones
from karat.types import CheckpointError, Refused

TYPES = ("int8", "nf4")  # what `dtype` may be beside torch's floating-point types


def _no_head() -> Sequence[str]:
    return ()


def placed(
    folder: Path,
    device: str,
    dtype: str,
    config: PreTrainedConfig | None = None,
    heads: Callable[[], Sequence[str]] = _no_head,
) -> dict[str, Any]:
    """What transformers' `from_pretrained` is told of device and precision.

    `heads` gives the names of the modules that keep their precision where the others lose theirs.

    Raises:
        Refused: there is no such device or precision, or the folder has its own.
    """
    where = backbones.choose_device(device)
    config = config or backbones.load_config(folder)
    if dtype in TYPES or stored_by(config):
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it says at every product that it rounds
    told: dict[str, Any] = {"dtype": backbones.choose_dtype("auto" if dtype in TYPES else dtype, where, config)}
    if dtype in TYPES:
        told["quantization_config"] = _asked(dtype, folder, config, told["dtype"], heads)
    return {**told, "device_map": {"": where}}


def _asked(
    dtype: str, folder: Path, config: PreTrainedConfig, beside: Any, heads: Callable[[], Sequence[str]]
) -> BitsAndBytesConfig:
    """What bitsandbytes is told; `beside` is the precision of what stays as it is."""
    if stored := stored_by(config):
        raise Refused(f"{folder} is stored in fewer bits already, by {stored}; leave dtype out")
    if not is_bitsandbytes_available():
        raise Refused(f"dtype={dtype!r} needs bitsandbytes, which is not here; pip install bitsandbytes")
    kept = list(heads()) or None  # None: what transformers knows to be a head, or to share its weights
    if dtype == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=kept)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=beside, llm_int8_skip_modules=kept
    )


def beside(auto: Any, folder: Path) -> list[str]:
    """The modules of a classification class that are not its backbone's, and the pooler, which is of its head too."""
    with torch.device("meta"), backbones.quiet():
        model = auto.from_config(backbones.load_config(folder))
    own = [name for name, _ in model.named_children() if name != model.base_model_prefix]
    return [f"{model.base_model_prefix}.pooler", *own]


def stored_by(config: Any) -> str:
    """The method by which a config says that the weights are stored in fewer bits, or the empty string."""
    said = _said(config)
    return str(said.get("quant_method") or "a method that it does not name") if said else ""


def precision(backbone: Any) -> str:
    """What a backbone's weights are in, such as "float32" or "nf4 by bitsandbytes"."""
    floating = str(next(p.dtype for p in backbone.parameters() if p.is_floating_point())).removeprefix("torch.")
    said = _said(backbone.config)
    if not said:
        return floating
    eight = "int8" if said.get("load_in_8bit") else said.get("bnb_4bit_quant_type")
    return f"{eight or 'fewer bits'} by {said.get('quant_method', 'an unknown method')}, {floating} beside it"


def is_quantised(backbone: Any) -> bool:
    """Whether some weights are packed: they are no matrices, and only their own modules multiply by them."""
    return bool(_said(getattr(backbone, "config", None)))


def is_alone(backbone: Any) -> bool:
    """Whether a text has to be run in a forward of its own for its states to be its own.

    LLM.int8 keeps in 16 bits the columns that any row of a forward has a large number in, pads and other texts too.
    """
    said = _said(backbone.config)
    return bool(said.get("load_in_8bit")) and float(said.get("llm_int8_threshold", 6.0)) > 0


def _said(config: Any) -> Mapping[str, Any]:
    """What a config says of packed weights."""
    found = getattr(config, "quantization_config", None)
    told = found if isinstance(found, Mapping) else found.to_dict() if found is not None else {}
    return {name: getattr(value, "value", value) for name, value in told.items()}


def check_head(packed: Iterable[str]) -> None:
    """Raise CheckpointError where there are packed tensors of a head."""
    if found := sorted(packed):
        raise CheckpointError(
            f"the reward head is stored in fewer bits too ({found[0]}), and its own numbers are lost; quantise the"
            " model anew without its head, or take it as it was before, with dtype='nf4'"
        )
