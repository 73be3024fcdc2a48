"""The contract of a data format, how formats are found, and how a file becomes items and back.

A member is a module of this folder. Its file name is the word a user types, and the first line of its docstring is
what `karat formats` prints. Nothing here knows about tokens or tensors; pyarrow and datasets are imported on use.
"""

import difflib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, Protocol, TypeAlias, cast

from karat import members
from karat.formats._columns import Missing, is_nan, renames, slip, unsupported
from karat.formats._reading import Row, parquet_types, read_rows, without_nan
from karat.formats._sources import Source, mix, parse_source, prompt_key, select, split_by_prompt
from karat.formats._writing import json_line, write_lines, write_rows
from karat.types import BadInput, Example, Item

__all__ = [
    "Entry",
    "Format",
    "Loaded",
    "Problem",
    "Source",
    "describe",
    "detect",
    "get",
    "json_line",
    "known_columns",
    "load",
    "mix",
    "names",
    "parquet_types",
    "parse_source",
    "prompt_key",
    "rows",
    "split_by_prompt",
    "stream",
    "unsupported",
    "write",
    "write_lines",
    "write_rows",
]

Entry: TypeAlias = Item | Example
_FIRST = 1000  # rows that the format of a stream is told from


class Format(Protocol):
    """What a member module offers. A member may also set `FALLBACK = True`: it yields to any other that fits."""

    COLUMNS: str  # the columns it expects, for people
    NEEDED: tuple[tuple[str, ...], ...]  # for each column that it needs, the names that it may have
    OPTIONAL: tuple[str, ...]

    def detect(self, sample: Mapping[str, Any], /) -> bool:
        """Whether a file whose columns hold values like those of `sample` is of this format."""
        ...

    def read(self, row: Mapping[str, Any], origin: str, /) -> Sequence[Entry]:
        """The items of one row, at least one; raises BadInput if the row cannot be used."""
        ...

    def write(self, item: Any, /) -> Row:
        """The row that reads back as `item`, any `Entry`; raises BadInput if this format cannot hold it."""
        ...


@dataclass(frozen=True, slots=True)
class Problem:
    """A row that cannot be used, and why."""

    origin: str  # "file:line"
    reason: str

    def __str__(self) -> str:
        return f"{self.origin}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a source held: every selected row is either in `items` or in `problems`."""

    items: list[Entry]
    problems: list[Problem]
    format: str
    rows: int  # rows read, after the slice
    source: Source


def names() -> list[str]:
    """The formats, by name."""
    return list(describe())


def describe() -> dict[str, str]:
    """One sentence for each format, read from its file without importing it."""
    return members.describe("formats")


