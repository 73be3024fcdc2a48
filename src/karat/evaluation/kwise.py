"""Rankings of K answers: is the order the reward gives the order somebody gave?"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from karat import metrics
from karat.evaluation import _nulls
from karat.evaluation._common import (
    MISTAKES,
    Sample,
    judge,
    length_correlation,
    lengths_of,
    mistake,
    overlap_note,
    prompt_ids,
    require,
    scale,
    spread,
)
from karat.evaluation._margins import ordered
from karat.evaluation.base import Figure, Mistake, Result, Scorer, Setup
from karat.metrics import FloatArray
from karat.types import Ranking

ITEM = Ranking
OUTPUTS = ("logit", "probability", "rating")
BY_NAME = False
ACCURACY, TOP, TAU = "pair accuracy", "top-1 accuracy", "Kendall tau"
_TAU_NOTE = "tau-b, mean over rankings; equal rewards throughout count 0"


@dataclass(frozen=True, slots=True)
class _Ranked:
    """R judged rankings that prefer some answer over another, and their ordered pairs."""

    items: list[Ranking]
    ranks: list[FloatArray]  # for each ranking [K], 1 is best
    sample: Sample  # [R]
    pairs: list[tuple[int, int, int]]  # [B] (ranking, better candidate, worse candidate)

    @property
    def pair_sample(self) -> Sample:
        """The ordered pairs, [B], each with the weight and the prompt of its ranking."""
        of_pair = [ranking for ranking, _, _ in self.pairs]
        return Sample(self.sample.weights[of_pair], [self.sample.prompts[i] for i in of_pair], self.sample.seed)

    def margins(self, rewards: Sequence[FloatArray]) -> FloatArray:
        """Better minus worse for each ordered pair, [B]."""
        return np.array([rewards[i][a] - rewards[i][b] for i, a, b in self.pairs])


def check(items: Sequence[Ranking]) -> None:
    """Raise BadInput where no ranking prefers an answer."""
    ordered_ones = [item for item in items if len(set(item.ranks)) > 1]
    require(ordered_ones, "every ranking to judge is one tie: give some of which an answer is better than another")


def run(scorer: Scorer, items: Sequence[Ranking], setup: Setup) -> Result:
    """Accuracy over all ordered pairs, top-1 accuracy and Kendall's tau-b; rankings without an order are left out."""
    judged = judge(scorer, items)
    rows, rewards = _order([items[i] for i in judged.kept], judged.rewards, setup.seed)
    margins = rows.margins(rewards)
    null_rewards, note = _null_rewards(rows, setup)
    null_margins = {name: rows.margins(null) for name, null in null_rewards.items()}
    found = ordered(ACCURACY, margins, null_margins, rows.pair_sample, _ties(margins))
    answers, flat = [c for item in rows.items for c in item.candidates], np.concatenate(rewards)
    tied = len(judged.kept) - len(rows.items)
    figures = [
        *found.figures,
        rows.sample.share(TOP, _top(rows, rewards), "equal rewards share the choice"),
        _tau(rows, rewards),
        *length_correlation(lengths_of(answers), flat),
        *spread(flat),
    ]
    return Result(
        name="kwise",
        n=len(items),
        judged=len(rows.items),
        unscored=judged.unscored,
        figures=tuple(figures),
        nulls=found.nulls + _top_nulls(rows, null_rewards),
        headline=ACCURACY,
        accuracy=ACCURACY,
        unit="rankings",
        scale=scale(setup.output),
        tied=tied,
        notes=(*_tied_note(tied, len(items)), note, *overlap_note(items, setup.training)),
        arrays={
            "margin": margins,
            "reward": flat,
            "length": lengths_of(answers),
            "right": np.concatenate([ranks == ranks.min() for ranks in rows.ranks]).astype(int),
        },
        mistakes=_mistakes(rows, margins),
    )


def _order(items: list[Ranking], rewards: Sequence[FloatArray], seed: int) -> tuple[_Ranked, list[FloatArray]]:
    kept = [i for i, item in enumerate(items) if len(set(item.ranks)) > 1]
    check(items)
    decided = [items[i] for i in kept]
    ranks = [np.array(item.ranks, dtype=np.float64) for item in decided]
    pairs = [(i, int(a), int(b)) for i, r in enumerate(ranks) for a, b in np.argwhere(r[:, None] < r[None, :])]
    weights = np.array([item.weight for item in decided])
    sample = Sample(weights, prompt_ids(item.candidates[0] for item in decided), seed)
    return _Ranked(decided, ranks, sample, pairs), [rewards[i] for i in kept]


def _tied_note(tied: int, size: int) -> list[str]:
    return [f"{tied} of {size} rankings give all their answers one rank, which leaves nothing to judge"] if tied else []


def _null_rewards(rows: _Ranked, setup: Setup) -> tuple[dict[str, list[FloatArray]], str]:
    answers = [answer for item in rows.items for answer in item.candidates]
    ends = np.cumsum([len(item.candidates) for item in rows.items])[:-1]
    found = _nulls.null_rewards(answers, setup.training, setup.seed)
    return {name: np.split(reward, ends) for name, reward in found.rewards.items()}, found.note


def _ties(margins: FloatArray) -> str:
    ties = int((margins == 0).sum())
    return f"over {margins.size} ordered pairs; {ties} equal rewards count as wrong"


def _top(rows: _Ranked, rewards: Sequence[FloatArray]) -> FloatArray:
    """Chance that the highest reward goes to a best-ranked answer, [R]."""
    both = zip(rows.ranks, rewards, strict=True)
    return np.array([np.mean((ranks == ranks.min())[reward == reward.max()]) for ranks, reward in both])


def _top_nulls(rows: _Ranked, nulls: dict[str, list[FloatArray]]) -> tuple[Figure, ...]:
    credits = {_nulls.RANDOM: np.array([np.mean(ranks == ranks.min()) for ranks in rows.ranks])}
    credits |= {name: _top(rows, rewards) for name, rewards in nulls.items()}
    return rows.sample.nulls(credits, TOP)


def _tau(rows: _Ranked, rewards: Sequence[FloatArray]) -> Figure:
    taus = np.array([metrics.kendall(-r, reward) or 0.0 for r, reward in zip(rows.ranks, rewards, strict=True)])
    return rows.sample.mean(TAU, taus, (-1.0, 1.0), _TAU_NOTE)


def _mistakes(rows: _Ranked, margins: FloatArray) -> tuple[Mistake, ...]:
    worst = [int(i) for i in np.argsort(margins, kind="stable")[:MISTAKES] if margins[i] < 0]
    return tuple(_mistake(rows, rows.pairs[i], float(margins[i])) for i in worst)


def _mistake(rows: _Ranked, pair: tuple[int, int, int], margin: float) -> Mistake:
    item = rows.items[pair[0]]
    return mistake(margin, item.candidates[pair[1]], item.candidates[pair[2]], item.origin)
