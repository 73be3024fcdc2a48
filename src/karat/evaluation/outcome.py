"""Labelled answers: do right ones score above wrong ones, is the logit a probability, does best-of-n pay?"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from karat import metrics
from karat.evaluation import _auc, _best_of, _nulls
from karat.evaluation._common import (
    MISTAKES,
    Sample,
    both_scales,
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
from karat.evaluation.base import Figure, Mistake, Result, Scorer, Setup
from karat.metrics import FloatArray
from karat.rewards.base import Output
from karat.types import BadInput, Example, Labelled

ITEM = Labelled
OUTPUTS = ("logit", "probability")
BY_NAME = False
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
    prob, logit = both_scales(reward, setup.output)
    label = np.array([item.label for item in chosen])
    weights = np.array([item.weight for item in chosen])
    sample = Sample(weights, prompt_ids(item.example for item in chosen), setup.seed)
    return _Rows(places, chosen, reward, prob, logit, label, (label > 0.5).astype(float), sample)


def _figures(rows: _Rows, nulls: _nulls.NullRewards, output: Output) -> tuple[list[Figure], tuple[Figure, ...]]:
    hits = (rows.logit * (2 * rows.right - 1) > 0).astype(np.float64)
    threshold = "at a logit of 0" if output == "logit" else "at a probability of 0.5"
    accuracy = rows.sample.share(ACCURACY, hits, threshold)
    accuracy_credits = _accuracy_credits(rows, nulls)
    accuracy_nulls = rows.sample.nulls(accuracy_credits, ACCURACY)
    found = _auc.study(AUC, _auc.Classes(rows.right, rows.sample), rows.reward, nulls.rewards)
    if found is None:
        best = max(accuracy_nulls, key=lambda figure: figure.value)
        ahead = rows.sample.lead(hits, accuracy_credits[best.name], best.name)
        return [accuracy, ahead, *_calibration(rows)], accuracy_nulls
    return [found.own, found.lead, accuracy, *_calibration(rows)], (*found.nulls, *accuracy_nulls)


def _accuracy_credits(rows: _Rows, nulls: _nulls.NullRewards) -> dict[str, FloatArray]:
    common = float(rows.right @ rows.sample.weights * 2 >= rows.sample.weights.sum())
    credits = {_nulls.RANDOM: np.full(rows.right.size, 0.5), MAJORITY: (rows.right == common).astype(np.float64)}
    return credits | {name: metrics.credit(nulls.rewards[name] * (2 * rows.right - 1)) for name in nulls.signed}


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
