"""Ratings of attributes: does each objective order answers as the ratings of its attribute do?"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from karat.evaluation import _correlation, _nulls
from karat.evaluation._common import (
    Sample,
    bounded,
    judge,
    length_correlation,
    lengths_of,
    overlap_note,
    prompt_ids,
    require,
    scale,
    spread,
)
from karat.evaluation.base import LEAD, Figure, Result, Scorer, Setup
from karat.metrics import FloatArray
from karat.types import Attributed, BadInput, Example, Item, Labelled, Reward

ITEM = Attributed
OUTPUTS = ("logit", "probability", "rating")
BY_NAME = False
SPEARMAN = "Spearman correlation"
MEAN = f"{SPEARMAN}, mean"
_FEWEST = 3  # rated answers; two are always on one line


@dataclass(frozen=True, slots=True)
class _Rows:
    """Judged answers: A attributes, of which not all are rated."""

    names: tuple[str, ...]
    examples: list[Example]
    rating_BA: FloatArray  # NaN where there is none
    score_BA: FloatArray  # the objective of that name, or the reward
    sample: Sample  # [B]

    def correlations(self, score_BA: FloatArray, weights_NB: FloatArray) -> FloatArray:
        """Spearman of each attribute on the rows that are rated, [N, A]; NaN where undefined."""
        rated_BA, rating_BA = ~np.isnan(self.rating_BA), np.nan_to_num(self.rating_BA)
        found = (
            _correlation.spearmans(rating_BA[:, a], score_BA[:, a], weights_NB * rated_BA[:, a])
            for a in range(len(self.names))
        )
        return np.stack(list(found), axis=1)

    def means(self, score_BA: FloatArray, weights_NB: FloatArray) -> FloatArray:
        """The mean of all attributes' correlations, [N]; what is undefined counts as 0."""
        means: FloatArray = np.nan_to_num(self.correlations(score_BA, weights_NB), nan=0.0).mean(axis=1)
        return means

    @property
    def once(self) -> FloatArray:
        """The rows' own weights, [1, B]."""
        return self.sample.weights[None].astype(np.float64)


def check(items: Sequence[Attributed]) -> None:
    """Raise BadInput where no attribute has 3 answers with different ratings."""
    require(items, "there is no answer: give some")
    if not _useful(items)[0]:
        raise BadInput(f"no attribute has {_FEWEST} answers with different ratings: give more")


def run(scorer: Scorer, items: Sequence[Attributed], setup: Setup) -> Result:
    """Spearman's correlation of each objective with its attribute's ratings, and their mean, beside those of nulls.

    A model without an objective of an attribute's name is judged by its reward.
    """
    judged = judge(scorer, items)
    kept = [items[i] for i in judged.kept]
    check(kept)
    rows, missing = _rows(kept, [given[0] for given in judged.given], setup.seed)
    nulls, note = _nulls_of(rows, setup)
    figures, null_figures = [_mean(rows, rows.score_BA, MEAN)], _mean_nulls(rows, nulls)
    best = max(null_figures, key=lambda figure: figure.value)
    figures.append(_lead(rows, nulls.get(best.name), best.name))
    for a, name in enumerate(rows.names):
        own = f"{SPEARMAN}, {name}"
        figures.append(_of_one(rows, rows.score_BA, a, own))
        null_figures += [_of_one(rows, null, a, other, own) for other, null in nulls.items()]
    rewards, lengths = np.concatenate(judged.rewards), lengths_of(rows.examples)
    return Result(
        name="attributes",
        n=len(items),
        judged=len(kept),
        unscored=judged.unscored,
        figures=(*figures, *length_correlation(lengths, rewards), *spread(rewards)),
        nulls=tuple(null_figures),
        headline=MEAN,
        accuracy="",
        unit="answers",
        scale=scale(setup.output),
        notes=(*missing, note, *overlap_note(items, setup.training)),
        arrays={"reward": rewards, "length": lengths},
    )


