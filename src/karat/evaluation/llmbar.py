"""LLMBar: accuracy on its natural pairs and on its adversarial ones, equal rewards wrong and as halves.

Source: Zeng et al. 2023, arXiv:2310.07641. The adversarial figure is the mean over four subsets, and the headline the
mean over all five, each counting the same. The paper's judges get half for a tie, which moves a figure by up to 23
points, so that both conventions are given.
"""

from collections.abc import Sequence

from karat.evaluation import _decided, _pair_benchmark
from karat.evaluation._pair_benchmark import EVERY, MEAN, Plan, subset_of
from karat.evaluation._sections import Average
from karat.evaluation.base import Result, Scorer, Setup
from karat.formats.llmbar import SUBSETS
from karat.types import Pair

ITEM = Pair
OUTPUTS = ("logit", "probability", "rating")
BY_NAME = True
ADVERSARIAL = "accuracy, mean over adversarial subsets"


def check(items: Sequence[Pair]) -> None:
    """Raise BadInput where no pair prefers an answer."""
    _decided.check_preferred(items)


def run(scorer: Scorer, items: Sequence[Pair], setup: Setup) -> Result:
    """The means over subsets, and each subset, beside their nulls."""
    plan = Plan("llmbar", subset_of, _averages, expected=SUBSETS)
    return _pair_benchmark.run(plan, scorer, items, setup)


def _averages(parts: Sequence[str]) -> list[Average]:
    if len(parts) < 2:
        return [EVERY]
    adversarial = [part for part in parts if part != "Natural"]
    return [
        Average(MEAN, dict.fromkeys(parts, 1.0), f"over {len(parts)} subsets; equal rewards are wrong"),
        *([Average(ADVERSARIAL, dict.fromkeys(adversarial, 1.0))] if len(adversarial) > 1 else []),
        EVERY,
    ]
