"""Figures of single steps and of whole answers: accuracy, AUC and calibration, and the worst steps for reading."""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from karat import metrics
from karat.evaluation import _auc, _nulls
from karat.evaluation._common import (
    MISTAKES,
    Found,
    Sample,
    both_scales,
    length_correlation,
    lengths_of,
    prompt_ids,
    spread,
)
from karat.evaluation._first_error import ORM
from karat.evaluation._steps import Branches, Steps, Study
from karat.evaluation.base import Figure, Mistake
from karat.metrics import FloatArray

ACCURACY, AUC, MAJORITY = "step accuracy", "step AUC", "majority class"
SOLUTION_AUC, FINAL_AUC, FEWER = "solution AUC", "final-answer AUC", "fewer steps win"
_NOT_KNOWN = -1.0  # the outcome of an answer of which nobody says whether it is right


@dataclass(frozen=True, slots=True)
class Rows:
    """Steps that have a label and a reward, [S], one of them at least with a weight."""

    steps: Steps
    prob: FloatArray  # [S] of being right
    logit: FloatArray  # [S] above 0 says right
    right: FloatArray  # [S] 0 or 1
    nulls: dict[str, FloatArray]  # name → [S]
    signed: frozenset[str]  # those whose sign says right or wrong
    sample: Sample

    @property
    def reliability(self) -> FloatArray:
        """(forecast, label, rows) of each bin."""
        bins = metrics.reliability_bins(self.prob, self.steps.label, weights=self.sample.weights)
        return np.stack([bins.confidence, bins.accuracy, bins.rows], axis=1)


def rows_of(study: Study) -> Rows | None:
    """The labelled steps of a study; None where none weighs anything."""
    places = study.steps.judged
    steps = study.steps.take(places)
    if not steps.weight.any():
        return None
    prob, logit = both_scales(steps.reward, study.setup.output)
    nulls = {name: score[places] for name, score in study.nulls.rewards.items()}
    outcome, signed = _outcomes(study.branches)[steps.branch], study.nulls.signed
    if (outcome != _NOT_KNOWN).all():
        nulls, signed = nulls | {ORM: outcome - 0.5}, signed | {ORM}
    sample = Sample(steps.weight, prompt_ids(steps.examples), study.setup.seed)
    return Rows(steps, prob, logit, (steps.label > 0.5).astype(np.float64), nulls, signed, sample)


def _outcomes(branches: Branches) -> FloatArray:
    """1 for a right final answer, or where no one says, for an answer without an error; else 0, or `_NOT_KNOWN`."""
    told = [_NOT_KNOWN if final is None else float(final) for final in branches.final]
    labelled = np.where(branches.known > 0, branches.first < 0, _NOT_KNOWN)
    return np.where(np.array(told) == _NOT_KNOWN, labelled, told)


# ---------------------------------------------------------------------------------------------- beside nulls


def found(study: Study, rows: Rows | None) -> dict[str, Found]:
    """Every figure of steps and of whole answers that stands beside nulls, where it is defined."""
    made = (
        {}
        if rows is None
        else {AUC: _auc.study(AUC, _auc.Classes(rows.right, rows.sample), rows.steps.reward, rows.nulls)}
    )
    made |= {name: _of_answers(name, study) for name in (SOLUTION_AUC, FINAL_AUC)}
    known = {name: each for name, each in made.items() if each is not None}
    return known if rows is None else {ACCURACY: _accuracy(rows, study.threshold), **known}


def _accuracy(rows: Rows, threshold: float) -> Found:
    hits = (rows.logit * (2 * rows.right - 1) > 0).astype(np.float64)
    common = float(rows.right @ rows.sample.weights * 2 >= rows.sample.weights.sum())
    credits = {_nulls.RANDOM: np.full(rows.right.size, 0.5), MAJORITY: (rows.right == common).astype(np.float64)}
    credits |= {name: metrics.credit(rows.nulls[name] * (2 * rows.right - 1)) for name in sorted(rows.signed)}
    nulls = rows.sample.nulls(credits, ACCURACY)
    best = max(nulls, key=lambda figure: figure.value)
    own = rows.sample.share(ACCURACY, hits, f"right above {threshold:g}, wrong below; at it, neither")
    return Found(own, nulls, rows.sample.lead(hits, credits[best.name], best.name))


def _of_answers(name: str, study: Study) -> Found | None:
    """AUC of the rewards of whole answers: those without an error against others, or by their final answer."""
    told = _told(name, study.branches)
    places = np.flatnonzero((told != _NOT_KNOWN) & (study.branches.scored > 0))
    answers = study.branches.take(places)
    if not answers.weight.any():
        return None
    sample = answers.sample(study.setup.seed)
    return _auc.study(name, _auc.Classes(told[places], sample), answers.value, _answer_nulls(name, study, answers))


