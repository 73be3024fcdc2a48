"""BIG-Bench Mistake: how often the place of the first mistake, or the lack of one, is found.

Source: Tyen et al. 2023, arXiv:2311.08516. Accuracy is over all traces, those without a mistake included.
"""

from collections.abc import Sequence

from karat.evaluation import _process, _steps
from karat.evaluation._first_error import LOCATION
from karat.evaluation.base import Result, Scorer, Setup
from karat.types import Stepped

ITEM = Stepped
OUTPUTS = ("probability", "logit")
BY_NAME = True


def check(items: Sequence[Stepped]) -> None:
    """Raise BadInput for items that are not one answer each with a known first error."""
    _steps.check_single(items, "BIG-Bench Mistake")
    _steps.check(items)


def run(scorer: Scorer, items: Sequence[Stepped], setup: Setup) -> Result:
    """What `process` finds, with the accuracy of the location as the headline."""
    check(items)
    return _process.result("mistake", _steps.study(scorer, items, setup), (LOCATION,))
