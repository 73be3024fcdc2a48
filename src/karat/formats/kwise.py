"""Several answers to one prompt, ordered: `prompt`, `responses`, and `ranks` (1 is best) or `scores`."""

from collections.abc import Mapping
from typing import Any

from karat.formats._columns import (
    as_number,
    as_rows,
    as_text,
    context,
    extras,
    number,
    only,
    prompt,
    stepless,
    values,
)
from karat.types import BadInput, Example, Item, Ranking

_ORDERS = ("ranks", "scores")

NEEDED = (("prompt",), ("responses",), _ORDERS)
OPTIONAL = ("weight", "context")
COLUMNS = (
    f"prompt, responses, and one of ranks (1 is best) or scores (higher is better); optional {', '.join(OPTIONAL)}"
)


def detect(sample: Mapping[str, Any]) -> bool:
    """There are answers and an order."""
    return {"prompt", "responses"} <= sample.keys() and not sample.keys().isdisjoint(_ORDERS)


def read(row: Mapping[str, Any], origin: str) -> list[Item]:
    """One ranking. Equal ranks or scores are ties; only one of the two columns may have a value."""
    name = only(row, _ORDERS)
    order = [as_number(value, name) for value in values(row, name)]
    ranks = _checked(order) if name == "ranks" else _ranks(order)
    before, shared = prompt(row), context(row)
    answers = tuple(Example(before, as_text(r, "responses"), shared) for r in values(row, "responses"))
    if len(answers) != len(ranks):
        raise BadInput(f"`responses` has {len(answers)} values and `{name}` has {len(ranks)}; they have to match")
    return [Ranking(answers, ranks, number(row, "weight", 1.0), origin)]


def _checked(order: list[float]) -> tuple[int, ...]:
    bad = [rank for rank in order if rank < 1 or rank != int(rank)]
    if bad:
        raise BadInput(f"a rank is {bad[0]:g}, but ranks have to be whole numbers from 1, which is best")
    return tuple(int(rank) for rank in order)


def _ranks(scores: list[float]) -> tuple[int, ...]:
    """1 for the highest score, 2 for the next lower one, and so on."""
    place = {score: rank for rank, score in enumerate(sorted(set(scores), reverse=True), 1)}
    return tuple(place[score] for score in scores)


def write(item: Ranking) -> dict[str, Any]:
    """The answers and their ranks."""
    if not isinstance(item, Ranking):
        raise BadInput(f"the format kwise holds rankings, but this is a {type(item).__name__}")
    first = item.candidates[0]
    if any((c.prompt, c.context) != (first.prompt, first.context) for c in item.candidates):
        raise BadInput("a ranking is written with one prompt and context, but its answers have different ones")
    _checked(list(item.ranks))
    row = {
        "prompt": as_rows(first.prompt),
        "responses": [stepless(c, "kwise").response for c in item.candidates],
        "ranks": list(item.ranks),
    }
    return row | extras(first, weight=(item.weight, 1.0))
