"""Rows to files, whole or not at all; knows JSON, JSONL, CSV, Parquet and gzip, and not what a row means."""

import base64
import csv
import datetime
import gzip
import io
import json
import os
import secrets
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any, BinaryIO

from karat.formats._reading import KINDS, Row, brief, kind_of
from karat.types import BadInput


def write_rows(rows: Iterable[Row], path: str, like: Row | None = None) -> int:
    """Writes rows to a file of the kind that its name says, whole or not at all; returns how many.

    A Parquet column whose values share no type is written as text: texts as they are, the others as JSON.

    Args:
        rows: what to write.
        path: where to.
        like: values, or Arrow types, that fix the types of their columns in Parquet, whatever the rows hold.

    Raises:
        BadInput: there are no rows, the kind cannot hold one, or the file cannot be written.
    """
    kind = kind_of(path)
    if kind is None:
        raise BadInput(f"{path} has an unknown ending; choose a name that ends in {KINDS}")
    with _replacing(path) as file:
        count = _write_parquet(rows, file, like or {}) if kind == ".parquet" else _WRITERS[kind](rows, file)
        if count == 0:
            raise BadInput(f"there are no rows to write to {path}; a data file has at least one")
    return count


def write_lines(lines: Iterable[str], path: str) -> None:
    """Writes lines of text to a file, whole or not at all; gzipped if its name ends in .gz.

    Raises:
        BadInput: the file cannot be written.
    """
    with _replacing(path) as file:
        file.writelines(line.encode("utf-8") + b"\n" for line in lines)


def json_line(value: Any) -> str:
    """A value as one line of JSON; an unpaired surrogate, which UTF-8 cannot hold, stays an escape as it was read."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, default=_as_json)
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _as_json(value: Any) -> str:
    """What JSON has no type for, as text: dates and times in ISO 8601, binaries in base64, decimals by their digits."""
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    if isinstance(value, Decimal | datetime.timedelta):
        return str(value)
    raise TypeError(f"{type(value).__name__} is no type of JSON")


@contextmanager
def _replacing(path: str) -> Iterator[BinaryIO]:
    """A file to write to that takes the name `path` when all went well and is gone otherwise."""
    final = Path(path)
    if not final.parent.is_dir():
        raise BadInput(f"{path} cannot be written, as there is no folder {final.parent}; create it first")
    temporary = final.with_name(f".{secrets.token_hex(4)}.tmp")
    try:
        with ExitStack() as stack:
            file: Any = stack.enter_context(open(temporary, "wb"))
            if path.endswith(".gz"):
                file = stack.enter_context(gzip.GzipFile("", "wb", fileobj=file, mtime=0))
            yield file
        os.replace(temporary, final)
    except OSError as error:
        raise BadInput(f"{path} cannot be written ({brief(error)}); choose another place") from error
    finally:
        temporary.unlink(missing_ok=True)


def _json_text(value: Any, number: int) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, default=_as_json)
        text.encode("utf-8")
    except (ValueError, TypeError, RecursionError) as error:
        raise BadInput(f"item {number} cannot be written as JSON ({brief(error)}); use JSON's values only") from error
    return text


def _write_jsonl(rows: Iterable[Row], file: BinaryIO) -> int:
    number = 0
    for number, row in enumerate(rows, 1):
        file.write(_json_text(row, number).encode("utf-8") + b"\n")
    return number


def _write_json(rows: Iterable[Row], file: BinaryIO) -> int:
    number = 0
    for number, row in enumerate(rows, 1):
        file.write((b"[\n" if number == 1 else b",\n") + _json_text(row, number).encode("utf-8"))
    file.write(b"\n]\n")
    return number


def _write_csv(rows: Iterable[Row], file: BinaryIO) -> int:
    table = list(rows)
    columns = _columns(table)
    text = io.TextIOWrapper(file, encoding="utf-8", newline="")
    writer = csv.writer(text)  # rows end in \r\n, so that a cell with either character is quoted
    writer.writerow(columns)
    for number, row in enumerate(table, 1):
        writer.writerow([_csv_cell(row.get(column), column, number) for column in columns])
    text.detach()
    return len(table)


def _csv_cell(value: Any, column: str, number: int) -> str:
    if value == "":
        raise BadInput(
            f"item {number}: in CSV an empty `{column}` cannot be told from a missing one; write .jsonl or .parquet"
        )
    if value is None:
        return ""
    text = _json_text(value, number)
    return value if isinstance(value, str) else text


def _write_parquet(rows: Iterable[Row], file: BinaryIO, like: Row) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = list(rows)
    columns = {name: [_checked(row.get(name), n) for n, row in enumerate(table, 1)] for name in _columns(table)}
    arrays = {name: _array(values, like.get(name)) for name, values in columns.items()}
    mixed = [name for name, array in arrays.items() if array is None]
    if mixed:
        print(
            f"karat: the values of {', '.join(mixed)} have no common Parquet type, or none at all,"
            " so each is written as text, and as JSON where it is none",
            file=sys.stderr,
        )
    texts = {name: pa.array([_as_text(v, n) for n, v in enumerate(columns[name], 1)]) for name in mixed}
    try:
        pq.write_table(pa.table({**arrays, **texts}), file)
    except pa.ArrowException as error:
        raise BadInput(f"these items do not fit a Parquet table ({brief(error)}); write .jsonl") from error
    return len(table)


def _checked(value: Any, number: int) -> Any:
    """The value, if JSON could hold it; raises BadInput otherwise."""
    _json_text(value, number)
    return value


def _array(values: list[Any], like: Any) -> Any:
    """The values as an Arrow array, of the type of `like` unless that is None; None if they share no type."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        array = pa.array(values, like if like is None or isinstance(like, pa.DataType) else pa.infer_type([like]))
        pq.write_table(pa.table({"": array[:0]}), pa.BufferOutputStream())  # Parquet has no empty structs
    except (pa.ArrowException, OverflowError):  # the latter for integers of more than 64 bits
        return None
    # The rows of a struct share one set of keys: mappings with other keys would come back with more than they had.
    kept = like is not None or not any(isinstance(v, dict) for v in values) or array.to_pylist() == values
    return array if kept else None


def _as_text(value: Any, number: int) -> str | None:
    return value if value is None or isinstance(value, str) else _json_text(value, number)


def _columns(rows: Iterable[Row]) -> list[str]:
    return list(dict.fromkeys(column for row in rows for column in row))


_WRITERS: dict[str, Callable[[Iterable[Row], BinaryIO], int]] = {
    ".jsonl": _write_jsonl,
    ".json": _write_json,
    ".csv": _write_csv,
}
