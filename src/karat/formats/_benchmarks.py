"""What the formats of benchmarks share: columns that go into the context, lists of answers, and faithful writing."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from karat.formats._columns import as_text, context, json_value, mapping, number, values
from karat.formats._reading import Cell
from karat.types import BadInput, Example, Item, Message, Ranking, as_messages

PLACE = "place"  # of the better answer among two that stand in no telling order, 1 or 2: in the context of a pair
_STOP = re.compile(r"[^A-Za-z0-9]+")


def about(row: Mapping[str, Any], names: Iterable[str], **more: Any) -> dict[str, Any]:
    """The context of a row, with the columns of these names that have a value, and what else is not None."""
    found = {name: row[name] for name in names if row.get(name) is not None}
    plain = {name: str(value) if isinstance(value, Cell) else value for name, value in found.items()}
    return {**context(row), **plain, **{name: value for name, value in more.items() if value is not None}}


def texts(row: Mapping[str, Any], name: str) -> list[str]:
    """A column's list of texts, at least one."""
    return [as_text(value, name) for value in values(row, name)]


def is_texts(sample: Mapping[str, Any], name: str) -> bool:
    """Whether a column holds a list of texts; in a table, as JSON."""
    value = None if sample.get(name) is None else json_value(sample, name)
    return isinstance(value, list) and bool(value) and all(isinstance(one, str) for one in value)


def right_and_wrong(
    row: Mapping[str, Any], prompt: tuple[Message, ...], shared: Mapping[str, Any], origin: str
) -> Ranking:
    """The answers in `chosen`, of rank 1, and then those in `rejected`, of rank 2."""
    chosen, rejected = texts(row, "chosen"), texts(row, "rejected")
    answers = tuple(Example(prompt, text, shared) for text in chosen + rejected)
    ranks = (1,) * len(chosen) + (2,) * len(rejected)
    return Ranking(answers, ranks, number(row, "weight", 1.0), origin)


def options(row: Mapping[str, Any], name: str) -> dict[str, int]:
    """Answers with 1 for a true one and 0 for a false one: a mapping, or Hugging Face's `choices` and `labels`.

    Raises:
        BadInput: there is none, the two lists do not match, or a label is neither 0 nor 1.
    """
    found = mapping(json_value(row, name))
    if found is None:
        raise BadInput(f"`{name}` has to be a mapping from answers to 0 or 1")
    if {"choices", "labels"} <= found.keys():
        choices, labels = values(found, "choices"), values(found, "labels")
        if len(choices) != len(labels):
            raise BadInput(f"`{name}` has {len(choices)} choices and {len(labels)} labels; they have to match")
        pairs = list(zip(choices, labels, strict=True))
    else:
        pairs = [(choice, label) for choice, label in found.items() if label is not None]  # Parquet fills structs up
    bad = [label for _, label in pairs if label not in (0, 1)]
    if bad or not pairs:
        raise BadInput(f"`{name}` has to give each answer 0 or 1, but it holds {(bad or ['no answer'])[0]!r:.60}")
    return {as_text(choice, name): int(label) for choice, label in pairs}


def named_in(origin: str, names: Iterable[str]) -> str | None:
    """The one of some names that is part of a file's path, a split or a folder; the longest where several are."""
    words = f" {_STOP.sub(' ', origin)} ".lower()
    found = [name for name in names if f" {_STOP.sub(' ', name)} ".lower() in words]
    return max(found, key=len, default=None)


def columns(item: Item, one: Example, names: Iterable[str], derived: Iterable[str] = ()) -> dict[str, Any]:
    """The columns of these names that the context has, `context` for the rest but what is derived, and the weight."""
    kept = {name: one.context[name] for name in names if name in one.context}
    rest = {name: value for name, value in one.context.items() if name not in {*names, *derived}}
    weight = {} if item.weight == 1.0 else {"weight": float(item.weight)}
    return kept | ({"context": rest} if rest else {}) | weight


def faithful(
    row: dict[str, Any], item: Item, read: Callable[[Mapping[str, Any], str], Sequence[Any]], format: str, other: str
) -> dict[str, Any]:
    """The row, if it reads back as the item; raises BadInput that names the `other` format otherwise."""
    try:
        same = list(read(row, item.origin)) == [item]
    except BadInput:
        same = False
    if not same:
        raise BadInput(f"the format {format} would not read this item back as it is; use {other}")
    return row


def asked(item: Item, one: Example, format: str, other: str) -> str:
    """The text of a prompt that is one user message; raises BadInput that names the `other` format if it is not."""
    if len(one.prompt) != 1 or one.prompt != as_messages(one.prompt[0].content):
        raise BadInput(f"the format {format} holds one user message as its prompt; use {other}")
    return one.prompt[0].content
