"""PRMBench: PRMScore of the steps of modified solutions, over all and for each class of error.

Source: Song et al. 2025, arXiv:2501.03124. PRMScore is the mean of the F1 of right steps and the F1 of wrong steps,
pooled over steps; a class without wrong steps, multi_solutions, has the first alone. The unmodified solutions
(`original` in the context) are scored for the similarity alone: how little the model tells the two apart.
"""

from collections.abc import Hashable, Sequence
from dataclasses import replace

import numpy as np

from karat import metrics, types
from karat.evaluation import _nulls, _process, _step_figures, _steps
from karat.evaluation._common import Found, Sample, bounded, prompt_ids
from karat.evaluation._step_figures import MAJORITY, Rows
from karat.evaluation._steps import Study
from karat.evaluation.base import LEAD, Figure, Result, Scorer, Setup
from karat.metrics import FloatArray
from karat.types import BadInput, Stepped

ITEM = Stepped
OUTPUTS = ("probability", "logit")
BY_NAME = True
SCORE, FIRST, SIMILARITY = "PRMScore", "first-error step accuracy", "similarity"
OWN = "this reward model"


def check(items: Sequence[Stepped]) -> None:
    """Raise BadInput for items without a class of error, and where none is a modified solution."""
    bad = next((item for item in items if not _class(item)), None)
    if bad is not None:
        where = f"{bad.origin}: " if bad.origin else ""
        raise BadInput(f"{where}PRMBench needs the classification of each item; evaluate without a name")
    modified = [item for item in items if not is_original(item)]
    if not modified:
        raise BadInput("every item is an original, which PRMBench does not count: give modified solutions")
    _steps.check(modified)


def is_original(item: Stepped) -> bool:
    """Whether it is an unmodified solution."""
    return item.branches[0].context.get("original") is True or _class(item) == "correct"


def run(scorer: Scorer, items: Sequence[Stepped], setup: Setup) -> Result:
    """PRMScore beside its nulls, by class, the accuracy at the first error, and the similarity to originals.

    All items are scored in one call; all that follows is over the modified solutions alone.
    """
    check(items)
    given = list(scorer([branch for item in items for branch in item.branches]))
    ends = np.cumsum([len(item.branches) for item in items])
    if len(given) != ends[-1]:
        raise BadInput(f"the scorer returned {len(given)} results for {ends[-1]} answers: it has to return one each")
    of_item = [given[end - len(item.branches) : end] for item, end in zip(items, ends, strict=True)]
    places = [i for i, item in enumerate(items) if not is_original(item)]
    replay: list[types.Result] = [result for i in places for result in of_item[i]]
    study = _steps.study(lambda _: replay, [items[i] for i in places], setup)
    rows = _step_figures.rows_of(study)
    found = {} if rows is None else _scores(rows, study)
    result = _process.result("prmbench", study, (SCORE, _step_figures.ACCURACY), found)
    similar = _similarity(items, of_item, study)
    notes = (*result.notes, *_originals_note(items, of_item))
    return replace(result, figures=(*result.figures, *_first_error(rows, study), *similar), notes=notes)


def _originals_note(items: Sequence[Stepped], given: Sequence[Sequence[types.Result]]) -> list[str]:
    originals = [results[0] for item, results in zip(items, given, strict=True) if is_original(item)]
    lost = sum(isinstance(result, types.Unscored) for result in originals)
    words = f"{len(originals)} originals are in the similarity alone"
    return [f"{words}, but for {lost} without a reward" if lost else words] if originals else []


def _class(item: Stepped) -> str:
    return str(item.branches[0].context.get("classification") or "")


# ---------------------------------------------------------------------------------------------- PRMScore


def _scores(rows: Rows, study: Study) -> dict[str, Found]:
    """PRMScore of all labelled steps and of those of each class."""
    said = {OWN: (rows.steps.reward > study.threshold).astype(np.float64), **_said_by_nulls(rows)}
    classes = [_class(study.items[i]) for i in rows.steps.item]
    found = {SCORE: _score(SCORE, said, rows, np.arange(len(classes)))}
    for name in dict.fromkeys(classes):
        places = np.array([i for i, each in enumerate(classes) if each == name])
        one_class = rows.right[places].min() == 1
        named = f"{'F1' if one_class else SCORE} [{name}]"
        found[named] = _score(named, said, rows, places)
    return {name: each for name, each in found.items() if each is not None}


def _said_by_nulls(rows: Rows) -> dict[str, FloatArray]:
    """How likely each null is to take each step for right, [S]."""
    rate = float(rows.right @ rows.sample.weights / rows.sample.weights.sum())
    said = {_nulls.RANDOM: np.full(rows.right.size, rate), MAJORITY: np.full(rows.right.size, float(rate >= 0.5))}
    return said | {name: (rows.nulls[name] > 0).astype(np.float64) for name in sorted(rows.signed)}


