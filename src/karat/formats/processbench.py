"""Solutions as ProcessBench has them: `problem`, `steps`, and as `label` the first wrong step from 0 or -1 for none."""

from collections.abc import Mapping
from typing import Any

from karat.formats._columns import as_number, question, steps, text
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
from karat.types import BadInput, Item, Stepped

_ABOUT = ("id", "generator", "final_answer_correct")

NEEDED = (("problem",), ("steps",), ("label",))
OPTIONAL = (*_ABOUT, *STEP_OPTIONAL)
COLUMNS = f"problem, steps, label (place of the first wrong step from 0, or -1); optional {', '.join(OPTIONAL)}"


def detect(sample: Mapping[str, Any]) -> bool:
    """There are a problem, steps and a label."""
    return {"problem", "steps", "label"} <= sample.keys()


def read(row: Mapping[str, Any], origin: str) -> list[Item]:
    """One solution. Steps behind the first wrong one have no label; `first_error` of the context is its place."""
    found = steps(row, "steps")
    first = first_error(row, "label", len(found))
    name = optional_text(row, "id")
    known = {
        "id": name,
        "subset": (name or "").rpartition("-")[0] or None,
        "generator": optional_text(row, "generator"),
        "final_answer_correct": _final(row.get("final_answer_correct")),
        "first_error": first,
    }
    return [stepped(row, text(row, "problem"), [(found, labels_until(first, len(found)))], origin, known)]


def _final(value: Any) -> bool | None:
    found = None if value is None else as_number(value, "final_answer_correct")
    if found not in (None, 0.0, 1.0):
        raise BadInput(f"`final_answer_correct` is {found:g}, but it has to be true or false")
    return None if found is None else found == 1.0


def write(item: Stepped) -> dict[str, Any]:
    """The solution and its first wrong step."""
    one, _ = single(item, "processbench")
    row = {
        "problem": question(one, "processbench", "stepwise"),
        "steps": list(one.steps),
        "label": one.context.get("first_error", -1),
        **about(item, _ABOUT, ["subset", "first_error"]),
    }
    return faithful(row, item, read, "processbench")
