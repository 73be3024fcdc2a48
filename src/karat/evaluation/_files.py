"""Evaluating a model on a data file, and the folder that a run leaves."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from karat.evaluation import _report
from karat.evaluation.base import Result, evaluate, summary, with_unscored
from karat.formats import base as formats
from karat.rewards.base import RewardModel
from karat.types import BadInput, Example


def evaluate_file(
    model: RewardModel, data: str, training: Sequence[str] = (), format: str | None = None, seed: int = 0
) -> Result:
    """The figures of a model on the items of a data file; `training` files feed the n-gram null.

    Raises:
        BadInput: the file holds no items that can be evaluated.
    """
    loaded = formats.load(data, format)
    items = [item for item in loaded.items if not isinstance(item, Example)]
    if not items:
        raise BadInput(f"{data} holds answers without labels; to evaluate, it needs pairs, labels or rankings")
    for problem in loaded.problems:
        print(f"not used: {problem}", file=sys.stderr)
    unused = [*(p.reason for p in loaded.problems), *["it has no label"] * (len(loaded.items) - len(items))]
    known = [i for source in training for i in formats.load(source, format).items if not isinstance(i, Example)]
    result = evaluate(lambda examples: list(model.score_many(examples)), items, known, seed, output=model.output)
    return with_unscored(result, unused)


def write_run(folder: Path, title: str, results: Sequence[Result], settings: Mapping[str, Any]) -> None:
    """Write report.html and summary.json.

    Raises:
        BadInput: the folder cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps([summary(r) for r in results], indent=2)
        (folder / "summary.json").write_text(text + "\n", encoding="utf-8")
        _report.write(_report.Report(title, results, settings=settings), folder / "report.html")
    except OSError as error:
        raise BadInput(f"{folder} cannot be written to ({error.strerror}); choose another --output") from None
