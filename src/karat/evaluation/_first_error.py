"""Is the first wrong step of a solution found? F1 by ProcessBench's protocols, beside what cheap tricks get.

The headline's threshold is fixed: a step is taken for wrong if its probability is at most 0.5. A threshold that was
chosen on the very solutions it is judged by gives an upper bound, which is no result.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from karat import metrics
from karat.evaluation import _nulls
from karat.evaluation._auc import Classes
from karat.evaluation._common import Found, Sample, bounded
from karat.evaluation._steps import EARLIER, Study
from karat.evaluation.base import LEAD, Figure
from karat.metrics import FloatArray, IntArray

F1, ERROR, CORRECT, LOCATION = "F1", "error accuracy", "correct accuracy", "location accuracy"
UPPER = "F1, best threshold (upper bound)"
PLAIN, SIZED = "F1, plain mean over subsets", "F1, size-weighted mean over subsets"
TUNED, TUNING = "F1, threshold tuned on gsm8k", "gsm8k"
NO_ERROR, FIRST_STEP = "no error", "first step"
ORM = "perfect ORM"  # knows whether the outcome is right, and nothing of steps

# Where a perfect outcome model lays the blame: on the step to which a null gives the lowest reward.
_BLAMED = {
    "longest step": _nulls.SHORTER,
    "shortest step": _nulls.LONGER,
    "last step": EARLIER,
    "n-gram": _nulls.NGRAM,
}


@dataclass(frozen=True, slots=True)
class Solutions:
    """Answers whose first error is known, [B]; one without a reward is judged too, and found wrong."""

    first: IntArray  # 0-based index of the first wrong step, -1 for none
    subset: list[str]  # its part of the benchmark; the empty string where there are no parts
    rewards: list[FloatArray]  # of its steps; none where it has no reward
    nulls: Mapping[str, FloatArray]  # what each null gets on it, in [0, 1]
    sample: Sample

    @property
    def classes(self) -> Classes:
        """Solutions without an error are the right ones."""
        return Classes((self.first < 0).astype(np.float64), self.sample)

    @property
    def subsets(self) -> list[str]:
        """Names of the parts, in the order they come."""
        return [name for name in dict.fromkeys(self.subset) if name]

    def take(self, rows: IntArray) -> "Solutions":
        """Some of them."""
        nulls = {name: credit[rows] for name, credit in self.nulls.items()}
        return Solutions(
            self.first[rows],
            [self.subset[i] for i in rows],
            [self.rewards[i] for i in rows],
            nulls,
            self.sample.take(rows),
        )

    def of(self, subset: str) -> "Solutions":
        """Those of one part."""
        return self.take(np.array([i for i, name in enumerate(self.subset) if name == subset]))

    def credit(self, threshold: float) -> FloatArray:
        """1 where exactly the first error was flagged, or rightly none, else 0, [B]."""
        pairs = zip(self.rewards, self.first, strict=True)
        return np.array([float(r.size > 0 and metrics.first_error(r, threshold) == k) for r, k in pairs])

    def best_threshold(self) -> float | None:
        """The threshold with the highest F1 on these; None if there is one class, or no reward."""
        return metrics.best_threshold(self.rewards, self.first, self.sample.weights) if self.sample.clusters else None


def solutions(study: Study) -> Solutions | None:
    """The solutions of a study; None where none has a weight."""
    known = study.solutions
    if not known.weight.any():
        return None
    subset = next(
        (names for key in ("subset", "task", "generator") if all(names := _named(study, key))), [""] * len(known.first)
    )
    rewards = study.rewards(known, study.steps.reward)
    return Solutions(known.first, subset, rewards, _null_credits(study), known.sample(study.setup.seed))


def _named(study: Study, key: str) -> list[str]:
    return [str(example.context.get(key) or "") for example in study.solutions.examples]


# ---------------------------------------------------------------------------------------------- nulls


def _null_credits(study: Study) -> dict[str, FloatArray]:
    """What each null gets on each solution, scored or not, [B]."""
    known = study.solutions
    first, size = known.first, known.stop - known.start
    told = [known.first[i] < 0 if final is None else final for i, final in enumerate(known.final)]
    spans = [slice(start, stop) for start, stop in zip(known.start, known.stop, strict=True)]
    guesses = {NO_ERROR: np.full(first.size, -1), FIRST_STEP: np.zeros(first.size)}
    if _nulls.NGRAM in study.nulls.signed:
        logits = study.nulls.rewards[_nulls.NGRAM]
        guesses[_nulls.NGRAM] = np.array([metrics.first_error(logits[span], 0.0) for span in spans])
    blamed = {f"step index {k}": np.full(first.size, k) for k in (0, 1)}
    for words, null in _BLAMED.items():
        if null in study.nulls.rewards:
            blamed[words] = np.array([np.argmin(study.nulls.rewards[null][span]) for span in spans])
    guesses |= {f"{ORM} + {words}": np.where(told, -1, place) for words, place in blamed.items()}
    credits = {name: (guess == first).astype(np.float64) for name, guess in guesses.items()}
    return {_nulls.RANDOM: _random(study, first, size)} | credits


def null_rewards(study: Study) -> dict[str, list[FloatArray]]:
    """What each null that scores steps gives those of each solution, scored or not."""
    spans = [slice(start, stop) for start, stop in zip(study.solutions.start, study.solutions.stop, strict=True)]
    return {name: [reward[span] for span in spans] for name, reward in study.nulls.rewards.items()}


def _random(study: Study, first: IntArray, size: IntArray) -> FloatArray:
    """Chance to be right of flagging each step as often as steps are wrong."""
    steps = study.steps.take(study.steps.judged)
    if not steps.weight.any():
        return np.where(first < 0, 0.5, 0.5 / size)  # a coin for the error, and a die for its place
    rate = float((steps.label < 0.5) @ steps.weight / steps.weight.sum())
    kept = np.where(first < 0, size, first)
    chance: FloatArray = (1 - rate) ** kept * np.where(first < 0, 1.0, rate)
    return chance


# ---------------------------------------------------------------------------------------------- figures


def found(rows: Solutions, threshold: float, note: str) -> dict[str, Found]:
    """Every figure of first errors that stands beside nulls: F1, of subsets too, and the accuracy of the location."""
    whole = f1(F1, rows, threshold, note)
    named = {} if whole is None else {F1: whole}
    return {**named, **by_subset(rows, threshold), LOCATION: location(rows, threshold)}


def location(rows: Solutions, threshold: float) -> Found:
    """Share of all solutions whose first error, or the lack of one, was found."""
    credit, nulls = rows.credit(threshold), dict(rows.nulls)
    found = rows.sample.nulls(nulls, LOCATION)
    best = max(found, key=lambda figure: figure.value)
    own = rows.sample.share(LOCATION, credit, "exact index, or rightly no error")
    return Found(own, found, rows.sample.lead(credit, nulls[best.name], best.name))


def f1(name: str, rows: Solutions, threshold: float, note: str = "") -> Found | None:
    """F1 of the solutions, or its mean over subsets for the names `PLAIN` and `SIZED`; None where undefined."""
    credit, mean = rows.credit(threshold), _Mean.of(rows, name)
    own = mean.figure(name, credit, note)
    nulls = [mean.figure(null, theirs, against=name) for null, theirs in rows.nulls.items()]
    known = tuple(figure for figure in nulls if figure is not None)
    if own is None or not known:
        return None
    best = max(known, key=lambda figure: figure.value)
    return Found(own, known, mean.lead(credit, rows.nulls[best.name], best.name))


def parts(rows: Solutions, threshold: float) -> list[Figure]:
    """The two accuracies that F1 is the harmonic mean of."""
    made = []
    sides = (
        (ERROR, rows.first >= 0, "exact index of the first wrong step"),
        (CORRECT, rows.first < 0, "no step flagged"),
    )
    for name, side, note in sides:
        few = rows.take(np.flatnonzero(side))
        if few.first.size and few.sample.weights.any():
            made.append(few.sample.share(name, few.credit(threshold), note))
    return made


def by_subset(rows: Solutions, threshold: float) -> dict[str, Found]:
    """F1 of each subset and its two means over the subsets that have one; nothing where there is but one subset."""
    if len(rows.subsets) < 2:
        return {}
    whole = defined(rows)
    means = (PLAIN, SIZED) if len(whole.subsets) > 1 else ()
    left = f", without {one_class}" if (one_class := _one_class(rows)) else ""
    found = {name: f1(name, whole, threshold, f"over {len(whole.subsets)} subsets{left}") for name in means}
    found |= {f"{F1} [{name}]": f1(f"{F1} [{name}]", rows.of(name), threshold) for name in rows.subsets}
    return {name: each for name, each in found.items() if each is not None}


def tuned(rows: Solutions) -> list[Figure]:
    """F1 with the threshold that is best on the subset gsm8k, as ProcessBench's authors tune scalar models."""
    name = next((name for name in rows.subsets if name.lower() == TUNING), None)
    threshold = None if name is None or len(rows.subsets) < 2 else rows.of(name).best_threshold()
    if name is None or threshold is None:
        return []
    note = f"a step is wrong at a reward of at most {threshold:.4g}, best for {name}"
    mean = _Mean.of(defined(rows), PLAIN)
    made = [mean.figure(TUNED, defined(rows).credit(threshold), f"plain mean over subsets, {name} included; {note}")]
    for other in (other for other in rows.subsets if other != name):
        few = rows.of(other)
        made.append(_Mean.of(few, F1).figure(f"{TUNED} [{other}]", few.credit(threshold), note))
    return [figure for figure in made if figure is not None]


