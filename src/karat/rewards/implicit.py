"""A reward from two language models: beta * log(P / P of a reference) of an answer's tokens, summed over its steps.

Source: Rafailov et al. 2023, arXiv:2305.18290 (DPO); Yuan et al. 2024, arXiv:2412.01981 (rewards of steps from outcome
labels alone, the implicit reward of PRIME). Without a reference it is the model's own log-probability.
"""

from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor

from karat import losses
from karat.rewards._learner import Learner
from karat.rewards._numbers import logistic
from karat.rewards.base import Method, Options
from karat.types import Labelled, Pair, Reward


class ImplicitOptions(Options):
    """There are none: `beta` and `reference` are the spec's."""


@final
class Implicit(Learner):
    """Learns from answers that are right or wrong, by cross-entropy of the whole answer's ratio, and from pairs."""

    Options = ImplicitOptions
    items = (Labelled, Pair)
    methods: tuple[Method, ...] = ("full", "lora")

    @classmethod
    def defaults(cls, options: Mapping[str, Any]) -> dict[str, Any]:
        """Sums over steps, which are paragraphs, and over the answer."""
        steps = {"step_token": "", "between_steps": "\n\n"}
        return {"pooling": "answer", "head": "log_ratio", "aggregate": "sum", **steps}

    def problem_of(self, item: Any) -> str:
        """An outcome is a probability."""
        if isinstance(item, Labelled) and not 0 <= item.label <= 1:
            return f"label {item.label:g} is not in 0 to 1; scale the labels"
        return ""

    def targets(self, items: Sequence[Any]) -> dict[str, Tensor]:
        """`label_B`, the probability that an answer is right, or that chosen is preferred; `margin_B`, and `pair_B`."""
        return {
            "label_B": torch.tensor([i.preference if isinstance(i, Pair) else float(i.label) for i in items]),
            "margin_B": torch.tensor([i.margin if isinstance(i, Pair) else 0.0 for i in items]),
            "pair_B": torch.tensor([isinstance(i, Pair) for i in items]),
        }

    def loss(self, numbers_BKk: Tensor, present_BK: Tensor, targets: dict[str, Tensor]) -> Tensor:
        """Cross-entropy of an answer's sum, or of the lead of chosen's over rejected's (DPO), in nats, shape [B]."""
        ratio_BK = numbers_BKk[..., 0].masked_fill(~present_BK, 0.0)
        second_BK = targets["sequence_BK"] > 0
        lead_B = ratio_BK.masked_fill(second_BK, 0.0).sum(-1) - ratio_BK.masked_fill(~second_BK, 0.0).sum(-1)
        return losses.outcome_bce(lead_B - targets["margin_B"], targets["label_B"])

    def compare(self, a: Reward, b: Reward) -> float:
        """The logistic of the lead: DPO's probability that `a` is preferred."""
        return logistic(a.value - b.value)


KIND = Implicit
