"""OpenAI's PRM800K: `question` with a `problem`, and `label` with `steps`, each of several rated completions.

A line is one tree. Its first branch is the path that was chosen; each rated completion that was not is a branch of its
own, so that a rating counts once. A step that a person wrote has no rating, nor one that was flagged, which is what
labelers did with steps that they could not rate. Completions beside the path that are unrated or blank are left out.
"""

from collections.abc import Mapping
from typing import Any, TypeAlias

from karat.formats._columns import as_number, as_step, as_text, json_value, mapping, question, text
from karat.formats._steps import STEP_OPTIONAL, Path, about, as_stepped, faithful, stepped
from karat.types import BadInput, Item, Stepped

NEEDED = (("question",), ("label",))
OPTIONAL = STEP_OPTIONAL
COLUMNS = f"question with problem, label with steps of rated completions; optional {', '.join(OPTIONAL)}"

_REASON, _ANSWER = "finish_reason", "ground_truth_answer"
_Rated: TypeAlias = tuple[str, float | None]


def detect(sample: Mapping[str, Any]) -> bool:
    """The question holds a problem, and the label holds steps."""
    asked, label = mapping(sample.get("question")) or {}, mapping(sample.get("label")) or {}
    return "problem" in asked and "steps" in label


def read(row: Mapping[str, Any], origin: str) -> list[Item]:
    """One tree. Its context has the `finish_reason` and the `ground_truth_answer`."""
    asked, label = _object(row, "question"), _object(row, "label")
    known = {_REASON: label.get(_REASON), _ANSWER: asked.get(_ANSWER)}
    return [stepped(row, text(asked, "problem"), _paths(label), origin, known)]


def _object(row: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = json_value(row, name)
    if not isinstance(found, Mapping):
        raise BadInput(f"`{name}` has to be an object, but it is {found!r:.60}")
    return found


def _paths(label: Mapping[str, Any]) -> list[Path]:
    """The chosen path, and behind it the others."""
    path: list[_Rated] = []
    others: list[Path] = []
    ended = False
    for number, step in enumerate(_list(label, "steps"), 1):
        chosen, rejected = _step(step, number)
        if ended and (chosen or rejected):
            raise BadInput(f"step {number - 1} of `steps` has no chosen text, but step {number} follows it; choose one")
        before, unsaid = [text for text, _ in path], [None] * len(path)
        others += [([*before, text], [*unsaid, rating]) for text, rating in rejected]
        path += chosen
        ended = not chosen
    first = [([text for text, _ in path], [rating for _, rating in path])] if path else []
    if not (first or others):
        raise BadInput("`label` has no step with a text")
    return first + others


def _list(found: Mapping[str, Any], name: str) -> list[Any]:
    value = found.get(name)
    if value is not None and not isinstance(value, list):
        raise BadInput(f"`{name}` has to be a list, but it is {value!r:.60}")
    return value or []


def _step(step: Any, number: int) -> tuple[list[_Rated], list[_Rated]]:
    """What was chosen (one completion or none), and the other completions with a text and a rating."""
    if not isinstance(step, Mapping):
        raise BadInput(f"step {number} of `steps` has to be an object, but it is {step!r:.60}")
    found, index, human = _list(step, "completions"), step.get("chosen_completion"), step.get("human_completion")
    path: list[_Rated]
    rated = [_rated(one, number) for one in found]
    if index is None:
        path = [] if human is None else [(_rated(human, number)[0], None)]
    elif isinstance(index, int) and 0 <= index < len(rated):
        path = [rated.pop(index)]
    else:
        raise BadInput(f"`chosen_completion` of step {number} is {index!r:.20}, but it has {len(found)} completions")
    for said, _ in path:
        as_step(said, f"step {number} of the chosen path")
    return path, [(said, rating) for said, rating in rated if rating is not None and said.strip()]


def _rated(one: Any, number: int) -> _Rated:
    """The text of a completion, and its rating where it has one that counts."""
    if not isinstance(one, Mapping):
        raise BadInput(f"a completion of step {number} has to be an object with a text, but it is {one!r:.60}")
    said, rating = as_text(one.get("text"), "text"), one.get("rating")
    if rating is None or one.get("flagged"):
        return said, None
    if as_number(rating, "rating") not in (-1.0, 0.0, 1.0):
        raise BadInput(f"a `rating` of step {number} is {rating}, but it has to be -1, 0, 1 or null")
    return said, float(rating)


def write(item: Stepped) -> dict[str, Any]:
    """The question and the rated steps; the chosen completion is the first one."""
    item = as_stepped(item, "prm800k")
    path, *others = zip(item.branches, item.labels, strict=True)
    steps = [_written(0, _completion(*one)) for one in zip(path[0].steps, path[1], strict=True)]
    for branch, labels in others:
        place = min(len(branch.steps) - 1, len(steps))
        if place == len(steps):
            steps.append(_written(None))
        steps[place]["completions"].append(_completion(branch.steps[-1], labels[-1]))
    known = path[0].context
    row = {
        "question": {"problem": question(path[0], "prm800k", "stepwise"), _ANSWER: known.get(_ANSWER)},
        "label": {"steps": steps, _REASON: known.get(_REASON)},
        **about(item, (), (_ANSWER, _REASON)),
    }
    return faithful(row, item, read, "prm800k")


def _written(chosen: int | None, *completions: dict[str, Any]) -> dict[str, Any]:
    return {"completions": list(completions), "human_completion": None, "chosen_completion": chosen}


def _completion(said: str, rating: float | None) -> dict[str, Any]:
    return {"text": said, "rating": None if rating is None else int(rating), "flagged": False}
