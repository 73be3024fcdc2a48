"""Answers with an outcome: `prompt` and `response` (or `steps`), or `messages`, and a `label` (a truth or a number)."""

from collections.abc import Mapping
from typing import Any

from karat.formats._columns import answer, example, extras, has_example, number, only, probability
from karat.types import BadInput, Item, Labelled

_OUTCOMES = ("correct", "is_correct")  # true, false, or a probability
_LABELS = ("label", *_OUTCOMES, "score", "rating")

NEEDED = (("prompt", "messages"), ("response", "steps", "messages"), _LABELS)
OPTIONAL = ("weight", "context")
COLUMNS = f"prompt and response or steps, or messages; one of {', '.join(_LABELS)}; optional {', '.join(OPTIONAL)}"


def detect(sample: Mapping[str, Any]) -> bool:
    """There is an example, and a column for its label."""
    return has_example(sample) and not sample.keys().isdisjoint(_LABELS)


def read(row: Mapping[str, Any], origin: str) -> list[Item]:
    """One labelled answer. Only one of the label columns may have a value."""
    name = only(row, _LABELS)
    label = probability(row, name) if name in _OUTCOMES else number(row, name)
    return [Labelled(example(row), label, number(row, "weight", 1.0), origin)]


def write(item: Labelled) -> dict[str, Any]:
    """The whole conversation, or its prompt and steps, and its label."""
    if not isinstance(item, Labelled):
        raise BadInput(f"the format outcome holds labelled answers, but this is a {type(item).__name__}")
    row = {**answer(item.example), "label": float(item.label)}
    return row | extras(item.example, weight=(item.weight, 1.0))
