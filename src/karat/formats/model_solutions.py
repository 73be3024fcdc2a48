"""Solutions of several models to one question, as GSM8K has them: objects with `is_correct` and `solution`."""

from collections.abc import Mapping
from typing import Any

from karat.formats._columns import context, extras, mapping, number, probability, question, stepless, text
from karat.types import BadInput, Example, Item, Labelled, as_messages

NEEDED = (("question",),)
OPTIONAL = ("weight", "context")
COLUMNS = (
    f"question, and for each model a column of any name with is_correct and solution; optional {', '.join(OPTIONAL)}"
)


def detect(sample: Mapping[str, Any]) -> bool:
    """There is a question and at least one solution."""
    return "question" in sample and bool(_solutions(sample))


def _solutions(row: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    found = (mapping(value) for name, value in row.items() if name != "context")
    return [value for value in found if value is not None and {"is_correct", "solution"} <= value.keys()]


def read(row: Mapping[str, Any], origin: str) -> list[Item]:
    """One labelled answer for each model, in the order of the columns; a model without an object has none."""
    before, shared = as_messages(text(row, "question")), context(row)
    weight = number(row, "weight", 1.0)
    found = _solutions(row)
    if not found:
        raise BadInput("there is no object with `is_correct` and `solution`")
    return [
        Labelled(Example(before, text(one, "solution"), shared), probability(one, "is_correct"), weight, origin)
        for one in found
    ]


def write(item: Labelled) -> dict[str, Any]:
    """A question with one solution; the names of models are not kept."""
    if not isinstance(item, Labelled):
        raise BadInput(f"the format model_solutions holds labelled answers, but this is a {type(item).__name__}")
    if item.label not in (0.0, 1.0):
        raise BadInput(f"the format model_solutions holds right or wrong, but a label is {item.label:g}; use outcome")
    one = stepless(item.example, "model_solutions")
    solution = {"is_correct": item.label == 1.0, "solution": one.response}
    asked = question(one, "model_solutions", "outcome")
    return {"question": asked, "model": solution} | extras(one, weight=(item.weight, 1.0))
