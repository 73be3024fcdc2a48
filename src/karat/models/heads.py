"""The only place where hidden states become numbers: heads in float32, and how Hugging Face classes store them.

A head knows nothing about text or about where its hidden states were read.
"""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from karat.spec import Head as HeadSpec
from karat.spec import RewardSpec
from karat.types import BadInput, nearest

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "gelu": nn.functional.gelu,
    "relu": torch.relu,
    "selu": nn.functional.selu,
    "leaky_relu": nn.functional.leaky_relu,
}


class Gate(nn.Module):
    """States at the prompt's end [R, D] → the weight of each objective [R, A].

    Shares that sum to `logit_scale`, of objectives from which the one to debias against has been taken:
    `transform` [A, A] does that, rewards @ transform. Source: Wang et al. 2024, arXiv:2406.12845 (ArmoRM). Without a
    softmax the weights are the logits themselves, as URM's.
    """

    def __init__(self, spec: HeadSpec, hidden: int) -> None:
        super().__init__()
        sizes = [hidden, *spec.gate_layers, spec.outputs]
        self.layers = nn.ModuleList(nn.Linear(before, after) for before, after in pairwise(sizes))
        self.logit_scale = nn.Parameter(torch.ones(1))
        self.register_buffer("transform", torch.eye(spec.outputs))
        self.temperature, self.act, self.shares = spec.temperature, spec.gate_act, spec.gate_softmax

    def forward(self, states_RD: Tensor) -> Tensor:
        """Weights of the objectives as they are before the transform, so that weights · objectives is the reward."""
        for layer in self.layers[:-1]:
            states_RD = _ACTIVATIONS[self.act](layer(states_RD))
        logits_RA = self.layers[-1](states_RD) / self.temperature
        share_RA = torch.softmax(logits_RA, dim=-1) if self.shares else logits_RA
        weight_RA: Tensor = (share_RA * self.logit_scale) @ self.transform.T  # type: ignore[operator]
        return weight_RA


class Head(nn.Module):
    """Hidden states [R, D] → numbers [R, k], in float32 whatever autocast says (bf16 would tie rewards).

    A gated head takes two states, [R, 2D]: of the answer and of the prompt, or one that both are read from. Its
    numbers are the objectives and, behind them, their weights. A `versus` head takes three: of the prompt and of two
    answers.
    """

    def __init__(self, spec: HeadSpec, hidden: int) -> None:
        super().__init__()
        if (spec.dimensions or 1) > hidden:
            raise BadInput(f"dimensions={spec.dimensions}, but the model has {hidden}; ask for fewer")
        self.hidden_act, self.dimensions, self.normalize = spec.hidden_act, spec.dimensions, spec.normalize
        self.versus = spec.type == "versus"
        self.bins, self.reads = spec.bins, 3 if self.versus else 1 + (spec.type == "gated" and spec.gate_at != "same")
        widths = spec.widths or ((hidden,) if spec.type in ("mlp", "versus") else ())
        taken = 2 * hidden if self.versus else hidden
        self.dense = nn.Linear(taken, widths[0], bias=not spec.norm) if widths else None
        self.more = nn.ModuleList(nn.Linear(before, after) for before, after in pairwise(widths))
        last = widths[-1] if widths else hidden
        self.norm = nn.LayerNorm(last, bias=False) if spec.norm else None
        outputs = spec.outputs * (spec.bins or 1)
        self.out = None if spec.type == "hidden" else nn.Linear(last, outputs, bias=spec.bias)
        if self.out is not None:
            nn.init.normal_(self.out.weight, std=(hidden + 1) ** -0.5)  # Stiennon et al. 2020, arXiv:2009.01325
        gated = spec.type == "gated"
        self.gate = Gate(spec, hidden) if gated else None

    def forward(self, states_RD: Tensor) -> Tensor:
        """Numbers of shape [R, k]."""
        with torch.autocast(states_RD.device.type, enabled=False):
            states_RD = states_RD.float()
            if self.out is None:
                return self._embedded(states_RD)
            if self.versus:
                return self._lead(states_RD, self.out)
            if self.gate is None:
                return self._outputs(states_RD, self.out)
            answer_RD, *prompt_RD = states_RD.chunk(self.reads, dim=-1)
            return torch.cat([self._outputs(answer_RD, self.out), self.gate((*prompt_RD, answer_RD)[0])], dim=-1)

    def _lead(self, states_RD: Tensor, out: nn.Linear) -> Tensor:
        """By how much the first of two answers leads, each rated beside the prompt (arXiv:2306.02561)."""
        prompt_RD, *answers = states_RD.chunk(3, dim=-1)
        first_Rk, second_Rk = (self._outputs(torch.cat([prompt_RD, own_RD], dim=-1), out) for own_RD in answers)
        return first_Rk - second_Rk

    def _outputs(self, states_RD: Tensor, out: nn.Linear) -> Tensor:
        for layer in (self.dense, *self.more):
            if layer is not None:
                states_RD = _ACTIVATIONS[self.hidden_act](layer(states_RD))
        numbers_Rk: Tensor = out(states_RD if self.norm is None else self.norm(states_RD))
        if self.bins is None:
            return numbers_Rk
        share_RkB = torch.softmax(numbers_Rk.reshape(len(numbers_Rk), -1, self.bins), dim=-1)
        mean_Rk: Tensor = share_RkB @ torch.linspace(0, 1, self.bins, device=share_RkB.device)
        return mean_Rk

    def beside(self, states_RD: Tensor) -> Tensor:
        """States as they are read, one below the other, as this head takes them."""
        return states_RD.reshape(-1, self.reads * states_RD.shape[-1])

    def _embedded(self, states_RD: Tensor) -> Tensor:
        """The first dimensions; cut before they get length 1 (Kusupati et al. 2022, arXiv:2205.13147)."""
        kept_RE = states_RD[:, : self.dimensions]
        return nn.functional.normalize(kept_RE, dim=-1) if self.normalize else kept_RE

    def sha256(self) -> str:
        """A fingerprint of the tensors, so that a foreign head of the same shape is noticed."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(name.encode() + tensor.detach().float().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]


def check_output(spec: RewardSpec) -> None:
    """Raise BadInput where activation and output do not make one reward of the head's numbers."""
    k = spec.head.outputs
    if spec.activation == "softmax" and k == 1:
        raise BadInput("a softmax over the head's one output is 1 for every text; use activation='sigmoid'")
    if isinstance(spec.output, int) and not 0 <= spec.output < k:
        raise BadInput(f"output={spec.output}, but the head has {k}, counted from 0")
    if not isinstance(spec.output, int) and len(spec.output) != k:
        raise BadInput(f"output has {len(spec.output)} weights, but the head has {k} outputs; give one for each")
    if spec.objectives and len({*spec.objectives}) != k:
        raise BadInput(
            f"objectives has {len({*spec.objectives})} different names, but the head has {k} outputs; give one for each"
        )
    for option in ("weights", "at_least"):
        for name, value in getattr(spec, option).items():
            if not math.isfinite(value):
                raise BadInput(f"{option} of {name!r} is {value}; give a finite number")
            if not spec.objectives:
                raise BadInput(f"{option} is for models with several objectives, and this one has none; leave it out")
            if name not in spec.objectives:
                raise BadInput(f"{option} has no objective {name!r} to be of{nearest(name, spec.objectives)}")


