"""Ratings: do predicted ratings order answers as the labels do, and how far off are they?"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import numpy as np

from karat import metrics
from karat.evaluation import _correlation, _nulls
from karat.evaluation._common import (
    MISTAKES,
    Sample,
    bounded,
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
from karat.evaluation.base import LEAD, Figure, Mistake, Result, Scorer, Setup
from karat.metrics import FloatArray
from karat.types import BadInput, Example, Labelled

ITEM = Labelled
OUTPUTS = ("rating",)
BY_NAME = False
SPEARMAN, PEARSON, R2 = "Spearman correlation", "Pearson correlation", "R²"
RMSE, CONSTANT_RMSE = "RMSE", "RMSE of a constant guess"

_FEWEST = 3  # rows; two are always on one line
_OfScores: TypeAlias = Callable[
    [FloatArray, FloatArray, FloatArray], FloatArray
]  # labels, scores, weights [N, B] → [N]


@dataclass(frozen=True, slots=True)
class _Rows:
    """Judged answers."""

    items: list[Labelled]
    reward: FloatArray  # [B] predicted rating, in the labels' unit
    label: FloatArray  # [B] true rating
    sample: Sample  # [B]

    @property
    def examples(self) -> list[Example]:
        return [item.example for item in self.items]

    def value(self, statistic: metrics.OfWeights) -> float | None:
        """A statistic of the rows as they are; None where it is undefined."""
        found = float(statistic(self.sample.weights[None].astype(np.float64))[0])
        return None if math.isnan(found) else found


def check(items: Sequence[Labelled]) -> None:
    """Raise BadInput for fewer than 3 answers with a weight, and where all of them have one label."""
    require(items, "there is no answer: give some")
    labels = [item.label for item in items if item.weight]
    if len(labels) < _FEWEST:
        raise BadInput(f"{len(labels)} answers could be judged, but ratings need at least {_FEWEST}: give more")
    if len(set(labels)) == 1:
        raise BadInput(f"every answer to judge has the label {labels[0]:g}: give answers with different ratings")


def run(scorer: Scorer, items: Sequence[Labelled], setup: Setup) -> Result:
    """Spearman's correlation beside its nulls, Pearson's, RMSE and R² of predicted against true ratings.

    A weight of 2 counts as the row given twice.

    Raises:
        BadInput: fewer than 3 judged answers with a weight, or all of them with one label.
    """
    judged = judge(scorer, items)
    rows = _rows([items[i] for i in judged.kept], np.concatenate(judged.rewards), setup.seed)
    known = _nulls.null_rewards(rows.examples, setup.training, setup.seed, _nulls.fit_rating_ngram)
    own, nulls, ahead = _correlations(rows, known.rewards)
    lengths = lengths_of(rows.examples)
    return Result(
        name="rating",
        n=len(items),
        judged=len(rows.items),
        unscored=judged.unscored,
        figures=(
            own,
            ahead,
            *_errors(rows),
            *length_correlation(lengths, rows.reward),
            *spread(rows.reward),
        ),
        nulls=nulls,
        headline=SPEARMAN,
        accuracy="",
        unit="answers",
        scale=scale(setup.output),
        notes=(known.note, *overlap_note(items, setup.training)),
        arrays={"reward": rows.reward, "length": lengths, "rating": rows.label},
        mistakes=_mistakes(rows),
    )


def _rows(items: list[Labelled], reward: FloatArray, seed: int) -> _Rows:
    label, weights = np.array([item.label for item in items]), np.array([item.weight for item in items])
    check(items)
    return _Rows(items, reward, label, Sample(weights, prompt_ids(item.example for item in items), seed))


# ---------------------------------------------------------------------------------------------- correlation


def _correlations(rows: _Rows, nulls: dict[str, FloatArray]) -> tuple[Figure, tuple[Figure, ...], Figure]:
    """Spearman of the model, of its nulls, and the lead over the best of them."""
    own = _figure(SPEARMAN, rows, rows.reward)
    chance = Figure(_nulls.RANDOM, 0.0, n=rows.label.size, note="expected", against=SPEARMAN)
    others = [_figure(name, rows, score, against=SPEARMAN) for name, score in nulls.items()]
    best = max([chance, *others], key=lambda figure: figure.value)
    return own, (chance, *others), _lead(rows, best, nulls.get(best.name))


def _figure(name: str, rows: _Rows, score: FloatArray, against: str = "") -> Figure:
    """A rank correlation, or a linear one for that name; 0, with a note and no interval, for a constant score."""
    correlation = _correlation.pearsons if name == PEARSON else _correlation.spearmans
    statistic = partial(correlation, rows.label, score)
    value = rows.value(statistic)
    if value is None:
        return Figure(name, 0.0, n=score.size, note="undefined for a constant score: counted as 0", against=against)
    figure = Figure(name, value, n=score.size, against=against)
    return bounded(figure, (-1.0, 1.0), rows.sample.weights_interval(statistic), rows.sample.clusters)


def _lead(rows: _Rows, best: Figure, null: FloatArray | None) -> Figure:
    """Spearman of the model minus that of the null on the same rows; `null` is None for chance, which gets 0."""
    reach = 1.0 if null is None else 2.0

    def gaps(weights_NB: FloatArray) -> FloatArray:
        own = _known(_correlation.spearmans(rows.label, rows.reward, weights_NB))
        return own if null is None else own - _known(_correlation.spearmans(rows.label, null, weights_NB))

    figure = Figure(LEAD, rows.value(gaps) or 0.0, n=rows.label.size, note=f"over {best.name}, on the same rows")
    return bounded(figure, (-reach, reach), rows.sample.weights_interval(gaps), rows.sample.clusters)


def _known(values_N: FloatArray) -> FloatArray:
    """What is undefined counts as 0."""
    return np.nan_to_num(values_N, nan=0.0)


# ---------------------------------------------------------------------------------------------- distance


def _errors(rows: _Rows) -> list[Figure]:
    size = rows.label.size
    constant = np.full(size, np.average(rows.label, weights=rows.sample.weights))
    guess = rows.value(partial(_rmses, rows.label, constant))
    unit = "in the unit of the ratings; lower is better"
    return [
        _figure(PEARSON, rows, rows.reward),
        _error(R2, _r2s, rows, "1 is perfect; a constant guess gets 0"),
        _error(RMSE, _rmses, rows, unit),
        Figure(
            CONSTANT_RMSE, guess or 0.0, n=size, note=f"{constant[0]:.4g}, the mean label, for every answer; {unit}"
        ),
    ]


def _error(name: str, errors: _OfScores, rows: _Rows, note: str) -> Figure:
    """A figure with its interval; none where no resample differs, for the bootstrap would claim certainty."""
    statistic = partial(errors, rows.label, rows.reward)
    ends = rows.sample.weights_interval(statistic)
    low, high = (None, None) if ends is None or math.isclose(*ends, abs_tol=1e-12) else ends
    return Figure(name, rows.value(statistic) or 0.0, low, high, rows.label.size, note)


def _rmses(label_B: FloatArray, score_B: FloatArray, weights_NB: FloatArray) -> FloatArray:
    """Roots of the mean squared distances, [N]; NaN where nothing weighs."""
    mass = weights_NB.sum(axis=1)
    roots: FloatArray = np.sqrt(weights_NB @ (score_B - label_B) ** 2 / np.where(mass > 0, mass, np.nan))
    return roots


def _r2s(label_B: FloatArray, score_B: FloatArray, weights_NB: FloatArray) -> FloatArray:
    """1 minus squared distance over squared distance from the mean label, [N] at most 1; NaN for a constant label."""
    known = np.where(_correlation.constant(label_B, weights_NB), np.nan, 1.0)
    means = weights_NB @ label_B / np.where(weights_NB.any(axis=1), weights_NB.sum(axis=1), 1.0)
    total = (weights_NB * (label_B - means[:, None]) ** 2).sum(axis=1)
    shares: FloatArray = 1 - weights_NB @ (score_B - label_B) ** 2 / (total * known)
    return shares


def _mistakes(rows: _Rows) -> tuple[Mistake, ...]:
    off = -np.abs(rows.reward - rows.label)
    worst = [int(i) for i in np.argsort(off, kind="stable")[:MISTAKES] if off[i] < 0]
    return tuple(mistake(float(off[i]), rows.examples[i], None, rows.items[i].origin) for i in worst)
