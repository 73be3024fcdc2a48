"""Labelled answers: do right ones score above wrong ones, is the logit a probability, does best-of-n pay?"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from karat import metrics
from karat.evaluation import _best_of, _nulls
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
from karat.rewards.base import Output
from karat.types import BadInput, Example, Labelled

ITEM = Labelled
OUTPUTS = ("logit", "probability")
ACCURACY, AUC, MAJORITY = "accuracy", "AUC", "majority class"


@dataclass(frozen=True, slots=True)
class _Rows:
    """Judged answers whose label is not exactly 0.5."""

    places: list[int]  # [B] in the items given
    items: list[Labelled]
    reward: FloatArray  # [B] as the scorer gave it
    prob: FloatArray  # [B] of being right
    logit: FloatArray  # [B] above 0 says right
    label: FloatArray  # [B] in [0, 1]
    right: FloatArray  # [B] 0 or 1
    sample: Sample  # [B]

    @property
    def examples(self) -> list[Example]:
        return [item.example for item in self.items]

    @property
    def trials(self) -> int:
        """Prompts with a weight that have an answer of the rarer class: what an AUC rests on."""
        counted = [(place, prompt) for place, prompt in enumerate(self.sample.prompts) if self.sample.weights[place]]
        return min(len({prompt for place, prompt in counted if self.right[place] == side}) for side in (0, 1))


def run(scorer: Scorer, items: Sequence[Labelled], setup: Setup) -> Result:
    """AUC, accuracy at a logit of 0, calibration, nulls, and best-of-n where all prompts have equally many answers.

    A label above 0.5 is right, below is wrong; answers at exactly 0.5 are counted as tied and left out.
    """
    judged = judge(scorer, items)
    rows = _rows(items, judged.kept, np.concatenate(judged.rewards), setup)
    nulls = _nulls.null_rewards(rows.examples, setup.training, setup.seed)
    figures, null_figures = _figures(rows, nulls, setup.output)
    best = _best_of.study(items, dict(zip(rows.places, zip(rows.reward, rows.right, strict=True), strict=True)), setup)
    bins = metrics.reliability_bins(rows.prob, rows.label, weights=rows.sample.weights)
    lengths = lengths_of(rows.examples)
    return Result(
        name="outcome",
        n=len(items),
        judged=len(rows.items),
        unscored=judged.unscored,
        figures=(*figures, *best.figures, *length_correlation(lengths, rows.reward), *spread(rows.reward)),
        nulls=(*null_figures, *best.nulls),
        headline=AUC if any(f.name == AUC for f in figures) else ACCURACY,
        accuracy=ACCURACY,
        unit="answers",
        scale=scale(setup.output),
        tied=len(judged.kept) - len(rows.items),
        notes=(nulls.note, *best.notes, *overlap_note(items, setup.training)),
        arrays={
            "reward": rows.reward,
            "length": lengths,
            "right": rows.right,
            "reliability": np.stack([bins.confidence, bins.accuracy, bins.rows], axis=1),
            **best.arrays,
        },
        mistakes=_mistakes(rows),
    )


def check(items: Sequence[Labelled]) -> None:
    """Raise BadInput for a label outside 0 to 1, and where none is right or wrong."""
    bad = next((item for item in items if not 0 <= item.label <= 1), None)
    if bad is not None:
        where = f"{bad.origin}: " if bad.origin else ""
        raise BadInput(
            f"{where}label is {bad.label:g}, but an outcome lies from 0 to 1:"
            " rescale it, or evaluate a model that predicts ratings"
            " (trained with --objective mse; from Python, output='rating')"
        )
    require(
        [item for item in items if item.label != 0.5],
        "every answer to judge has the label 0.5: give right and wrong ones",
    )


def _rows(items: Sequence[Labelled], kept: Sequence[int], rewards: FloatArray, setup: Setup) -> _Rows:
    decided = [place for place, i in enumerate(kept) if items[i].label != 0.5]
    check([items[i] for i in kept])
    places = [kept[i] for i in decided]
    chosen, reward = [items[i] for i in places], rewards[decided]
    prob, logit = _both_scales(reward, setup)
    label = np.array([item.label for item in chosen])
    weights = np.array([item.weight for item in chosen])
    sample = Sample(weights, prompt_ids(item.example for item in chosen), setup.seed)
    return _Rows(places, chosen, reward, prob, logit, label, (label > 0.5).astype(float), sample)


def _both_scales(reward: FloatArray, setup: Setup) -> tuple[FloatArray, FloatArray]:
    """Probability, and a number with the logit's sign."""
    if setup.output == "logit":
        return metrics.sigmoid(reward), reward
    if reward.min() < 0 or reward.max() > 1:
        raise BadInput(f"rewards go from {reward.min():g} to {reward.max():g}: pass output='logit', or probabilities")
    return reward, reward - 0.5


