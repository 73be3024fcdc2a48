"""A reward from two language models: beta * log(P / P of a reference) of an answer's tokens, summed over its steps.

Source: Rafailov et al. 2023, arXiv:2305.18290 (DPO); Yuan et al. 2024, arXiv:2412.01981 (step rewards of it). Without
a reference it is the model's own log-probability. Train such models as policies are trained; here they are scored.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Self, final

from torch import Tensor

from karat.rewards._numbers import logistic
from karat.rewards.base import Options, Output
from karat.spec import RewardSpec
from karat.types import BadInput, Example, Item, Reward

_NONE = "implicit rewards are not trained here; train the policy (DPO, PRIME), and load it with its reference"


class ImplicitOptions(Options):
    """There are none."""


@final
class Implicit:
    """Learns from nothing."""

    Options = ImplicitOptions
    items: tuple[type, ...] = ()
    output: Output = "logit"

    def __init__(self, options: ImplicitOptions) -> None:
        self.options = options

    @classmethod
    def defaults(cls, options: Mapping[str, Any]) -> dict[str, Any]:
        """Sums over steps, and over the answer."""
        return {"pooling": "answer", "head": "log_ratio", "step_token": "", "aggregate": "sum"}

    def by(self, spec: RewardSpec) -> Self:
        """The same with any spec."""
        return self

    def examples(self, item: Any) -> tuple[Example, ...]:
        """None."""
        raise BadInput(_NONE)

    def problem(self, items: Sequence[Item]) -> str:
        """It is not trained."""
        return _NONE

    def problem_of(self, item: Any) -> str:
        """It is not trained."""
        return _NONE

    def size(self, item: Any) -> float:
        """None."""
        return 0.0

    def targets(self, items: Sequence[Any]) -> dict[str, Tensor]:
        """None."""
        raise BadInput(_NONE)

    def loss(self, numbers_BKk: Tensor, present_BK: Tensor, targets: dict[str, Tensor]) -> Tensor:
        """None."""
        raise BadInput(_NONE)

    def compare(self, a: Reward, b: Reward) -> float:
        """The logistic of the lead: DPO's probability that `a` is preferred."""
        return logistic(a.value - b.value)


KIND = Implicit