def _told(name: str, branches: Branches) -> FloatArray:
    """1 for right answers, 0 for wrong ones, `_NOT_KNOWN` for others, [A]."""
    if name == SOLUTION_AUC:
        return np.where(branches.known > 0, branches.first < 0, _NOT_KNOWN)
    return np.array([_NOT_KNOWN if final is None else float(final) for final in branches.final])


def _answer_nulls(name: str, study: Study, answers: Branches) -> dict[str, FloatArray]:
    lengths = lengths_of(answers.examples)
    nulls = {_nulls.LONGER: lengths, _nulls.SHORTER: -lengths, FEWER: (answers.start - answers.stop).astype(np.float64)}
    if _nulls.NGRAM in study.nulls.rewards:
        found = study.rewards(answers, study.nulls.rewards[_nulls.NGRAM])
        nulls[_nulls.NGRAM] = np.array([steps.min() if steps.size else 0.0 for steps in found])
    if name == SOLUTION_AUC and None not in answers.final:
        nulls[ORM] = np.array(answers.final, dtype=np.float64)
    return nulls


# ---------------------------------------------------------------------------------------------- alone


def diagnostics(rows: Rows | None) -> list[Figure]:
    """Calibration of the labelled steps, and what their rewards are like."""
    if rows is None:
        return []
    lengths, reward = lengths_of(rows.steps.examples), rows.steps.reward
    return [*_calibration(rows), *length_correlation(lengths, reward, "step"), *spread(reward, "step reward")]


def _calibration(rows: Rows) -> list[Figure]:
    size, label, weights = rows.right.size, rows.steps.label, rows.sample.weights
    constant = metrics.brier(np.full(size, label @ weights / weights.sum()), label, weights)
    error = metrics.expected_calibration_error(rows.prob, label, weights=weights)
    score = metrics.brier(rows.prob, label, weights)
    return [
        _average("calibration error (ECE)", error, "labelled steps, 15 bins from 0 to 1; lower is better", rows, _ece),
        _average("Brier score", score, f"lower is better; the base rate alone gets {constant:.3f}", rows, _brier),
    ]


def _average(name: str, value: float, note: str, rows: Rows, statistic: metrics.Statistic) -> Figure:
    columns = np.stack([rows.prob, rows.steps.label, rows.sample.weights], axis=1)
    ends = rows.sample.statistic_interval(columns, statistic)
    figure = Figure(name, value, n=rows.right.size, note=note)
    return figure if ends is None or ends.high - ends.low < 1e-12 else replace(figure, low=ends.low, high=ends.high)


def _ece(columns: FloatArray) -> float | None:
    prob, label, weights = columns.T
    return metrics.expected_calibration_error(prob, label, weights=weights) if weights.any() else None


def _brier(columns: FloatArray) -> float | None:
    prob, label, weights = columns.T
    return metrics.brier(prob, label, weights) if weights.any() else None


def arrays(study: Study, rows: Rows | None) -> dict[str, npt.NDArray[np.generic]]:
    """What the charts read: steps, or where none is labelled, whole answers whose first error is known."""
    if rows is not None:
        lengths = lengths_of(rows.steps.examples)
        drawn = {"reward": rows.steps.reward, "length": lengths, "right": rows.right, "position": rows.steps.position}
        return {**drawn, "reliability": rows.reliability}
    known = study.solutions.take(np.flatnonzero(study.solutions.scored))
    return {"reward": known.value, "length": lengths_of(known.examples), "right": (known.first < 0).astype(np.float64)}


# ---------------------------------------------------------------------------------------------- for reading


def mistakes(study: Study, rows: Rows | None) -> tuple[Mistake, ...]:
    """The items with the worst steps, one step of each: text, label and reward, and then the whole answer."""
    if rows is None:
        return ()
    gap = rows.logit * (2 * rows.right - 1)
    worst: dict[int, int] = {}  # item → its worst row
    for row in np.argsort(gap, kind="stable").tolist():
        worst.setdefault(int(rows.steps.item[row]), row)
    chosen = [row for row in worst.values() if gap[row] < 0][:MISTAKES]
    return tuple(_mistake(study, rows, row, float(gap[row])) for row in chosen)


def _mistake(study: Study, rows: Rows, row: int, gap: float) -> Mistake:
    steps = rows.steps
    answer = study.branches.examples[int(steps.branch[row])]
    place, side = int(steps.position[row]), "right" if rows.right[row] else "wrong"
    head = f"step {place} (from 0) is {side}, but its reward is {steps.reward[row]:.3g}:\n{answer.steps[place]}"
    listed = "\n".join(f"[{i}] {text}" for i, text in enumerate(answer.steps))
    prompt = "\n\n".join(message.content for message in answer.prompt)
    return Mistake(prompt, f"{head}\n\nall steps:\n{listed}", "", gap, study.items[int(steps.item[row])].origin)
