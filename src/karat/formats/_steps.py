"""What the formats of labelled steps share: their items, built from a row and taken apart again."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

from karat.formats._columns import as_text, context, extras, number
from karat.types import BadInput, Example, Message, Stepped

Labels: TypeAlias = Sequence[float | None]
Path: TypeAlias = tuple[Sequence[str], Labels]  # the steps of a branch and their labels
STEP_OPTIONAL = ("weight", "context")


def stepped(
    row: Mapping[str, Any],
    prompt: str | tuple[Message, ...],
    paths: Iterable[Path],
    origin: str,
    about: Mapping[str, Any] | None = None,
) -> Stepped:
    """The item of these branches, with the row's `weight` and `context`; `about` adds to the context what is not None.

    Raises:
        BadInput: a branch has more steps than labels, or fewer.
    """
    known = {name: value for name, value in (about or {}).items() if value is not None}
    shared = {**context(row), **known}
    branches, labels = [], []
    for steps, values in paths:
        branches.append(Example.of_steps(prompt, steps, shared))
        labels.append(tuple(values))
    return Stepped(tuple(branches), tuple(labels), number(row, "weight", 1.0), origin)


def optional_text(row: Mapping[str, Any], name: str) -> str | None:
    """A column's text, None if it has none."""
    value = row.get(name)
    return None if value is None else as_text(value, name)


def first_error(row: Mapping[str, Any], name: str, count: int, default: float | None = None) -> int:
    """A column's place of the first wrong step of `count`, counted from 0, or -1 if none is wrong."""
    value = number(row, name, default)
    if value != int(value) or not -1 <= value < count:
        raise BadInput(
            f"`{name}` is {value:g}, but it has to be the place of the first wrong step, 0 to {count - 1} as there are"
            f" {count} steps, or {'-1' if default is None else 'null'} if none is wrong"
        )
    return int(value)


def labels_until(first: int, count: int) -> Labels:
    """1 before the first wrong step and 0 at it; nothing is said of those behind it. All are 1 where it is -1."""
    right = count if first < 0 else first
    return ([1.0] * right + [0.0] + [None] * count)[:count]


def as_stepped(item: Any, format: str) -> Stepped:
    """The item, if its steps are labelled; raises BadInput otherwise."""
    if not isinstance(item, Stepped):
        raise BadInput(f"the format {format} holds answers with labelled steps, but this is a {type(item).__name__}")
    if any((b.prompt, b.context) != (item.branches[0].prompt, item.branches[0].context) for b in item.branches):
        raise BadInput("a tree is written with one prompt and context, but its branches have different ones")
    return item


def single(item: Any, format: str) -> tuple[Example, Labels]:
    """The one answer of an item, and its labels; raises BadInput if it is another item, or a tree."""
    item = as_stepped(item, format)
    if len(item.branches) > 1:
        raise BadInput(
            f"the format {format} holds one answer in a row, but this is a tree of {len(item.branches)};"
            " use omega_prm or prm800k"
        )
    return item.branches[0], item.labels[0]


def about(item: Stepped, names: Iterable[str], derived: Iterable[str] = ()) -> dict[str, Any]:
    """The columns of `names` that the context has, and the optional ones; those `derived` from others are left out."""
    first = item.branches[0]
    rest = {name: value for name, value in first.context.items() if name not in {*names, *derived}}
    columns = {name: first.context[name] for name in names if name in first.context}
    return columns | extras(replace(first, context=rest), weight=(item.weight, 1.0))


def faithful(
    row: dict[str, Any], item: Stepped, read: Callable[[Mapping[str, Any], str], Sequence[Any]], format: str
) -> dict[str, Any]:
    """The row, if it reads back as the item; raises BadInput otherwise."""
    if list(read(row, "")) != [item]:
        raise BadInput(f"the format {format} would not read this item back as it is; use stepwise or omega_prm")
    return row
