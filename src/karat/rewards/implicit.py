"""A reward from two language models: beta * log(P / P of a reference) of an answer's tokens, summed over its steps.

Source: Rafailov et al. 2023, arXiv:2305.18290 (DPO); Yuan et al. 2024, arXiv:2412.01981 (step rewards of it). Without
a reference it is the model's own log-probability. Train such models as policies are trained; here they are scored.
"""

from collections.abc import Mapping
from typing import Any, final

from karat.rewards._numbers import logistic
from karat.rewards._untrained import Untrained
from karat.rewards.base import Options, Output
from karat.types import Reward


class ImplicitOptions(Options):
    """There are none."""


@final
class Implicit(Untrained):
    """Learns from nothing."""

    Options = ImplicitOptions
    output: Output = "logit"
    why = "implicit rewards are not trained here; train the policy (DPO, PRIME), and load it with its reference"

    @classmethod
    def defaults(cls, options: Mapping[str, Any]) -> dict[str, Any]:
        """Sums over steps, which are paragraphs, and over the answer."""
        steps = {"step_token": "", "between_steps": "\n\n"}
        return {"pooling": "answer", "head": "log_ratio", "aggregate": "sum", **steps}

    def compare(self, a: Reward, b: Reward) -> float:
        """The logistic of the lead: DPO's probability that `a` is preferred."""
        return logistic(a.value - b.value)


KIND = Implicit
