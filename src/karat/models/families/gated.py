"""Objectives that a gate weighs by the prompt: ArmoRM, and QRM, whose objectives are means of quantiles.

Source: Wang et al. 2024, arXiv:2406.12845; Dorka 2024, arXiv:2409.10164 (QRM). Batch norms of a gate that no longer
learns are folded into the layer behind them, and quantiles into their mean, which is all that a score takes of them.
"""

import json
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from karat.models._parts import Parts
from karat.models.families.base import Family, Names, Tensors
from karat.models.families.evidence import Evidence
from karat.types import CheckpointError

_NAMES = {
    "out.weight": "regression_layer.weight",
    "gate.transform": "reward_transform_matrix",
    "gate.logit_scale": "gating.logit_scale",
}
_LAYER = re.compile(r"gating\.layers\.(\d+)\.weight")
_TEMPERATURE = 10.0  # where the config says none
_EPSILON = 1e-5  # of batch norms


def _numbers(evidence: Evidence) -> tuple[list[int], list[int]]:
    """Places of the gate's linear layers and of its batch norms."""
    found = sorted(int(m[1]) for name in evidence.trained if (m := _LAYER.fullmatch(name)))
    norms = [n for n in found if f"gating.layers.{n}.running_mean" in evidence.trained]
    return [n for n in found if n not in norms], norms


def _placed(evidence: Evidence) -> Names | None:
    linear, norms = _numbers(evidence)
    if not linear or "regression_layer.weight" not in evidence.trained:
        return None
    names = {"out.weight": _NAMES["out.weight"]}
    names |= {ours: f"{theirs}?" for ours, theirs in _NAMES.items() if ours != "out.weight"}
    for place, n in enumerate(linear):
        names |= {f"gate.layers.{place}.weight": f"gating.layers.{n}.weight"}
        names |= {f"gate.layers.{place}.bias": f"gating.layers.{n}.bias?"}
        after = [b for b in norms if b > n and (place + 1 == len(linear) or b < linear[place + 1])]
        for norm in after[:1]:
            parts = ("weight", "bias", "running_mean", "running_var")
            names |= {f"norm.{place}.{part}": f"gating.layers.{norm}.{part}" for part in parts}
            names |= {f"norm.{place}.seen": f"gating.layers.{norm}.num_batches_tracked?"}
    return names


def _has_norms(evidence: Evidence) -> bool:
    return bool(_numbers(evidence)[1])


def _has_none(evidence: Evidence) -> bool:
    return not _has_norms(evidence)


def _gate(evidence: Evidence) -> list[int]:
    """Widths of the gate's layers, the last of which are its objectives."""
    return [evidence.shapes[f"gating.layers.{n}.weight"][0] for n in _numbers(evidence)[0]]


def _head(evidence: Evidence) -> dict[str, Any]:
    *widths, objectives = _gate(evidence)
    usual = _TEMPERATURE if "reward_transform_matrix" in evidence.trained else 1.0
    temperature = float(evidence.config.get("gating_temperature", usual))
    made = {"type": "gated", "outputs": objectives, "bias": False}
    return {**made, "gate_layers": tuple(widths), "temperature": temperature}


def named(count: int) -> dict[str, Any]:
    """A kind with so many objectives: the tensors do not say what they are rewards of."""
    return {"kind": "multi_objective", "objectives": tuple(map(str, range(count)))}


def _reading(evidence: Evidence) -> dict[str, Any]:
    return named(_gate(evidence)[-1])


def fold(tensors: Tensors, evidence: Evidence) -> Tensors:
    """Quantiles and batch norms folded, and what is not stored as what changes nothing.

    Raises:
        CheckpointError: rewards and gate do not fit each other.
    """
    *_, objectives = _gate(evidence)
    rows = tensors["out.weight"].float()
    shape = tuple(tensors.get("gate.transform", torch.eye(objectives)).shape)
    if len(rows) % objectives or shape != (objectives, objectives):
        raise CheckpointError(
            f"the reward head has {len(rows)} rows and a gate over {objectives}, with a transform of {[*shape]}, which"
            " do not fit; download or save it again"
        )
    made = {"out.weight": rows.reshape(objectives, -1, rows.shape[-1]).mean(1)}
    made["gate.transform"] = tensors.get("gate.transform", torch.eye(objectives))
    made["gate.logit_scale"] = tensors.get("gate.logit_scale", torch.ones(1))
    return made | _layers(tensors)


def _layers(tensors: Tensors) -> Tensors:
    count = sum(name.startswith("gate.layers.") and name.endswith(".weight") for name in tensors)
    made: Tensors = {}
    scale: Tensor | None = None
    shift: Tensor | None = None
    for place in range(count):
        weight = tensors[f"gate.layers.{place}.weight"].float()
        bias = tensors.get(f"gate.layers.{place}.bias", torch.zeros(len(weight))).float()
        if scale is not None and shift is not None:
            weight, bias = weight * scale, bias + weight @ shift
        made |= {f"gate.layers.{place}.weight": weight, f"gate.layers.{place}.bias": bias}
        scale = shift = None
        if f"norm.{place}.weight" in tensors:
            own = {p: tensors[f"norm.{place}.{p}"].float() for p in ("weight", "bias", "running_mean", "running_var")}
            scale = own["weight"] / torch.sqrt(own["running_var"] + _EPSILON)
            shift = own["bias"] - own["running_mean"] * scale
    return made


def save(parts: Parts, folder: Path, tensors: dict[str, Tensor]) -> None:
    """The backbone and its gated head in the layout that ArmoRM published."""
    prefix = parts.model.base_model_prefix
    placed = {_NAMES.get(name, name.replace("gate.", "gating.", 1)): tensor for name, tensor in tensors.items()}
    own = {f"{prefix}.{name}": tensor for name, tensor in parts.model.state_dict().items()}
    parts.model.save_pretrained(folder, state_dict={**own, **placed})
    head, path = parts.spec.head, folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config |= {"architectures": [f"{type(parts.model).__name__.removesuffix('Model')}ForRewardModelWithGating"]}
    config |= {"num_objectives": head.outputs, "gating_temperature": head.temperature}
    config |= {"gating_n_hidden": len(head.gate_layers), "gating_hidden_dim": head.gate_layers[0]}
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


_NOTES = (
    "the gate reads the end of the prompt, which an answer cannot move; the published code takes the last match of a"
    " pattern of ids, also one in the answer",
    "objectives are numbered: their names are on the model's card, and objectives=[…] gives them",
)
FAMILIES = (
    Family(
        name="ArmoRM",
        published="ArmoRM-Llama3-8B-v0.1",
        tensors=_placed,
        when=_has_none,
        head=_head,
        reading=_reading,
        fold=fold,
        notes=(*_NOTES, "scores near -2 elsewhere are of a head that was dropped (OpenRLHF #486, Online-RLHF #23)"),
    ),
    Family(
        name="QRM",
        published="QRM-Llama3-8B, QRM-Llama3.1-8B (and v2), QRM-Gemma-2-27B",
        tensors=_placed,
        when=_has_norms,
        head=_head,
        reading=_reading,
        fold=fold,
        notes=("an objective is the mean of its quantiles; the quantiles themselves are not given", *_NOTES),
    ),
)
