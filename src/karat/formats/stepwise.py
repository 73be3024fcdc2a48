"""Answers in steps as TRL has them: `prompt`, `completions` (or `steps`), and `labels`, one for each step."""

from collections.abc import Mapping
from typing import Any

from karat.formats._columns import as_number, as_rows, extras, only, prompt, steps, values
from karat.formats._steps import STEP_OPTIONAL, faithful, single, stepped
from karat.types import BadInput, Item, Message, Stepped

_STEPS = ("completions", "steps")
_UNLABELLED = -100.0

NEEDED = (("prompt",), _STEPS, ("labels",))
OPTIONAL = STEP_OPTIONAL
COLUMNS = (
    f"prompt, one of {' or '.join(_STEPS)}, and labels (each true, false, -1, 0 to 1, or null for none);"
    f" optional {', '.join(OPTIONAL)}"
)


def detect(sample: Mapping[str, Any]) -> bool:
    """There are a prompt, steps and their labels."""
    return {"prompt", "labels"} <= sample.keys() and not sample.keys().isdisjoint(_STEPS)


def read(row: Mapping[str, Any], origin: str) -> list[Item]:
    """One answer; a label of null or -100 says nothing."""
    found = steps(row, only(row, _STEPS))
    labels = [_label(value) for value in values(row, "labels")]
    return [stepped(row, prompt(row), [(found, labels)], origin)]


def _label(value: Any) -> float | None:
    found = _UNLABELLED if value is None else as_number(value, "labels")
    if not (0.0 <= found <= 1.0 or found in (-1.0, _UNLABELLED)):
        raise BadInput(
            f"a label is {found:g}, but it has to be true, false, a number from 0 to 1, or -1 for wrong; null says"
            " nothing"
        )
    return None if found == _UNLABELLED else found


def write(item: Stepped) -> dict[str, Any]:
    """The prompt, as a text where it is one, as TRL wants it; the steps and their labels."""
    one, labels = single(item, "stepwise")
    row = {"prompt": _prompt(one.prompt), "completions": list(one.steps), "labels": list(labels)}
    return faithful(row | extras(one, weight=(item.weight, 1.0)), item, read, "stepwise")


def _prompt(messages: tuple[Message, ...]) -> Any:
    """A text that no table takes for JSON, or the messages."""
    text = messages[0].content if len(messages) == 1 and messages[0].role == "user" else "["
    return as_rows(messages) if text.lstrip().startswith("[") else text