def _rows(items: Sequence[Attributed], rewards: Sequence[Reward], seed: int) -> tuple[_Rows, list[str]]:
    names, others = _useful(items)
    rating_BA = np.array([[item.attributes.get(name) for name in names] for item in items], dtype=np.float64)
    scores = [[(reward.objectives or {}).get(name, reward.value) for name in names] for reward in rewards]
    own = set(rewards[0].objectives or {})
    examples = [item.example for item in items]
    sample = Sample(np.array([item.weight for item in items]), prompt_ids(examples), seed)
    notes = [f"no objective {name!r}: judged by the reward" for name in names if name not in own]
    notes += [f"{name!r} is left out: fewer than {_FEWEST} answers have different ratings of it" for name in others]
    return _Rows(names, examples, rating_BA, np.array(scores, dtype=np.float64), sample), notes


def _useful(items: Sequence[Attributed]) -> tuple[tuple[str, ...], list[str]]:
    """Attributes of which enough answers that weigh anything are rated, not all alike; and the others."""
    rated: dict[str, list[float]] = {}
    for item in items:
        for name, rating in item.attributes.items():
            rated.setdefault(name, []).extend([] if rating is None or not item.weight else [rating])
    told = tuple(name for name, own in rated.items() if len(own) >= _FEWEST and len(set(own)) > 1)
    return told, [name for name in rated if name not in told]


def _nulls_of(rows: _Rows, setup: Setup) -> tuple[dict[str, FloatArray], str]:
    """What each null says of each attribute, [B, A]: lengths the same of all, n-grams learnt of each."""
    found: dict[str, list[FloatArray]] = {}
    note = ""
    for name in rows.names:
        training: list[Item] = [_labelled(i, name) for i in setup.training if _rates(i, name)]
        known = _nulls.null_rewards(rows.examples, training, setup.seed, _nulls.fit_rating_ngram)
        note = known.note
        for null, score in known.rewards.items():
            found.setdefault(null, []).append(score)
    return {name: np.stack(own, axis=1) for name, own in found.items() if len(own) == len(rows.names)}, note


def _rates(item: Item, name: str) -> bool:
    return isinstance(item, Attributed) and item.attributes.get(name) is not None


def _labelled(item: Item, name: str) -> Labelled:
    assert isinstance(item, Attributed)
    return Labelled(item.example, item.attributes[name] or 0.0, item.weight, item.origin)


def _of_one(rows: _Rows, score_BA: FloatArray, a: int, name: str, against: str = "") -> Figure:
    only = replace(rows, names=rows.names[a : a + 1], rating_BA=rows.rating_BA[:, a : a + 1])
    score = score_BA[:, a : a + 1]
    rated = int((~np.isnan(only.rating_BA)).sum())
    value = float(only.correlations(score, rows.once)[0, 0])
    if math.isnan(value):
        return Figure(name, 0.0, n=rated, note="undefined for a constant score: counted as 0", against=against)
    found = rows.sample.weights_interval(lambda weights_NB: only.correlations(score, weights_NB)[:, 0])
    return bounded(Figure(name, value, n=rated, against=against), (-1.0, 1.0), found, rows.sample.clusters)


def _mean(rows: _Rows, score_BA: FloatArray, name: str, against: str = "") -> Figure:
    means = partial(rows.means, score_BA)
    size, count = rows.rating_BA.shape
    figure = Figure(name, float(means(rows.once)[0]), n=size, note=f"of {count} attributes", against=against)
    return bounded(figure, (-1.0, 1.0), rows.sample.weights_interval(means), rows.sample.clusters)


def _mean_nulls(rows: _Rows, nulls: dict[str, FloatArray]) -> list[Figure]:
    chance = Figure(_nulls.RANDOM, 0.0, n=len(rows.examples), note="expected", against=MEAN)
    return [chance, *(_mean(rows, score_BA, name, MEAN) for name, score_BA in nulls.items())]


def _lead(rows: _Rows, null_BA: FloatArray | None, over: str) -> Figure:
    """The model's mean less that of the null on the same rows; None stands for chance, which gets 0."""
    reach = 1.0 if null_BA is None else 2.0

    def gaps(weights_NB: FloatArray) -> FloatArray:
        own = rows.means(rows.score_BA, weights_NB)
        return own if null_BA is None else own - rows.means(null_BA, weights_NB)

    value = float(gaps(rows.once)[0])
    figure = Figure(LEAD, value, n=len(rows.rating_BA), note=f"over {over}, on the same rows")
    return bounded(figure, (-reach, reach), rows.sample.weights_interval(gaps), rows.sample.clusters)
