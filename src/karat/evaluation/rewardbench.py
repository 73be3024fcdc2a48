"""RewardBench: accuracy by subset and section, with its weights, its prior sets at half, and equal rewards wrong.

Source: Lambert et al. 2024, arXiv:2403.13787. A section is the mean over its subsets by their rows, math-prm counting
as much as all code; the score is the mean of the four sections, in which the mean of the prior sets counts half.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from karat.evaluation import _decided, _pair_benchmark, _record
from karat.evaluation._pair_benchmark import EVERY, Plan, subset_of
from karat.evaluation._rewardbench import CORE, PRIOR_SETS, averages, submission
from karat.evaluation._sections import Average
from karat.evaluation.base import Result, Scorer, Setup
from karat.formats._benchmarks import named_in
from karat.types import Pair

ITEM = Pair
OUTPUTS = ("logit", "probability", "rating")
BY_NAME = True


def check(items: Sequence[Pair]) -> None:
    """Raise BadInput where no pair prefers an answer."""
    _decided.check_preferred(items)


def run(scorer: Scorer, items: Sequence[Pair], setup: Setup) -> Result:
    """The score, the sections and the subsets beside their nulls; subsets of others are figures of their own."""
    plan = Plan("rewardbench", _subset, _averages, expected=CORE)
    return _pair_benchmark.run(plan, scorer, items, setup)


def _subset(pair: Pair) -> str:
    """The column; but a prior set is a file or split, whose own column says something else."""
    column = subset_of(pair)
    return column if column in CORE else named_in(pair.origin, PRIOR_SETS) or column


def _averages(parts: Sequence[str]) -> list[Average]:
    return [*averages(parts), EVERY]


def export(result: Result, folder: Path, settings: Mapping[str, Any]) -> None:
    """Writes `eval-set/MODEL.json` and `eval-set-scores/MODEL.json` as RewardBench's leaderboard reads them."""
    judged = [row for row in _record.rows(result) if row["credit"] is not None]
    model = str(settings.get("model") or "model")
    name = "/".join(part for part in Path(model).parts[-2:] if part.strip("./"))  # owner and name
    for place, found in submission(judged, model, "Seq. Classifier").items():
        path = folder / place / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found, indent=4, sort_keys=True) + "\n", encoding="utf-8")
