"""Evaluating a model on a data file, and the folder that a run leaves."""

import contextlib
import json
import os
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from karat import types
from karat.evaluation import _report, _runs
from karat.evaluation.base import Result, choose, evaluate, find, summary, with_unscored
from karat.formats import base as formats
from karat.progress import track
from karat.rewards._among import among
from karat.rewards.base import Output, RewardModel
from karat.types import BadInput, Example, Item, Pair


def evaluate_files(
    model: RewardModel,
    data: Sequence[str],
    training: Sequence[str] = (),
    format: str | None = None,
    seed: int = 0,
    *,
    name: str | None = None,
) -> list[Result]:
    """The figures of a model on the items of each data file; `training` files feed the n-gram null.

    The items pick the evaluation, unless `name` does. A benchmark in several files, which is one evaluation over its
    subsets, is read as one set of items where it is named.

    Raises:
        BadInput: a file holds no items that can be evaluated; all are read and checked before any is scored.
    """
    read = [_read(path, format, model.output, name) for path in data]
    if name:
        read = [([item for items, _ in read for item in items], [why for _, unused in read for why in unused])]
    known = [i for source in training for i in formats.load(source, format).items if not isinstance(i, Example)]

    shown: Any = _Shown(model)

    def judged(items: Sequence[Item]) -> Result:
        pairs = all(isinstance(item, Pair) for item in items)
        return evaluate(partial(among, shown, pairs=pairs), items, known, seed, output=model.output, name=name)

    found = [(judged(items), why) for items, why in read]
    return [with_unscored(result, unused) for result, unused in found]


class _Shown:
    """A model whose progress is shown."""

    def __init__(self, model: RewardModel) -> None:
        self._model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def score_many(self, examples: Sequence[Example]) -> Iterator[types.Result]:
        return track(self._model.score_many(examples), len(examples), "scored")

    def compare_many(self, examples: Sequence[Example]) -> Iterator[types.Result]:
        return track(self._model.compare_many(examples), len(examples), "compared")


def _read(path: str, format: str | None, output: Output, name: str | None) -> tuple[list[Item], list[str]]:
    """The labelled items of a file, and why each of its other rows is not used."""
    loaded = formats.load(path, format)
    items = [item for item in loaded.items if not isinstance(item, Example)]
    if not items:
        raise BadInput(f"{path} holds answers without labels; to evaluate, it needs pairs, labels, rankings or steps")
    try:
        choose(items, output, name)
    except BadInput as error:
        where = "" if str(error).startswith(formats.parse_source(path).path) else f"{path}: "
        raise BadInput(f"{where}{error}") from None
    for problem in loaded.problems:
        print(f"not used: {problem}", file=sys.stderr)
    return items, [*(p.reason for p in loaded.problems), *["it has no label"] * (len(loaded.items) - len(items))]


def check_output(folder: Path) -> None:
    """Raise BadInput for a folder that could not be written in the end: one is made beside it and removed again."""
    aside = _aside(_absolute(folder))
    made = [path for path in (aside, *aside.parents) if not os.path.exists(path)]
    try:
        aside.mkdir(parents=True)
    except OSError as error:
        raise _unwritable(folder, error) from None
    finally:
        for path in made:
            with contextlib.suppress(OSError):
                path.rmdir()


def _absolute(folder: Path) -> Path:
    """The path without `..`, which may stand for a folder that is there."""
    return Path(os.path.abspath(folder))


def _aside(folder: Path) -> Path:
    """A path that is free, in the folder in which `folder` is to be; raises BadInput if that one is there."""
    try:
        folder.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return folder.with_name(f".karat-{secrets.token_hex(4)}")
    except OSError as error:
        raise _unwritable(folder, error) from None
    raise BadInput(f"{folder} is already there; choose another --output, or remove it")


def _unwritable(folder: Path, error: OSError) -> BadInput:
    return BadInput(f"{folder} cannot be written to ({error.strerror}); choose another --output")


def write_run(folder: Path, title: str, results: Sequence[Result], settings: Mapping[str, Any]) -> None:
    """Write report.html, summary.json and the run's record into a new folder; see `_runs` and `write_folder`."""

    def fill(aside: Path) -> None:
        text = json.dumps([summary(r) for r in results], indent=2)
        (aside / "summary.json").write_text(text + "\n", encoding="utf-8")
        _runs.write(aside, title, results, settings)
        for result in results:
            if export := getattr(find(result.name), "export", None):
                export(result, aside / result.name, settings)
        _report.write(_report.Report(title, results, settings=settings), aside / "report.html")

    write_folder(folder, fill)


def write_folder(folder: Path, fill: Callable[[Path], None]) -> None:
    """Let `fill` write files into a new folder, which appears whole or not at all.

    Raises:
        BadInput: the folder is there, or cannot be written to.
    """
    folder = _absolute(folder)
    aside = _aside(folder)
    try:
        aside.mkdir(parents=True)
        fill(aside)
        aside.rename(folder)
    except OSError as error:
        raise _unwritable(folder, error) from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)
