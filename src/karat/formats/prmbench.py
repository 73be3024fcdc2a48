"""Solutions with planted errors as PRMBench has them: `modified_process`, `error_steps` from 1, and `original_process`.

A row is two items, the second of which is the original, right in all its steps: `original` of the context tells them
apart. Each has its own question where the row has one for it.
"""

from collections.abc import Mapping
from typing import Any

from karat.formats._columns import Missing, as_number, question, steps, text, values
from karat.formats._steps import STEP_OPTIONAL, about, faithful, optional_text, single, stepped
from karat.types import BadInput, Item, Stepped

_ABOUT = ("classification", "idx")
_QUESTIONS = ("question", "modified_question", "original_question")

NEEDED = (("modified_process",), ("error_steps",), _QUESTIONS)
OPTIONAL = ("original_process", *_ABOUT, *STEP_OPTIONAL)
COLUMNS = (
    f"modified_process, error_steps (places from 1), one or more of {', '.join(_QUESTIONS)};"
    f" optional {', '.join(OPTIONAL)}"
)


def detect(sample: Mapping[str, Any]) -> bool:
    """There are a changed solution and its errors."""
    return {"modified_process", "error_steps"} <= sample.keys()


def read(row: Mapping[str, Any], origin: str) -> list[Item]:
    """The changed solution, and the original; either may be missing."""
    sides = [name for name in ("modified", "original") if row.get(f"{name}_process") is not None]
    if not sides:
        raise Missing("modified_process")
    return [_side(row, name, origin) for name in sides]


def _side(row: Mapping[str, Any], name: str, origin: str) -> Stepped:
    found = steps(row, f"{name}_process")
    wrong = _errors(row, len(found)) if name == "modified" else ()
    labels = [0.0 if place in wrong else 1.0 for place in range(1, len(found) + 1)]
    asked = text(row, "question" if row.get(f"{name}_question") is None else f"{name}_question")
    known = {column: optional_text(row, column) for column in _ABOUT} | {"original": name == "original"}
    return stepped(row, asked, [(found, labels)], origin, known)


def _errors(row: Mapping[str, Any], count: int) -> set[float]:
    places = {as_number(value, "error_steps") for value in values(row, "error_steps", empty=True)}
    bad = [place for place in sorted(places) if place != int(place) or not 1 <= place <= count]
    if bad:
        raise BadInput(
            f"`error_steps` has {bad[0]:g}, but `modified_process` has {count} steps, counted from 1; remove it"
        )
    return places


def write(item: Stepped) -> dict[str, Any]:
    """The changed solution alone, or the original alone."""
    one, labels = single(item, "prmbench")
    name = "original" if one.context.get("original") else "modified"
    errors = [place for place, label in enumerate(labels, 1) if label == 0.0]
    row = {
        "question": question(one, "prmbench", "stepwise"),
        "modified_process": None,
        "error_steps": errors,
        f"{name}_process": list(one.steps),
        **about(item, _ABOUT, ["original"]),
    }
    return faithful(row, item, read, "prmbench")
