"""A folder of a reward model's backbone alone, as vLLM can run it: tensors that it has no use for, it refuses.

Files of weights without any of a head's are linked where that can be, so that a large model is not there twice.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from karat.models import backbone as backbones
from karat.models._writing import BESIDE, new_folder
from karat.models.families.evidence import Evidence
from karat.spec import FILE_NAME
from karat.types import Refused

# What says more of a model than its backbone: modules.json makes vLLM look for further layers.
_NOT_BESIDE = {"config.json", "modules.json", FILE_NAME, backbones.INDEX}


def write_alone(path: str | Path, output: str | Path) -> int:
    """Write the backbone of a reward model as a language model's folder; how many tensors it has.

    Raises:
        Refused: its weights are not stored as transformers has them, or `output` is there already.
        CheckpointError: it cannot be written.
    """
    source = backbones.locate(path)
    evidence = Evidence(source)
    config = _config(evidence, source)
    with new_folder(output) as staging:
        count = _write(evidence, staging)
        for file in {file for pattern in BESIDE for file in source.glob(pattern) if file.name not in _NOT_BESIDE}:
            shutil.copyfile(file, staging / file.name)
        (staging / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    return count


def _config(evidence: Evidence, source: Path) -> dict[str, Any]:
    """The config of a language model with this backbone.

    Raises:
        Refused: it would have other tensors.
    """
    if evidence.adapter:
        raise Refused(f"{source} is a LoRA adapter; merge it into its base first")
    name = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(str(evidence.config.get("model_type")))
    if not evidence.is_plain or not isinstance(name, str):
        raise Refused(f"{source} is not stored as a language model of transformers is, so its backbone stays in it")
    return {**{key: value for key, value in evidence.config.items() if key != "auto_map"}, "architectures": [name]}


def _write(evidence: Evidence, staging: Path) -> int:
    """The files of weights, and an index over them."""
    by_file: dict[Path, list[str]] = {}
    for name in evidence.backbone.values():
        by_file.setdefault(evidence.stored[name].file, []).append(name)
    placed: dict[str, str] = {}
    for number, (file, names) in enumerate(sorted(by_file.items()), 1):
        new = f"model-{number:05d}-of-{len(by_file):05d}.safetensors"
        _put(file, names, staging / new)
        placed |= dict.fromkeys(names, new)
    index = {"metadata": {}, "weight_map": placed}
    (staging / backbones.INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    return len(placed)


def _put(file: Path, names: list[str], new: Path) -> None:
    """Some tensors of a file as another; the file itself where they are all."""
    with safe_open(file, framework="pt") as stored:
        if {*stored.keys()} != {*names}:
            save_file({name: stored.get_tensor(name) for name in names}, new, metadata={"format": "pt"})
            return
    try:
        os.link(file.resolve(), new)
    except OSError:  # on another disk, or one that has no links
        shutil.copyfile(file, new)