def _figures(rows: _Rows, nulls: _nulls.NullRewards, output: Output) -> tuple[list[Figure], tuple[Figure, ...]]:
    hits = (rows.logit * (2 * rows.right - 1) > 0).astype(np.float64)
    threshold = "at a logit of 0" if output == "logit" else "at a probability of 0.5"
    accuracy = rows.sample.share(ACCURACY, hits, threshold)
    accuracy_credits = _accuracy_credits(rows, nulls)
    accuracy_nulls = rows.sample.nulls(accuracy_credits, ACCURACY)
    auc, auc_nulls = _auc_figures(rows, nulls)
    if auc is None:
        best = max(accuracy_nulls, key=lambda figure: figure.value)
        ahead = rows.sample.lead(hits, accuracy_credits[best.name], best.name)
        return [accuracy, ahead, *_calibration(rows)], accuracy_nulls
    ahead = _auc_lead(rows, nulls, max(auc_nulls, key=lambda figure: figure.value))
    return [auc, ahead, accuracy, *_calibration(rows)], (*auc_nulls, *accuracy_nulls)


def _accuracy_credits(rows: _Rows, nulls: _nulls.NullRewards) -> dict[str, FloatArray]:
    common = float(rows.right @ rows.sample.weights * 2 >= rows.sample.weights.sum())
    credits = {_nulls.RANDOM: np.full(rows.right.size, 0.5), MAJORITY: (rows.right == common).astype(np.float64)}
    return credits | {name: metrics.credit(nulls.rewards[name] * (2 * rows.right - 1)) for name in nulls.signed}


def _auc(columns: FloatArray) -> float | None:
    """Of rows (right, weight, reward, ...)."""
    if not columns[:, 1].any():
        return None
    return metrics.auc(columns[:, 2], columns[:, 0], columns[:, 1])


def _auc_gap(columns: FloatArray) -> float | None:
    """Of rows (right, weight, reward, null): the AUC of the reward minus that of the null."""
    own, null = _auc(columns[:, :3]), _auc(columns[:, [0, 1, 3]])
    return None if own is None or null is None else own - null


def _auc_figure(name: str, rows: _Rows, score: FloatArray, against: str = "") -> Figure | None:
    columns = np.stack([rows.right, rows.sample.weights, score], axis=1)
    value = _auc(columns)
    if value is None:
        return None
    figure = Figure(name, value, n=rows.right.size, note="" if against else "right above wrong, ties half")
    found = rows.sample.statistic_interval(columns, _auc)
    return replace(bounded(figure, (0.0, 1.0), found, rows.trials), against=against)


def _auc_figures(rows: _Rows, nulls: _nulls.NullRewards) -> tuple[Figure | None, tuple[Figure, ...]]:
    own = _auc_figure(AUC, rows, rows.reward)
    if own is None:
        return None, ()
    found = [_auc_figure(name, rows, score, AUC) for name, score in nulls.rewards.items()]
    chance = Figure(_nulls.RANDOM, 0.5, n=rows.right.size, note="expected", against=AUC)
    return own, (chance, *(figure for figure in found if figure is not None))


def _auc_lead(rows: _Rows, nulls: _nulls.NullRewards, best: Figure) -> Figure:
    null = nulls.rewards.get(best.name)  # None for chance
    other = np.zeros(rows.right.size) if null is None else null
    columns = np.stack([rows.right, rows.sample.weights, rows.reward, other], axis=1)
    figure = Figure(LEAD, _auc_gap(columns) or 0.0, n=rows.right.size, note=f"over {best.name}, on the same rows")
    found = rows.sample.statistic_interval(columns, _auc_gap)
    return bounded(figure, (-0.5, 0.5) if null is None else (-1.0, 1.0), found, rows.trials)


def _calibration(rows: _Rows) -> list[Figure]:
    size, base = rows.right.size, float(rows.label @ rows.sample.weights / rows.sample.weights.sum())
    error = metrics.expected_calibration_error(rows.prob, rows.label, weights=rows.sample.weights)
    score = metrics.brier(rows.prob, rows.label, rows.sample.weights)
    constant = metrics.brier(np.full(size, base), rows.label, rows.sample.weights)
    return [
        Figure("calibration error (ECE)", error, n=size, note="15 bins from 0 to 1; lower is better"),
        Figure("Brier score", score, n=size, note=f"lower is better; the base rate alone gets {constant:.3f}"),
    ]


def _mistakes(rows: _Rows) -> tuple[Mistake, ...]:
    gap = rows.logit * (2 * rows.right - 1)
    worst = [int(i) for i in np.argsort(gap, kind="stable")[:MISTAKES] if gap[i] < 0]
    return tuple(mistake(float(gap[i]), rows.examples[i], None, rows.items[i].origin) for i in worst)