def aggregated(spec: RewardSpec, steps: Sequence[float]) -> float:
    """The reward of an answer from those of its steps, at least one.

    `min` is the usual one (Lightman et al. 2023, arXiv:2305.20050, appendix F, compares it with `prod`).
    """
    if spec.aggregate == "prod":
        return math.prod(steps)
    if spec.aggregate == "mean":
        return math.fsum(steps) / len(steps)
    if spec.aggregate == "last":
        return steps[-1]
    if spec.aggregate == "sum":
        return math.fsum(steps)
    return min(steps) if spec.aggregate == "min" else max(steps)


def objectives_of(spec: RewardSpec, numbers_Rk: Tensor) -> Tensor:
    """Numbers [R, k or more] → outputs after the spec's activation, [R, k]."""
    outputs_Rk = numbers_Rk[:, : spec.head.outputs]
    if spec.activation == "sigmoid":
        return torch.sigmoid(outputs_Rk)
    return torch.softmax(outputs_Rk, dim=-1) if spec.activation == "softmax" else outputs_Rk


def weights_of(spec: RewardSpec, numbers_Rk: Tensor) -> Tensor:
    """How much each output counts in the reward, [R, k]: as asked for, as gated, or the same for every text."""
    k = spec.head.outputs
    if spec.head.type == "gated" and not spec.weights:
        return numbers_Rk[:, k:]
    if spec.weights:
        own = [spec.weights.get(name, 0.0) for name in spec.objectives]
    else:
        own = [float(i == spec.output) for i in range(k)] if isinstance(spec.output, int) else [*spec.output]
    return torch.tensor(own, dtype=numbers_Rk.dtype, device=numbers_Rk.device).expand(len(numbers_Rk), k)


