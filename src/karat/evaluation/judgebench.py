"""JudgeBench: every pair judged in both orders, right if the two verdicts favour the better response in sum.

Source: Tan et al. 2024, arXiv:2410.12784 and its code: a verdict counts +1, 0 for a tie, or -1; a pair is right if the
sum is above 0, so that right and tied is right, and right and wrong is not. A model that scores one answer at a time
gives the same verdict twice. Sources are grouped into knowledge, reasoning, math and coding; the headline is over all.
"""

from collections.abc import Sequence

import numpy as np

from karat.evaluation import _decided, _pair_benchmark
from karat.evaluation._pair_benchmark import ACCURACY, Plan, Study, subset_of
from karat.evaluation._sections import Average
from karat.evaluation.base import Figure, Result, Scorer, Setup
from karat.metrics import FloatArray
from karat.types import Example, Pair, Reward, Unscored
from karat.types import Result as Scored

ITEM = Pair
OUTPUTS = ("logit", "probability", "rating")
BY_NAME = True
_GROUPS = {"mmlu-pro": "knowledge", "livebench-reasoning": "reasoning", "livebench-math": "math"} | {
    "livecodebench": "coding"
}
_TIES = "two verdicts that cancel out, or two ties, are wrong"


def check(items: Sequence[Pair]) -> None:
    """Raise BadInput where no pair prefers an answer."""
    _decided.check_preferred(items)


def run(scorer: Scorer, items: Sequence[Pair], setup: Setup) -> Result:
    """The accuracy over all pairs and by group, from the verdicts in both orders, beside their nulls."""
    turned: dict[int, float] = {}  # by item, what the better answer leads by where the other one is asked for first

    def both(answers: Sequence[Example]) -> list[Scored]:
        order = [place ^ 1 for place in range(len(answers))]  # the two of each pair, turned round
        scored = list(scorer([*answers, *(answers[place] for place in order)]))
        if len(scored) != 2 * len(answers):
            return scored  # which `judge` refuses
        own, other = scored[: len(answers)], [scored[len(answers) + place] for place in order]
        for place, (first, second) in enumerate(zip(other[::2], other[1::2], strict=True)):
            if isinstance(first, Reward) and isinstance(second, Reward):
                turned[place] = first.value - second.value
        return [two if isinstance(two, Unscored) else one for one, two in zip(own, other, strict=True)]

    plan = Plan("judgebench", _group, _averages, _TIES, tuple(_GROUPS.values()))
    study = _pair_benchmark.study(plan, both, items, setup)
    verdicts = _verdicts(study, np.array([turned[i] for i in study.places]))
    total = verdicts.sum(axis=1)
    return _pair_benchmark.result(
        study, (total > 0).astype(np.float64), (np.sign(total) + 1) / 2, _apart(study, verdicts)
    )


def _verdicts(study: Study, turned: FloatArray) -> FloatArray:
    """By pair and order, 1 for the better response, 0 for a tie, -1 for the other, [B, 2]."""
    rows = study.rows
    if rows.orders is not None:  # the model read both orders by itself
        orders: FloatArray = np.sign(rows.orders - 0.5)
        return orders
    other = np.where([pair.preference < 0.5 for pair in rows.pairs], -turned, turned)
    both: FloatArray = np.sign(np.stack([rows.margins, other], axis=1))
    return both


def _apart(study: Study, verdicts: FloatArray) -> list[Figure]:
    """How often the two verdicts are the same, and both right."""
    sample, first, second = study.rows.sample, verdicts[:, 0], verdicts[:, 1]
    return [
        sample.share("same verdict in both orders", np.where(first == second, 1.0, 0.0)),
        sample.share("right in both orders", np.where(np.minimum(first, second) > 0, 1.0, 0.0)),
    ]


def _group(pair: Pair) -> str:
    source = subset_of(pair)
    return next((group for start, group in _GROUPS.items() if source.startswith(start)), source)


def _averages(parts: Sequence[str]) -> list[Average]:
    return [Average(ACCURACY, None, f"over all pairs, both orders; {_TIES}")]
