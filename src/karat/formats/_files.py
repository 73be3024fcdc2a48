"""Rows from files and rows to files; knows JSON, JSONL, CSV, Parquet and gzip, and nothing of what a row means."""

import base64
import csv
import datetime
import difflib
import gzip
import io
import json
import math
import os
import re
import secrets
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias, cast

from karat.types import BadInput

Row: TypeAlias = dict[str, Any]
Numbered: TypeAlias = tuple[int, Row]  # the 1-based line, or row where a file has no lines

_KINDS = ".jsonl, .json, .csv (each also with .gz) or .parquet"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(:[\w.-]+){0,2}")


class Cell(str):
    """Text of a cell in a table: where a list, a mapping or a number is wanted, it may be JSON text."""

    __slots__ = ()


def read_rows(path: str) -> Iterator[Numbered]:
    """The rows of a file, or of a dataset `owner/name[[:config]:split]` of the hub if there is no such file.

    Raises:
        BadInput: it cannot be read, has no rows, or a row is no object.
    """
    empty = True
    for number, row in _reader(path)(path):
        empty = False
        yield number, row
    if empty:
        raise BadInput(f"{path} has no rows; give a file with at least one")


def _reader(path: str) -> Callable[[str], Iterator[Numbered]]:
    if os.path.isdir(path):
        raise BadInput(f"{path} is a folder; give one of its files")
    kind = _kind(path)
    if not os.path.exists(path) and kind is None and _HUB_ID.fullmatch(path):
        return _hub_rows
    if not os.path.exists(path):
        raise BadInput(f"there is no file {path}{_nearest_file(path)}")
    if kind is None:
        raise BadInput(f"{path} has an unknown ending; rename it to end in {_KINDS}")
    return _READERS[kind]


def _kind(path: str) -> str | None:
    name = Path(path).name
    suffix = Path(name.removesuffix(".gz")).suffix.lower()
    return suffix if suffix in _READERS and not (suffix == ".parquet" and name.endswith(".gz")) else None


def _nearest_file(path: str) -> str:
    folder = Path(path).parent
    beside = [p.name for p in folder.iterdir()] if folder.is_dir() else []
    near = difflib.get_close_matches(Path(path).name, beside, n=1)
    if near:
        return f"; the nearest is {folder / near[0]}"
    return "; check the path" if beside else f"; there is nothing in {folder}"


def without_nan(row: Row) -> Row:
    """The row with None for each number that is NaN, which is how tables say that a value is missing."""
    return {column: None if isinstance(v, float) and math.isnan(v) else v for column, v in row.items()}


def parquet_types(path: str) -> dict[str, Any]:
    """The Arrow type of each column of a Parquet file; none for any other kind."""
    import pyarrow.parquet as pq

    if _kind(path) != ".parquet" or not os.path.isfile(path):
        return {}
    return {field.name: field.type for field in pq.read_schema(path)}


# Reading


@contextmanager
def _opened(path: str) -> Iterator[BinaryIO]:
    try:
        with gzip.open(path) if path.endswith(".gz") else open(path, "rb") as file:
            yield cast(BinaryIO, file)
    except (OSError, EOFError, zlib.error) as error:
        raise BadInput(f"{path} cannot be read ({_brief(error)}); check that it is whole and readable") from error


def _brief(error: Exception) -> str:
    """The first line of an error's text, without a full stop."""
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    return text.rstrip(". ")


def _decoded(raw: bytes, path: str, line: int = 1, offset: int = 0) -> str:
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line += raw.count(b"\n", 0, error.start)
        place = f"{path}:{line}: byte {offset + error.start}"
        raise BadInput(f"{place} of the file is not UTF-8; convert the file to UTF-8") from error
    return text.removeprefix("\ufeff") if offset == 0 else text


def _whole_text(path: str) -> str:
    with _opened(path) as file:
        return _decoded(file.read(), path)