def get(name: str) -> Format:
    """The format of that name.

    Raises:
        BadInput: there is none; the message names the nearest.
    """
    if name not in describe():
        close = difflib.get_close_matches(name, names(), n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise BadInput(f"no format {name!r}{hint} (karat formats lists them)")
    return cast(Format, members.load("formats", name, "format"))


def detect(sample: Mapping[str, Any], where: str = "the data") -> str:
    """The one format that columns like those of `sample` fit.

    Args:
        sample: a value for each column, None where a column is empty.
        where: what the error message calls the data.

    Raises:
        BadInput: no format fits, or several do.
    """
    fitting = [name for name in names() if get(name).detect(sample)]
    fitting = [name for name in fitting if not getattr(get(name), "FALLBACK", False)] or fitting
    if len(fitting) == 1:
        return fitting[0]
    columns = ", ".join(sample) or "none"
    if fitting:
        raise BadInput(f"{where} has the columns {columns}, which fit {' and '.join(fitting)}; name the format")
    near = _nearest(sample)
    misspelt = renames(sample, known_columns())
    mend = f"rename {misspelt}, or all" if misspelt else "rename them"
    raise BadInput(
        f"{where} has the columns {columns}, which fit no format; {mend} to those of {near} ({get(near).COLUMNS}), or"
        " of another that karat formats lists"
    )


def known_columns(format: str | None = None) -> set[str]:
    """The columns that a format reads, or any of them."""
    found = [get(name) for name in ([format] if format else names())]
    return {word for one in found for words in (*one.NEEDED, one.OPTIONAL) for word in words}


def _nearest(columns: Iterable[str]) -> str:
    """The format whose columns read most like these."""
    found = list(columns)

    def likeness(name: str) -> float:
        words = known_columns(name)
        return sum(max(difflib.SequenceMatcher(None, c, w).ratio() ** 4 for w in words) for c in found)

    return max(names(), key=likeness)


def load(source: Source | str | os.PathLike[str], format: str | None = None) -> Loaded:
    """The items of a data source, and its rows that cannot be used.

    Args:
        source: a `Source` or its text, `PATH[SLICE][@WEIGHT]`; the weight is kept for `mix`, not applied.
        format: a name of `names()`; detected from the columns if None.

    Raises:
        BadInput: the file cannot be read, its format cannot be told, a column is misspelt, or no row can be used.
    """
    source = source if isinstance(source, Source) else parse_source(os.fspath(source))
    if format is not None:
        get(format)
    selected = select(read_rows(source.path), source)
    sample = _sample(without_nan(row) for _, row in selected)
    name = detect(sample, source.path) if format is None else format
    _check_spelling(list(sample), name, source.path)
    items: list[Entry] = []
    problems: list[Problem] = []
    for found in _read(get(name), selected, list(sample), source.path):
        problems.append(found) if isinstance(found, Problem) else items.append(found)
    if not items:
        raise BadInput(
            f"none of the {len(selected)} rows of {source} can be used as {name}; the first is {problems[0]}"
            f"{'' if format is None else _fitting(sample)}"
        )
    return Loaded(items, problems, name, len(selected), source)


def _fitting(sample: Mapping[str, Any]) -> str:
    """What is said of columns that fit one format, where another was named that they do not fit."""
    try:
        return f"; its columns are those of {detect(sample)}"
    except BadInput:
        return ""


def stream(source: Source, format: str | None = None) -> Iterator[Entry | Problem]:
    """What `load` finds, row after row, without holding the file; the format is told from its first 1,000 rows.

    Raises:
        BadInput: as `load`, and for a slice that counts from the end.
    """
    rows = islice(read_rows(source.path), source.start, source.first().stop)
    first = list(islice(rows, _FIRST))
    sample = _sample(without_nan(row) for _, row in first)
    name = detect(sample, source.path) if format is None else format
    _check_spelling(list(sample), name, source.path)
    yield from _read(get(name), chain(first, rows), list(sample), source.path)


def _check_spelling(columns: Sequence[str], format: str, path: str) -> None:
    """Raise BadInput for a misspelt column, which would pass for one that is not there."""
    chosen = get(format)
    fallback = getattr(chosen, "FALLBACK", False)  # a misspelt column may be why no other format fits
    wanted = {word for one in (map(get, names()) if fallback else [chosen]) for word in _wanted(one, columns)}
    if found := slip(columns, wanted) or slip(columns, chosen.OPTIONAL, loose=True):
        raise BadInput(f"{path} has a column {found[0]!r}; did you mean {found[1]!r}? Rename it, or remove it")


def _wanted(format: Format, columns: Sequence[str]) -> tuple[str, ...]:
    """The names of the one column that a format lacks; none where it lacks no column, or several."""
    lacking = [names for names in format.NEEDED if set(names).isdisjoint(columns)]
    return lacking[0] if len(lacking) == 1 < len(format.NEEDED) else ()


def rows(source: Source | str | os.PathLike[str]) -> list[tuple[int, Row]]:
    """The selected rows of a source as they stand, each with its line or row number; None where a number is NaN.

    Raises:
        BadInput: the file cannot be read or holds no rows.
    """
    source = source if isinstance(source, Source) else parse_source(os.fspath(source))
    return [(number, without_nan(row)) for number, row in select(read_rows(source.path), source)]


def _sample(rows: Iterable[Row]) -> Row:
    """For each column its first value that is not missing."""
    sample: Row = {}
    for row in rows:
        for column, value in row.items():
            if sample.get(column) is None:
                sample[column] = value
    return sample


def _read(format: Format, rows: Iterable[tuple[int, Row]], columns: list[str], path: str) -> Iterator[Entry | Problem]:
    for number, row in rows:
        origin, clean = f"{path}:{number}", without_nan(row)
        try:
            unsupported(row)
            yield from format.read({**dict.fromkeys(columns), **clean}, origin)
        except Missing as error:
            nan = [name for name in error.names if is_nan(row.get(name))]
            yield Problem(origin, f"`{nan[0]}` is NaN, which is no value" if nan else str(error))
        except BadInput as error:
            yield Problem(origin, str(error).removeprefix(f"{origin}: "))


def write(items: Iterable[Entry], path: str | os.PathLike[str], format: str) -> int:
    """Writes items so that `load(path, format).items` equals them, and returns how many rows that took.

    The file appears whole or not at all. Its kind follows from its name: .jsonl, .json, .csv (each also with .gz)
    or .parquet.

    Raises:
        BadInput: the format or the kind of file cannot hold an item, or the file cannot be written.
    """
    return write_rows(_rows(get(format), items), os.fspath(path))


def _rows(format: Format, items: Iterable[Entry]) -> Iterator[Row]:
    for number, item in enumerate(items, 1):
        try:
            yield format.write(item)
        except BadInput as error:
            raise BadInput(f"item {number}: {error}") from error
