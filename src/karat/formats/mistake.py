"""Answers as BIG-Bench-Mistake has them: `input`, `steps`, and `mistake_index`, the first wrong step from 0 or null."""

from collections.abc import Mapping
from typing import Any

from karat.formats._columns import question, steps, text
from karat.formats._steps import (
    STEP_OPTIONAL,
    about,
    faithful,
    first_error,
    labels_until,
    optional_text,
    single,
    stepped,
)
from karat.types import Item, Stepped

_ABOUT = ("target", "answer", "task")

NEEDED = (("input",), ("steps",), ("mistake_index",))
OPTIONAL = (*_ABOUT, *STEP_OPTIONAL)
COLUMNS = f"input, steps, mistake_index (place of the first wrong step from 0, or null); optional {', '.join(OPTIONAL)}"


def detect(sample: Mapping[str, Any]) -> bool:
    """There are an input, steps and the place of a mistake."""
    return {"input", "steps", "mistake_index"} <= sample.keys()


def read(row: Mapping[str, Any], origin: str) -> list[Item]:
    """One answer. Steps behind the mistake have no label; `first_error` of the context is its place, or -1."""
    found = steps(row, "steps")
    first = first_error(row, "mistake_index", len(found), -1.0)
    known = {name: optional_text(row, name) for name in _ABOUT} | {"first_error": first}
    return [stepped(row, text(row, "input"), [(found, labels_until(first, len(found)))], origin, known)]


def write(item: Stepped) -> dict[str, Any]:
    """The answer and its mistake."""
    one, _ = single(item, "mistake")
    first = one.context.get("first_error", -1)
    row = {
        "input": question(one, "mistake", "stepwise"),
        "steps": list(one.steps),
        "mistake_index": None if first == -1 else first,
        **about(item, _ABOUT, ["first_error"]),
    }
    return faithful(row, item, read, "mistake")
