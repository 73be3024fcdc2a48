"""Answers to score, without a label: `prompt` and `response` (or `steps`), or `messages`, whose last one is scored."""

from collections.abc import Mapping
from typing import Any

from karat.formats._columns import answer, example, extras, has_example
from karat.types import BadInput, Example

NEEDED = (("prompt", "messages"), ("response", "steps", "messages"))
OPTIONAL = ("context",)
COLUMNS = f"prompt and response or steps, or messages; optional {', '.join(OPTIONAL)}"
FALLBACK = True  # any format that finds more in the columns is meant


def detect(sample: Mapping[str, Any]) -> bool:
    """There is an example, labelled or not."""
    return has_example(sample)


def read(row: Mapping[str, Any], origin: str) -> list[Example]:
    """One example."""
    return [example(row)]


def write(item: Example) -> dict[str, Any]:
    """The whole conversation, or its prompt and steps."""
    if not isinstance(item, Example):
        raise BadInput(f"the format examples holds unlabelled answers, but this is a {type(item).__name__}")
    return answer(item) | extras(item)