def upper_bound(rows: Solutions, nulls: Mapping[str, list[FloatArray]]) -> tuple[list[Figure], list[Figure]]:
    """F1 with the threshold that is best on these very solutions, and the nulls with theirs."""
    own = _at_best(UPPER, rows, "")
    found = [_at_best(name, replace(rows, rewards=rewards), UPPER) for name, rewards in nulls.items()]
    return [figure for figure in (own,) if figure], [figure for figure in found if figure and own]


def _at_best(name: str, rows: Solutions, against: str) -> Figure | None:
    threshold = rows.best_threshold()
    if threshold is None:
        return None
    note = f"threshold {threshold:.4g}, chosen on these very solutions: an upper bound, no result"
    return _Mean.of(rows, F1).figure(name, rows.credit(threshold), "" if against else note, against)


def no_mean(study: Study) -> str:
    """Why there is no mean over subsets."""
    rows, needs = solutions(study), "no mean over subsets, which needs two"
    if rows is None or len(rows.subsets) < 2:
        return f"{needs}, and there is {'one' if rows and rows.subsets else 'none'}"
    return f"{needs} with an F1: {_one_class(rows)}"


def _one_class(rows: Solutions) -> str:
    """The subsets that have no F1, and why; empty where all have."""
    lacking = [name for name in rows.subsets if name not in defined(rows).subsets]
    why = "whose solutions all have a wrong step, or all have none"
    return f"{' and '.join(lacking)}, {why}" if lacking else ""