def _score(name: str, said: dict[str, FloatArray], rows: Rows, places: metrics.IntArray) -> Found | None:
    """PRMScore, or the F1 of right steps for a name that says so, of some steps, beside the nulls in `said`."""
    sample = rows.sample.take(places)
    if not sample.weights.any():
        return None
    cells = {who: metrics.confusion(each[places], rows.right[places], sample.weights) for who, each in said.items()}
    statistic = _f1_alone if name.startswith("F1") else _prm_score
    mine = cells.pop(OWN)
    own = _figure(name, mine, statistic, sample, "")
    found = [_figure(null, each, statistic, sample, name) for null, each in cells.items()]
    nulls = [figure for figure in found if figure is not None]
    if own is None or not nulls:
        return None
    best = max(nulls, key=lambda figure: figure.value)
    return Found(own, tuple(nulls), _lead(mine, cells[best.name], statistic, sample, best.name))


def _f1_alone(sums: FloatArray) -> FloatArray:
    alone: FloatArray = metrics.f1_of_confusion(sums)[0]
    return alone


def _prm_score(sums: FloatArray) -> FloatArray:
    both: FloatArray = metrics.f1_of_confusion(sums).mean(axis=0)
    return both


def _figure(name: str, cells: FloatArray, statistic: metrics.OfSums, sample: Sample, against: str) -> Figure | None:
    value = float(statistic(cells.sum(axis=0)[None])[0])
    if not np.isfinite(value):
        return None
    note = "" if against else "F1 of the right steps" if statistic is _f1_alone else "mean F1 of right and wrong steps"
    figure = Figure(name, value, n=len(cells), note=note, percent=True, against=against)
    return bounded(figure, (0.0, 1.0), sample.sums_interval(cells, statistic), sample.clusters)


def _lead(own: FloatArray, null: FloatArray, statistic: metrics.OfSums, sample: Sample, over: str) -> Figure:
    def gap(sums: FloatArray) -> FloatArray:
        return statistic(sums[:, :4]) - statistic(sums[:, 4:])

    columns = np.concatenate([own, null], axis=1)
    value = float(gap(columns.sum(axis=0)[None])[0])
    figure = Figure(LEAD, value, n=len(columns), note=f"over {over}, on the same rows", percent=True)
    return bounded(figure, (-1.0, 1.0), sample.sums_interval(columns, gap), sample.clusters)


# ---------------------------------------------------------------------------------------------- alone


def _first_error(rows: Rows | None, study: Study) -> list[Figure]:
    """Share of first wrong steps that are taken for wrong."""
    if rows is None:
        return []
    first = study.branches.first[rows.steps.branch]
    at = np.flatnonzero((study.branches.known[rows.steps.branch] > 0) & (rows.steps.position == first))
    sample = rows.sample.take(at)
    if not at.size or not sample.weights.any():
        return []
    flagged = (rows.steps.reward[at] <= study.threshold).astype(np.float64)
    return [sample.share(FIRST, flagged, "first wrong steps taken for wrong, whatever comes before them")]


def _similarity(items: Sequence[Stepped], given: Sequence[Sequence[types.Result]], study: Study) -> list[Figure]:
    """Mean distance of the shares of steps taken for right in a modified solution and in its original."""
    share = {i: _share_right(results, study.threshold) for i, results in enumerate(given)}
    originals = {key: share[i] for i, item in enumerate(items) if is_original(item) for key in _keys(item)}
    pairs = [(item, share[i], _original(item, originals)) for i, item in enumerate(items) if not is_original(item)]
    known = [(item, abs(a - b)) for item, a, b in pairs if a is not None and b is not None]
    if not any(item.weight for item, _ in known):
        return []
    weights, gaps = np.array([item.weight for item, _ in known]), np.array([gap for _, gap in known])
    sample = Sample(weights, prompt_ids(item.branches[0] for item, _ in known), study.setup.seed)
    note = "distance of the share of steps taken for right from that in the original; 0 tells no difference"
    return [sample.mean(SIMILARITY, gaps, (0.0, 1.0), note)]


def _share_right(results: Sequence[types.Result], threshold: float) -> float | None:
    steps = results[0].steps if isinstance(results[0], types.Reward) else None
    return float(np.mean(np.array(steps) > threshold)) if steps else None


def _original(item: Stepped, originals: dict[Hashable, float | None]) -> float | None:
    return next((originals[key] for key in _keys(item) if key in originals), None)


def _keys(item: Stepped) -> tuple[Hashable, Hashable]:
    """What a modified solution and its original share: an id, or else the question; that of its class goes first."""
    example = item.branches[0]
    key = example.context.get("idx") or example.context.get("id") or example.prompt
    return (_class(item), key), key
