"""Scoring a file: rows in their order, in parts that survive a kill, put together when all are there."""

import hashlib
import json
import math
import shutil
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from karat.formats import base as formats
from karat.formats._columns import renames, unsupported
from karat.progress import track
from karat.rewards.base import RewardModel
from karat.types import BadInput, Example, Result, Unscored

PART = 1000  # rows of a part: what a kill can lose
# What scoring adds; the values give the columns their types, even where all rows of a file are unscored.
RESULT = {"reward": 0.0, "unscored": "", "tokens": 0, "truncated": False, "flags": [""]}
COLUMNS = tuple(RESULT)
_ENDINGS = (".parquet", ".jsonl", ".jsonl.gz")


def check_output(output: Path) -> None:
    """Raise BadInput for an output that could not be written in the end."""
    if not output.name.endswith(_ENDINGS):
        raise BadInput(f"{output} has to end in {', '.join(_ENDINGS)}")
    if output.exists():
        raise BadInput(f"{output} is already there; choose another --output, or remove it")
    if not output.absolute().parent.is_dir():
        raise BadInput(f"{output.absolute().parent} is no folder; make it first")


def score_rows(model: RewardModel, data: str) -> Iterator[dict[str, Any]]:
    """Each row of the data with what its answer scored.

    Raises:
        BadInput: no rows, or columns that hold no answers.
    """
    return _score(model, _rows_of(data), formats.parse_source(data).path)


def _rows_of(data: str) -> list[tuple[int, dict[str, Any]]]:
    rows = formats.rows(data)
    _check_columns({column for _, row in rows for column in row}, formats.parse_source(data).path)
    return rows


def _score(model: RewardModel, rows: list[tuple[int, dict[str, Any]]], path: str) -> Iterator[dict[str, Any]]:
    read = (_example(row, f"{path}:{number}") for number, row in rows)
    for (_, row), result in zip(rows, _scored(model, read), strict=True):
        yield {**_writable(row), **_columns(result)}


def score_file(model: RewardModel, data: str, output: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Score a data file into `output`; how many rows there were and how many were scored.

    A call with the same arguments goes on with the parts that a killed one left in `OUTPUT.parts`.

    Raises:
        BadInput: no rows, columns that hold no answers, or parts of other settings.
    """
    check_output(output)
    numbered, path = _rows_of(data), formats.parse_source(data).path
    parts = output.with_name(output.name + ".parts")
    _claim(
        parts, {"data": data, **settings, "content": _fingerprint(path), "scorer": getattr(model, "fingerprint", "")}
    )
    done = sorted(parts.glob("part-*.jsonl"))
    start = sum(_count(part) for part in done)
    left = len(numbered) - start
    rows = track(_score(model, numbered[start:], path), left, "scored")
    for number in range(len(done), 10**9):
        if not (part := list(islice(rows, PART))):
            break
        formats.write_rows(part, str(parts / f"part-{number:08d}.jsonl"))
    return _put_together(parts, output)


def _scored(model: RewardModel, read: Iterator[Example | Unscored]) -> Iterator[Result]:
    """Results in order, of which unreadable rows never reach the model."""
    while chunk := list(islice(read, PART)):
        results = model.score_many(e for e in chunk if isinstance(e, Example))
        yield from (next(results) if isinstance(e, Example) else e for e in chunk)


def _example(row: dict[str, Any], origin: str) -> Example | Unscored:
    try:
        unsupported(row)
        (example,) = formats.get("examples").read(row, origin)
    except BadInput as error:
        return Unscored(str(error))
    assert isinstance(example, Example)
    return example


def _check_columns(columns: set[str], path: str) -> None:
    if not ({"prompt", "response"} <= columns or "messages" in columns):
        misspelt = renames(sorted(columns), ("prompt", "response", "messages"))
        raise BadInput(
            f"{path} has the columns {', '.join(sorted(columns))}, but answers to score need prompt and response,"
            f" or messages{misspelt and f'; rename {misspelt}'}"
        )
    if taken := [c for c in COLUMNS if c in columns]:
        raise BadInput(f"{path} already has a column {taken[0]!r}, which scoring would overwrite; rename it")


def _writable(value: Any) -> Any:
    """A value as JSON can hold it: no unpaired surrogates, NaN or dates. Answers with surrogates are unscored."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, dict):
        return {_writable(str(name)): _writable(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_writable(part) for part in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int) else str(value)


def _columns(result: Result) -> dict[str, Any]:
    if isinstance(result, Unscored):
        return {**dict.fromkeys(COLUMNS), "unscored": result.reason, "flags": []}
    values = (result.value, None, result.tokens, result.truncated, list(result.flags))
    return dict(zip(COLUMNS, values, strict=True))


def _claim(parts: Path, settings: dict[str, Any]) -> None:
    record = parts / "settings.json"
    text = json.dumps(settings, default=str, sort_keys=True)
    if not any(parts.glob("part-*")):
        if {p.name for p in parts.glob("*") if p.suffix != ".tmp"} - {"settings.json", "settings.json.new"}:
            raise BadInput(f"{parts} is there and holds something else; choose another --output, or remove it")
        try:
            parts.mkdir(exist_ok=True)
            fresh = parts / "settings.json.new"
            fresh.write_text(text, encoding="utf-8")
            fresh.replace(record)  # whole or not at all, whenever the process is killed
        except OSError as error:
            raise BadInput(f"{parts} cannot be written to ({error.strerror}); choose another --output") from None
    elif not record.is_file() or record.read_text(encoding="utf-8") != text:
        raise BadInput(f"{parts} holds rows scored with another model, data or options; remove it to start anew")


def _fingerprint(path: str) -> str:
    file = Path(path)
    if not file.is_file():
        return path
    digest = hashlib.sha256()
    with file.open("rb") as content:
        while block := content.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:16]


def _count(part: Path) -> int:
    with part.open("rb") as lines:
        return sum(1 for _ in lines)


def _rows(parts: Path) -> Iterator[dict[str, Any]]:
    for part in sorted(parts.glob("part-*.jsonl")):
        with part.open(encoding="utf-8") as lines:
            yield from map(json.loads, lines)


def _put_together(parts: Path, output: Path) -> dict[str, Any]:
    scored = rows = 0
    for row in _rows(parts):
        rows += 1
        scored += row["reward"] is not None
    formats.write_rows(_rows(parts), str(output), RESULT)
    shutil.rmtree(parts)
    return {"output": str(output), "rows": rows, "scored": scored}
