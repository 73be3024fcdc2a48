"""What the evaluations of answers in steps share: every figure that the labels define, one of them the headline."""

from collections.abc import Sequence

from karat.evaluation import _first_error, _step_figures
from karat.evaluation._common import Found, scale
from karat.evaluation._first_error import F1, LOCATION, PLAIN
from karat.evaluation._step_figures import ACCURACY, AUC, SOLUTION_AUC, Rows, diagnostics
from karat.evaluation._steps import Study
from karat.evaluation.base import Figure, Result
from karat.rewards.base import Output

HEADLINES = (F1, AUC, ACCURACY, LOCATION, SOLUTION_AUC)  # the first that is defined


def result(
    name: str, study: Study, headlines: Sequence[str] = HEADLINES, more: dict[str, Found] | None = None
) -> Result:
    """The result of a study, whose headline is the first of `headlines` that the data define.

    Args:
        name: the evaluation.
        study: items with their rewards.
        headlines: names of figures, the wanted one first.
        more: figures beside their nulls that this evaluation adds.
    """
    rows = _step_figures.rows_of(study)
    found, alone, nulls = _figures(study, rows)
    found = (more or {}) | found
    wanted = (*headlines, *HEADLINES)
    headline = next(figure for figure in wanted if figure in found)
    beside = [found[headline], *(each for figure, each in found.items() if figure != headline)]
    return Result(
        name=name,
        n=len(study.items),
        judged=len(study.decided),
        unscored=study.judged.unscored,
        figures=(beside[0].own, beside[0].lead, *(each.own for each in beside[1:]), *alone),
        nulls=(*(null for each in beside for null in each.nulls), *nulls),
        headline=headline,
        accuracy=ACCURACY if ACCURACY in found else "",
        instead=_instead(study, headline, wanted[: wanted.index(headline)]),
        unit="solutions",
        scale=scale(study.setup.output),
        tied=study.tied,
        notes=study.notes,
        arrays=_step_figures.arrays(study, rows),
        mistakes=_step_figures.mistakes(study, rows),
    )


def _instead(study: Study, headline: str, missed: Sequence[str]) -> str:
    """Why there is no mean over subsets, or no F1 of the first error, where one was wanted."""
    if F1 not in missed:
        return f"{_first_error.no_mean(study)}; the headline is {headline}" if PLAIN in missed else ""
    first = study.solutions.first[study.solutions.weight > 0]
    why = "of no solution the labels tell the first error"
    if first.size:
        why = f"{'each' if first[0] >= 0 else 'none'} of the {first.size:,} solutions has a wrong step"
    return f"no F1, which needs solutions with a wrong step and without one: {why}; the headline is {headline}"


def argmax(output: Output) -> str:
    """The fixed threshold in words."""
    words = "a probability of at most 0.5" if output == "probability" else "a logit of at most 0"
    return f"argmax: a step is wrong at {words}"


def _figures(study: Study, rows: Rows | None) -> tuple[dict[str, Found], list[Figure], list[Figure]]:
    """Figures with their nulls and leads; figures without a lead; and the nulls of these."""
    solutions, threshold = _first_error.solutions(study), study.threshold
    found: dict[str, Found] = {}
    alone: list[Figure] = []
    nulls: list[Figure] = []
    if solutions is not None:
        found = _first_error.found(solutions, threshold, argmax(study.setup.output))
        upper, nulls = _first_error.upper_bound(solutions, _first_error.null_rewards(study))
        alone = [*upper, *_first_error.parts(solutions, threshold), *_first_error.tuned(solutions)]
    found |= _step_figures.found(study, rows)
    return found, [*alone, *diagnostics(rows)], nulls