def defined(rows: Solutions) -> Solutions:
    """The solutions of subsets that hold both classes, without which they have no F1."""
    whole = {name for name in rows.subsets if rows.of(name).classes.trials}
    return rows.take(np.array([i for i, name in enumerate(rows.subset) if name in whole], dtype=np.int64))


@dataclass(frozen=True, slots=True)
class _Mean:
    """A mean of the F1 of K subsets, or the F1 of all solutions as one."""

    rows: Solutions
    code: IntArray  # [B] number of the subset
    shares: FloatArray  # [K] weight of each subset in the mean, sums to 1

    @classmethod
    def of(cls, rows: Solutions, name: str) -> "_Mean":
        if name not in (PLAIN, SIZED):
            return cls(rows, np.zeros(rows.first.size, dtype=np.int64), np.ones(1))
        code = np.array([rows.subsets.index(name) for name in rows.subset], dtype=np.int64)
        sizes = np.bincount(code) if name == SIZED else np.ones(len(rows.subsets))
        return cls(rows, code, sizes / sizes.sum())

    def figure(self, name: str, credit: FloatArray, note: str = "", against: str = "") -> Figure | None:
        """The mean for credits [B]; None where a subset has one class only."""
        value = self._value(self._columns(credit).sum(axis=0)[None])[0] if credit.size else np.nan
        if not np.isfinite(value):
            return None
        figure = Figure(name, float(value), n=credit.size, note=note, percent=True, against=against)
        if name in (NO_ERROR, FIRST_STEP):  # right in one class only, whatever is drawn
            return replace(figure, note="expected")
        found = self.rows.sample.sums_interval(self._columns(credit), self._value)
        return bounded(figure, (0.0, 1.0), found, self.rows.classes.trials)

    def lead(self, credit: FloatArray, null: FloatArray, over: str) -> Figure:
        """The mean for one credit minus that for another on the same solutions."""
        columns = np.concatenate([self._columns(credit), self._columns(null)], axis=1)
        half = columns.shape[1] // 2

        def gap(sums: FloatArray) -> FloatArray:
            return self._value(sums[:, :half]) - self._value(sums[:, half:])

        figure = Figure(LEAD, float(gap(columns.sum(axis=0)[None])[0]), n=credit.size, percent=True)
        figure = replace(figure, note=f"over {over}, on the same rows")
        ends = (0.0, 1.0) if over in (NO_ERROR, FIRST_STEP) else (-1.0, 1.0)
        return bounded(figure, ends, self.rows.sample.sums_interval(columns, gap), self.rows.classes.trials)

    def _columns(self, credit: FloatArray) -> FloatArray:
        """Of each subset and class, weight and weighted credit: [B, 4K]."""
        weights, error = self.rows.sample.weights, (self.rows.first >= 0).astype(np.int64)
        cells = np.zeros((credit.size, self.shares.size, 2, 2))
        cells[np.arange(credit.size), self.code, error] = np.stack([weights, weights * credit], axis=1)
        return cells.reshape(credit.size, -1)

    def _value(self, sums: FloatArray) -> FloatArray:
        """Of sums [N, 4K], [N]; NaN where a class has no weight."""
        mass, got = np.moveaxis(sums.reshape(len(sums), -1, 2, 2), -1, 0)
        accuracy = np.divide(got, mass, out=np.full_like(got, np.nan), where=mass > 0)
        value: FloatArray = metrics.harmonic_mean(accuracy[..., 0], accuracy[..., 1]) @ self.shares
        return value