def _parsed(text: str, path: str, line: int, mend: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = f"{path}:{line + error.lineno - 1}:{error.colno}"
        raise BadInput(f"{place}: this is not JSON ({error.msg}); {mend}") from error
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{path}:{line}: this JSON cannot be read ({_brief(error)}); {mend}") from error


def _as_row(value: Any, path: str, number: int) -> Row:
    if not isinstance(value, dict):
        raise BadInput(f"{path}:{number}: a row has to be a JSON object, but this is {_json_type(value)}")
    return value


def _json_type(value: Any) -> str:
    found = {list: "an array", dict: "an object", str: "a text", bool: "a boolean", type(None): "null"}
    return found.get(type(value), "a number")


def _jsonl_rows(path: str) -> Iterator[Numbered]:
    offset = 0
    with _opened(path) as file:
        for number, line in enumerate(file, 1):
            text = _decoded(line, path, number, offset).rstrip("\r\n")
            offset += len(line)
            if text.strip():
                value = _parsed(text, path, number, "put one JSON object on each line")
                yield number, _as_row(value, path, number)


def _json_rows(path: str) -> Iterator[Numbered]:
    text = _whole_text(path)
    if not text.strip():
        return
    mend = "a .json file is one array of objects, and a file with one object per line ends in .jsonl"
    values = _parsed(text, path, 1, mend)
    if not isinstance(values, list):
        raise BadInput(f"{path} holds {_json_type(values)}; {mend}")
    for number, value in enumerate(values, 1):
        yield number, _as_row(value, path, number)


def _csv_rows(path: str) -> Iterator[Numbered]:
    csv.field_size_limit(sys.maxsize)  # the default refuses answers over 128 KiB
    reader = csv.reader(io.StringIO(_whole_text(path), newline=""), strict=True)
    try:
        header = _header(next(reader, []), path)
        end = reader.line_num
        for cells in reader:
            start, end = end + 1, reader.line_num
            if cells:
                yield start, _csv_row(header, cells, f"{path}:{start}")
    except csv.Error as error:
        mend = 'write a quote inside a cell as ""'
        raise BadInput(f"{path}:{reader.line_num}: this is not CSV ({_brief(error)}); {mend}") from error


def _header(header: list[str], path: str) -> list[str]:
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise BadInput(f"{path}:1: the column {twice[0]!r} is there twice; rename one of the two")
    return header


def _csv_row(header: list[str], cells: list[str], origin: str) -> Row:
    if len(cells) != len(header):
        counts = f"{len(cells)} cells, but the header has {len(header)}"
        raise BadInput(f"{origin}: this row has {counts}; quote cells that hold commas or line ends")
    return {name: Cell(cell) if cell else None for name, cell in zip(header, cells, strict=True)}


def _parquet_rows(path: str) -> Iterator[Numbered]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(1024):
                for row in batch.to_pylist():
                    number += 1
                    yield number, _with_cells(row)
    except (pa.ArrowException, OSError) as error:
        raise BadInput(f"{path} cannot be read as Parquet ({_brief(error)}); check that it is whole") from error


def _with_cells(row: Row) -> Row:
    return {column: Cell(value) if isinstance(value, str) else value for column, value in row.items()}


def _hub_rows(path: str) -> Iterator[Numbered]:
    import datasets

    name, *words = path.split(":")
    split = words.pop() if words else "train"
    try:
        data = datasets.load_dataset(name, *words, split=split)
    except Exception as error:
        mend = "check the path, the connection, or the split in OWNER/NAME:SPLIT or OWNER/NAME:CONFIG:SPLIT"
        raise BadInput(f"{path} is no file and cannot be had from the hub ({_brief(error)}); {mend}") from error
    for number, row in enumerate(data, 1):
        yield number, _with_cells(row)


_READERS: dict[str, Callable[[str], Iterator[Numbered]]] = {
    ".jsonl": _jsonl_rows,
    ".json": _json_rows,
    ".csv": _csv_rows,
    ".parquet": _parquet_rows,
}


# Writing


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
    kind = _kind(path)
    if kind is None:
        raise BadInput(f"{path} has an unknown ending; choose a name that ends in {_KINDS}")
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
        raise BadInput(f"{path} cannot be written ({_brief(error)}); choose another place") from error
    finally:
        temporary.unlink(missing_ok=True)


def _json_text(value: Any, number: int) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, default=_as_json)
        text.encode("utf-8")
    except (ValueError, TypeError, RecursionError) as error:
        raise BadInput(f"item {number} cannot be written as JSON ({_brief(error)}); use JSON's values only") from error
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
        raise BadInput(f"these items do not fit a Parquet table ({_brief(error)}); write .jsonl") from error
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
