"""A reward for every step of an answer: the probability that it is right, read at the step's mark.

Source: Lightman et al. 2023, arXiv:2305.20050; Wang et al. 2024, arXiv:2312.08935 (Math-Shepherd). The reward of the
answer is an aggregate of its steps', by default their minimum. Any causal language model becomes one by its spec.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, Self, final

import torch
from pydantic import Field
from torch import Tensor

from karat import losses
from karat.models.heads import rewards_of
from karat.rewards._learner import Learner
from karat.rewards.base import Options, Output
from karat.spec import RewardSpec
from karat.types import BadInput, Item, Reward, Stepped

_CLASSES = (-1.0, 0.0, 1.0)  # wrong, neutral, right: the order of three outputs


class ProcessOptions(Options):
    """How steps are learnt."""

    objective: Literal["cross_entropy", "mse"] = "cross_entropy"  # of the outputs, or of the reward
    last_step_only: bool = False  # the other labels are not learnt
    class_weights: tuple[float, ...] = Field(default=())  # of the outputs: how much a label of each counts
    language_weight: float = Field(default=0.0, ge=0, allow_inf_nan=False)  # of the next tokens of right steps


@final
class Process(Learner):
    """Learns from answers whose steps are labelled."""

    Options = ProcessOptions
    items = (Stepped,)
    output: Output = "probability"

    def __init__(self, options: ProcessOptions, spec: RewardSpec | None = None) -> None:
        self.options = options
        self.spec = spec
        self.language_weight = options.language_weight

    @classmethod
    def defaults(cls, options: Mapping[str, Any]) -> dict[str, Any]:
        """Marks that are line ends, and the second of two classes; as TRL's trainer made them.

        One output is a logit; three are wrong, neutral and right, of which the last two are no mistake.
        """
        head = str(options.get("head", "linear"))
        if head.startswith("lm_logits") and head.count(",") == 1 and "output" not in options:
            raise BadInput(f"head={head!r} needs output: which of the tokens says right, counted from 0")
        outputs = len(head.split(",")) if ":" in head else int(options.get("outputs", 2))
        found: dict[str, Any] = {"layout": "concat", "pooling": "step", "step_token": "\n", "outputs": outputs}
        found |= {"activation": "sigmoid", "output": 0} if outputs == 1 else {"activation": "softmax", "output": 1}
        return found | ({"output": (0.0, 1.0, 1.0)} if outputs == 3 else {})

    def by(self, spec: RewardSpec) -> Self:
        """As it learns with a spec."""
        outputs = spec.head.outputs
        if outputs > len(_CLASSES):
            raise BadInput(f"steps have two or three classes, but the head has {outputs} outputs; use 1, 2 or 3")
        if self.options.objective == "mse" and outputs == len(_CLASSES):
            raise BadInput("objective=mse regresses one probability, and three outputs are classes; use 1 or 2 outputs")
        if self.language_weight and self.options.last_step_only:
            raise BadInput("last_step_only hides which steps are right; leave it out, or language_weight")
        if self.language_weight and spec.render.step_join == "turns":
            raise BadInput("with step_join='turns' steps are the user's words; leave language_weight out")
        if (weights := self.options.class_weights) and len(weights) != max(2, outputs):
            raise BadInput(f"class_weights has {len(weights)} numbers for {max(2, outputs)} classes; give one for each")
        return type(self)(self.options, spec)

    def problem(self, items: Sequence[Item]) -> str:
        """One class teaches nothing."""
        labels = {label for i in items if isinstance(i, Stepped) for own in i.labels for label in own} - {None}
        if len(labels) == 1:
            return f"every labelled step has {labels.pop():g}, so there is nothing to learn; add steps with another"
        return ""

    def problem_of(self, item: Stepped) -> str:
        """Labels have to be what the head tells apart, and one at least has to be there."""
        labels = [label for own in item.labels for label in own if label is not None]
        if not labels:
            return "no step is labelled"
        if self._outputs == len(_CLASSES) and (odd := [x for x in labels if x not in _CLASSES]):
            return f"label {odd[0]:g} is none of -1, 0 and 1, which three outputs tell apart; use outputs=2"
        if self._outputs < len(_CLASSES) and not self._goes_below_0 and (odd := [x for x in labels if x < 0]):
            return f"label {odd[0]:g} is not in 0 to 1; for -1, 0 and 1 use outputs=3"
        return ""

    @property
    def _outputs(self) -> int:
        return self.spec.head.outputs if self.spec else 2

    @property
    def _goes_below_0(self) -> bool:
        """Whether a regressed reward does, as PURE's difference of two probabilities."""
        if self.spec is None or self.options.objective != "mse":
            return False
        output = self.spec.output
        return self.spec.activation == "identity" or (not isinstance(output, int) and min(output) < 0)

    def learnt(self, item: Stepped) -> Stepped:
        """With its last labels alone, where no others are learnt."""
        if not self.options.last_step_only:
            return item
        return replace(item, labels=tuple((*[None] * (len(own) - 1), own[-1]) if own else own for own in item.labels))

    def said_well(self, item: Stepped) -> tuple[int, ...]:
        """Those up to the last right one before a wrong one; a label is that of its step in every branch."""
        least = 0.0 if self._outputs == len(_CLASSES) or self._goes_below_0 else 0.5
        told = {
            branch.steps[:number]: label
            for branch, labels in zip(item.branches, item.labels, strict=True)
            for number, label in enumerate(labels, 1)
            if label is not None
        }
        every = ([told.get(b.steps[: i + 1]) for i in range(len(b.steps))] for b in item.branches)
        return tuple(_right_steps(labels, least) for labels in every)

    def size(self, item: Stepped) -> float:
        """Its labelled steps."""
        return float(sum(label is not None for own in item.labels for label in own))

    def targets(self, items: Sequence[Stepped]) -> dict[str, Tensor]:
        """`label_BK` (0 where there is none) and `labelled_BK`."""
        rows = [[label for own in item.labels for label in own] for item in items]
        width = max(map(len, rows))
        filled = [[*row, *[None] * (width - len(row))] for row in rows]
        return {
            "label_BK": torch.tensor([[x or 0.0 for x in row] for row in filled], dtype=torch.float32),
            "labelled_BK": torch.tensor([[x is not None for x in row] for row in filled]),
        }

    def loss(self, numbers_BKk: Tensor, present_BK: Tensor, targets: dict[str, Tensor]) -> Tensor:
        """Mean over a row's labelled steps of cross-entropy in nats, or of the reward's squared error, shape [B]."""
        assert self.spec is not None
        label_BK, labelled_BK = targets["label_BK"], targets["labelled_BK"] & present_BK
        if self.options.objective == "mse":
            rewards_BK = rewards_of(self.spec, numbers_BKk.flatten(0, 1)).view(label_BK.shape)
            loss_BK = losses.outcome_mse(rewards_BK, label_BK)
        elif numbers_BKk.shape[-1] == 1:
            loss_BK = losses.outcome_bce(numbers_BKk[..., 0], label_BK)
        else:
            loss_BK = losses.soft_cross_entropy(numbers_BKk, self._shares(label_BK))
        if weights := self.options.class_weights:
            classes = self._shares(label_BK)
            loss_BK = loss_BK * (classes @ torch.tensor(weights, device=label_BK.device))
        return loss_BK.masked_fill(~labelled_BK, 0.0).sum(-1) / labelled_BK.sum(-1).clamp(min=1)

    def _shares(self, label_BK: Tensor) -> Tensor:
        """The probability of each class that a label says, [B, K, classes]."""
        if self._outputs == len(_CLASSES):
            return (label_BK[..., None] == torch.tensor(_CLASSES, device=label_BK.device)).float()
        wrong_right = torch.stack([1 - label_BK, label_BK], -1)
        return wrong_right if self._right else wrong_right.flip(-1)

    @property
    def _right(self) -> int:
        """Which of two outputs says right: the one that the reward grows with."""
        assert self.spec is not None
        output = self.spec.output
        if self._outputs == 1:
            return 1
        return output if isinstance(output, int) else int(output[1] > output[0])

    def compare(self, a: Reward, b: Reward) -> float:
        """Who has the higher aggregate: 1, 0.5 or 0."""
        return float(a.value > b.value) + 0.5 * (a.value == b.value)


def _right_steps(labels: Sequence[float | None], least: float) -> int:
    found = 0
    for number, label in enumerate(labels, 1):
        if label is not None and label < least:
            break
        found = found if label is None else number
    return found


KIND = Process
