"""HHH alignment: accuracy on pairs about being helpful, honest and harmless, equal rewards wrong and as halves.

Source: Askell et al. 2021, arXiv:2112.00861. The headline is over all pairs, as RewardBench counts it; the mean over
the four subsets stands beside it.
"""

from collections.abc import Sequence

from karat.evaluation import _decided, _pair_benchmark
from karat.evaluation._pair_benchmark import EVERY, MEAN, Plan, subset_of
from karat.evaluation._sections import Average
from karat.evaluation.base import Result, Scorer, Setup
from karat.formats.hhh import SUBSETS
from karat.types import Pair

ITEM = Pair
OUTPUTS = ("logit", "probability", "rating")
BY_NAME = True


def check(items: Sequence[Pair]) -> None:
    """Raise BadInput where no pair prefers an answer."""
    _decided.check_preferred(items)


def run(scorer: Scorer, items: Sequence[Pair], setup: Setup) -> Result:
    """The accuracy over all pairs and by subset, beside their nulls."""
    plan = Plan("hhh", subset_of, _averages, expected=SUBSETS)
    return _pair_benchmark.run(plan, scorer, items, setup)


def _averages(parts: Sequence[str]) -> list[Average]:
    return (
        [EVERY, Average(MEAN, dict.fromkeys(parts, 1.0), f"over {len(parts)} subsets")] if len(parts) > 1 else [EVERY]
    )
