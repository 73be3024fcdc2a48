"""Rankings of K answers: is the order the reward gives the order somebody gave?"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from karat import metrics
from karat.evaluation import _nulls
from karat.evaluation._common import (
    MISTAKES,
    judge,
    lead,
    length_correlation,
    lengths_of,
    mistake,
    null_shares,
    overlap_note,
    prompt_ids,
    share,
    spread,
)
from karat.evaluation.base import Figure, Mistake, Result, Scorer, Setup
from karat.metrics import FloatArray
from karat.types import BadInput, Ranking

ITEM = Ranking
OUTPUTS = ("logit", "probability", "rating")
ACCURACY, HALF, TOP, TAU = "pair accuracy", "pair accuracy, ties half", "top-1 accuracy", "Kendall tau"
_TAU_NOTE = "tau-b, mean over rankings; equal rewards throughout count 0"


@dataclass(frozen=True, slots=True)
class _Ranked:
    """Judged rankings that prefer some answer over another, and their ordered pairs."""

    items: list[Ranking]
    ranks: list[FloatArray]  # for each ranking [K], 1 is best
    weights: FloatArray  # [R]
    prompts: list[int]  # [R]
    pairs: list[tuple[int, int, int]]  # [B] (ranking, better candidate, worse candidate)

    @property
    def of_pair(self) -> list[int]:
        """The ranking of each ordered pair, [B]."""
        return [ranking for ranking, _, _ in self.pairs]

    def margins(self, rewards: Sequence[FloatArray]) -> FloatArray:
        """Better minus worse for each ordered pair, [B]."""
        return np.array([rewards[i][a] - rewards[i][b] for i, a, b in self.pairs])


def run(scorer: Scorer, items: Sequence[Ranking], setup: Setup) -> Result:
    """Accuracy over all ordered pairs, top-1 accuracy and Kendall's tau-b; rankings without an order are left out."""
    judged = judge(scorer, items)
    rows, rewards = _order([items[i] for i in judged.kept], judged.rewards)
    margins, pair_weights = rows.margins(rewards), rows.weights[rows.of_pair]
    pair_prompts = [rows.prompts[i] for i in rows.of_pair]
    null_rewards, note = _null_rewards(rows, setup)
    credits = {_nulls.RANDOM: np.full(margins.size, 0.5)}
    credits |= {name: metrics.credit(rows.margins(null)) for name, null in null_rewards.items()}
    nulls = null_shares(credits, ACCURACY, pair_weights, pair_prompts, setup.seed)
    best = max(nulls, key=lambda figure: figure.value)
    strict = (margins > 0).astype(np.float64)
    answers, flat = [c for item in rows.items for c in item.candidates], np.concatenate(rewards)
    figures = [
        share(ACCURACY, strict, pair_weights, pair_prompts, setup.seed, _ties(margins)),
        share(HALF, metrics.credit(margins), pair_weights, pair_prompts, setup.seed),
        lead(strict, credits[best.name], pair_weights, pair_prompts, setup.seed, best.name),
        share(TOP, _top(rows, rewards), rows.weights, rows.prompts, setup.seed, "equal rewards share the choice"),
        _tau(rows, rewards, setup.seed),
        *length_correlation(lengths_of(answers), flat),
        *spread(flat),
    ]
    return Result(
        name="kwise",
        n=len(items),
        judged=len(rows.items),
        unscored=judged.unscored,
        figures=tuple(figures),
        nulls=nulls + _top_nulls(rows, null_rewards, setup.seed),
        headline=ACCURACY,
        accuracy=ACCURACY,
        unit="rankings",
        tied=len(judged.kept) - len(rows.items),
        notes=(note, *overlap_note(items, setup.training)),
        arrays={
            "margin": margins,
            "reward": flat,
            "length": lengths_of(answers),
            "right": np.concatenate([ranks == ranks.min() for ranks in rows.ranks]).astype(int),
        },
        mistakes=_mistakes(rows, margins),
    )


def _order(items: list[Ranking], rewards: Sequence[FloatArray]) -> tuple[_Ranked, list[FloatArray]]:
    kept = [i for i, item in enumerate(items) if len(set(item.ranks)) > 1]
    if not kept:
        raise BadInput("every judged ranking is one tie: give rankings of which some answer is better than another")
    ordered = [items[i] for i in kept]
    ranks = [np.array(item.ranks, dtype=np.float64) for item in ordered]
    pairs = [(i, int(a), int(b)) for i, r in enumerate(ranks) for a, b in np.argwhere(r[:, None] < r[None, :])]
    weights = np.array([item.weight for item in ordered])
    prompts = prompt_ids(item.candidates[0] for item in ordered)
    return _Ranked(ordered, ranks, weights, prompts, pairs), [rewards[i] for i in kept]


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


def _top_nulls(rows: _Ranked, nulls: dict[str, list[FloatArray]], seed: int) -> tuple[Figure, ...]:
    credits = {_nulls.RANDOM: np.array([np.mean(ranks == ranks.min()) for ranks in rows.ranks])}
    credits |= {name: _top(rows, rewards) for name, rewards in nulls.items()}
    return null_shares(credits, TOP, rows.weights, rows.prompts, seed)


def _tau(rows: _Ranked, rewards: Sequence[FloatArray], seed: int) -> Figure:
    taus = np.array([metrics.kendall(-r, reward) or 0.0 for r, reward in zip(rows.ranks, rewards, strict=True)])
    low, high = metrics.bootstrap_interval(taus, weights=rows.weights, groups=rows.prompts, seed=seed)
    value = float(taus @ rows.weights / rows.weights.sum())
    if low == high:  # the bootstrap of equal values would claim certainty
        return Figure(TAU, value, n=taus.size, note=_TAU_NOTE)
    return Figure(TAU, value, low, high, taus.size, _TAU_NOTE)


def _mistakes(rows: _Ranked, margins: FloatArray) -> tuple[Mistake, ...]:
    worst = [int(i) for i in np.argsort(margins, kind="stable")[:MISTAKES] if margins[i] < 0]
    return tuple(_mistake(rows, rows.pairs[i], float(margins[i])) for i in worst)


def _mistake(rows: _Ranked, pair: tuple[int, int, int], margin: float) -> Mistake:
    item = rows.items[pair[0]]
    return mistake(margin, item.candidates[pair[1]], item.candidates[pair[2]], item.origin)