def rewards_of(spec: RewardSpec, numbers_Rk: Tensor) -> Tensor:
    """Numbers [R, k or more] → rewards [R]: activation, then one of the outputs or their weighted sum, then scale."""
    outputs_Rk = objectives_of(spec, numbers_Rk)
    if isinstance(spec.output, int) and not spec.weights and spec.head.type != "gated":
        rewards_R = outputs_Rk[:, spec.output]
    else:
        rewards_R = (outputs_Rk * weights_of(spec, numbers_Rk)).sum(-1)
    return rewards_R if spec.scale is None else (rewards_R - spec.scale[0]) / spec.scale[1]


ROWS = 64  # whose logits of the whole vocabulary are held at once
LOGITS = 1 << 22  # held at once where they are learnt from, if so many rows have not more


def log_probabilities(head: Head, states_RD: Tensor, ids_R: Tensor) -> Tensor:
    """Log P of one token for each state, [R], in nats: a log-sum-exp over the vocabulary, a few rows at a time."""
    learns = torch.is_grad_enabled() and states_RD.requires_grad
    assert head.out is not None
    rows = max(ROWS, LOGITS // len(head.out.weight)) if learns else ROWS

    def some(states_ND: Tensor, ids_N: Tensor) -> Tensor:
        lacking = 0 if learns else ROWS - len(states_ND)  # one shape has one order of summation
        logits_NV = head(nn.functional.pad(states_ND, (0, 0, 0, lacking)))[: len(states_ND)]
        found_N: Tensor = logits_NV.gather(1, ids_N[:, None])[:, 0] - logits_NV.logsumexp(-1)
        return found_N

    chunks = list(zip(torch.split(states_RD, rows), torch.split(ids_R, rows), strict=True))
    if learns:  # what a vocabulary's logits hold is computed again
        return torch.cat([checkpoint(some, *chunk, use_reentrant=False) for chunk in chunks])
    return torch.cat([some(*chunk) for chunk in chunks])


@dataclass(frozen=True)
class Layout:
    """Where a classification class keeps a head: the head's tensor → the model's."""

    spec: HeadSpec  # its outputs are those of the tensors
    pooling: str
    tensors: Mapping[str, str]
    modules: tuple[str, ...]  # what PEFT has to train and save whole


def _mlp(dense: str, out: str, modules: tuple[str, ...], *acts: str) -> tuple[Layout, ...]:
    tensors = {
        f"{ours}.{part}": f"{theirs}.{part}" for ours, theirs in (("dense", dense), ("out", out)) for part in _WB
    }
    return tuple(
        Layout(HeadSpec(type="mlp", bias=True, hidden_act=act), "cls", tensors, modules)  # type: ignore[arg-type]
        for act in acts
    )


_WB = ("weight", "bias")


def _normed(*poolings: str) -> tuple[Layout, ...]:
    """ModernBERT's: a layer without a bias, and a norm."""
    tensors = {"dense.weight": "head.dense.weight", "norm.weight": "head.norm.weight"}
    tensors |= {f"out.{part}": f"classifier.{part}" for part in _WB}
    head = HeadSpec(type="mlp", bias=True, hidden_act="gelu", norm="layer")
    return tuple(Layout(head, pooling, tensors, ("head", "classifier")) for pooling in poolings)


# `{base}` is the class's name for its backbone. Which activation a class uses is found by trying (see checkpoint.py).
LAYOUTS: tuple[Layout, ...] = (
    Layout(HeadSpec(), "last", {"out.weight": "score.weight"}, ("score",)),
    *_mlp("{base}.pooler.dense", "classifier", ("pooler", "classifier"), "tanh", "gelu", "relu"),
    *_mlp("pooler.dense", "classifier", ("pooler", "classifier"), "gelu", "tanh", "relu"),
    *_mlp("classifier.dense", "classifier.out_proj", ("classifier",), "tanh", "gelu", "relu"),
    *_mlp("pre_classifier", "classifier", ("pre_classifier", "classifier"), "relu", "gelu", "tanh"),
    *_normed("cls", "mean"),
)


# The same for `…ForTokenClassification`, which reads every token: what TRL's and PURE's step rewards are stored as.
TOKEN_LAYOUTS: tuple[Layout, ...] = tuple(
    Layout(HeadSpec(bias=True), "step", {f"out.{part}": f"{name}.{part}" for part in _WB}, (name,))
    for name in ("score", "classifier")
)


def layouts_for(names: frozenset[str], base: str, tokens: bool = False) -> list[Layout]:
    """The layouts whose tensors a classification model has: all of them, and no other tensor beside the backbone."""
    found = []
    for layout in TOKEN_LAYOUTS if tokens else LAYOUTS:
        tensors = {ours: theirs.format(base=base) for ours, theirs in layout.tensors.items()}
        others = {n for n in names if not n.startswith(f"{base}.")} - set(tensors.values())
        if set(tensors.values()) <= names and not others:
            found.append(Layout(layout.spec, layout.pooling, tensors, layout.modules))
    return found
