"""Answers in steps: is the first wrong step found, are steps told right from wrong, do right answers score higher?"""

from collections.abc import Sequence

from karat.evaluation import _process, _steps
from karat.evaluation.base import Result, Scorer, Setup
from karat.types import Stepped

ITEM = Stepped
OUTPUTS = ("probability", "logit")
BY_NAME = False


def check(items: Sequence[Stepped]) -> None:
    """Raise BadInput for labels that cannot be judged by, and where no step is right or wrong."""
    _steps.check(items)


def run(scorer: Scorer, items: Sequence[Stepped], setup: Setup) -> Result:
    """F1 of the first error, location accuracy, accuracy, AUC and calibration of steps, AUC of whole answers, nulls.

    The headline is F1 at the fixed threshold; where no solution has an error, or all have one, it is the step AUC.
    Items of which no step has a label above or below 0.5 are counted as tied.
    """
    return _process.result("process", _steps.study(scorer, items, setup))
