"""Rows from files and from datasets of the hub; knows JSON, JSONL, CSV, Parquet and gzip, and not what a row means."""

import csv
import difflib
import gzip
import io
import json
import math
import os
import re
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias, cast

from karat.types import BadInput

Row: TypeAlias = dict[str, Any]
Numbered: TypeAlias = tuple[int, Row]  # the 1-based line, or row where a file has no lines

KINDS = ".jsonl, .json, .csv (each also with .gz) or .parquet"
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
    kind = kind_of(path)
    if not os.path.exists(path) and kind is None and _HUB_ID.fullmatch(path):
        return _hub_rows
    if not os.path.exists(path):
        raise BadInput(f"there is no file {path}{_nearest_file(path)}")
    if kind is None:
        raise BadInput(f"{path} has an unknown ending; rename it to end in {KINDS}")
    return _READERS[kind]


def kind_of(path: str) -> str | None:
    """The ending that says how a file is read and written; None where it is none of those known."""
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

    if kind_of(path) != ".parquet" or not os.path.isfile(path):
        return {}
    return {field.name: field.type for field in pq.read_schema(path)}


@contextmanager
def _opened(path: str) -> Iterator[BinaryIO]:
    try:
        with gzip.open(path) if path.endswith(".gz") else open(path, "rb") as file:
            yield cast(BinaryIO, file)
    except (OSError, EOFError, zlib.error) as error:
        raise BadInput(f"{path} cannot be read ({brief(error)}); check that it is whole and readable") from error


def brief(error: Exception) -> str:
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
        raise BadInput(f"{path}:{line}: this JSON cannot be read ({brief(error)}); {mend}") from error


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
        raise BadInput(f"{path}:{reader.line_num}: this is not CSV ({brief(error)}); {mend}") from error


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
        raise BadInput(f"{path} cannot be read as Parquet ({brief(error)}); check that it is whole") from error


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
        raise BadInput(f"{path} is no file and cannot be had from the hub ({brief(error)}); {mend}") from error
    for number, row in enumerate(data, 1):
        yield number, _with_cells(row)


_READERS: dict[str, Callable[[str], Iterator[Numbered]]] = {
    ".jsonl": _jsonl_rows,
    ".json": _json_rows,
    ".csv": _csv_rows,
    ".parquet": _parquet_rows,
}
