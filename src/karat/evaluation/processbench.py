"""ProcessBench: F1 of the first error, mean over its subsets, and with the threshold tuned on GSM8K.

Source: Zheng et al. 2024, arXiv:2412.06559. Its average is the plain mean of the F1 of its four subsets; a scalar
model's threshold is tuned on the subset gsm8k and used for all.
"""

from collections.abc import Sequence

from karat.evaluation import _first_error, _process, _steps
from karat.evaluation.base import Result, Scorer, Setup
from karat.types import Stepped

ITEM = Stepped
OUTPUTS = ("probability", "logit")
BY_NAME = True


def check(items: Sequence[Stepped]) -> None:
    """Raise BadInput for items that are not one answer each with a known first error."""
    _steps.check_single(items, "ProcessBench")
    _steps.check(items)


def run(scorer: Scorer, items: Sequence[Stepped], setup: Setup) -> Result:
    """What `process` finds, with the plain mean over subsets as the headline where there are several."""
    check(items)
    study = _steps.study(scorer, items, setup)
    return _process.result("processbench", study, (_first_error.PLAIN, *_process.HEADLINES))
