"""Solutions as Math-Shepherd has them: `input` with " ки" after each step, and `label` with + or - in its place.

The prompt is what is before the last "Step 1:" of the first step; each step keeps its "Step k:".
"""

import re
from collections.abc import Mapping
from typing import Any

from karat.formats._columns import as_step, question, text
from karat.formats._steps import STEP_OPTIONAL, about, faithful, optional_text, single, stepped
from karat.types import BadInput, Item, Stepped

NEEDED = (("input",), ("label",))
OPTIONAL = ("task", *STEP_OPTIONAL)
COLUMNS = f'input with " ки" after each step, label, the same with + or -; optional {", ".join(OPTIONAL)}'

_MARK = " ки"
_LABELS = {" +": 1.0, " -": 0.0}
_FIRST = re.compile(r"(?s)(.*)([Ss]tep 1:.*)")


def detect(sample: Mapping[str, Any]) -> bool:
    """Both are texts, of which the input has the mark."""
    return _MARK in str(sample.get("input")) and isinstance(sample.get("label"), str)


def read(row: Mapping[str, Any], origin: str) -> list[Item]:
    """One solution."""
    *parts, end = text(row, "input").split(_MARK)
    if not parts or end.strip():
        raise BadInput(f"`input` has to end in{_MARK}, the mark behind each step")
    labels = _labels(parts, end, text(row, "label"))
    first = _FIRST.fullmatch(parts[0])
    if first is None:
        raise BadInput(f'`input` has no "Step 1:" before its first{_MARK}, so its prompt has no end; add it')
    steps = [as_step(part.strip(), f"step {n} of `input`") for n, part in enumerate([first[2], *parts[1:]], 1)]
    return [stepped(row, first[1].strip(), [(steps, labels)], origin, {"task": optional_text(row, "task")})]


def _labels(parts: list[str], end: str, labelled: str) -> list[float]:
    """The labels behind the parts of a text that is otherwise the same."""
    labels, place = [], 0
    for part in parts:
        label = labelled[place + len(part) :][:2]
        if not labelled.startswith(part, place) or label not in _LABELS:
            break
        labels.append(_LABELS[label])
        place += len(part) + 2
    if len(labels) < len(parts) or labelled[place:].strip() != end.strip():
        raise BadInput(
            f"`label` differs from `input` after {len(labels)} of {len(parts)} steps; it has to be the same text with"
            f" + or - in place of each{_MARK}"
        )
    return labels


def write(item: Stepped) -> dict[str, Any]:
    """The two texts."""
    one, labels = single(item, "math_shepherd")
    if any(label not in (0.0, 1.0) for label in labels):
        raise BadInput("the format math_shepherd holds steps that are right or wrong; use stepwise")
    before = question(one, "math_shepherd", "stepwise")
    sides = (_MARK,) * len(labels), tuple(" +" if label else " -" for label in labels)
    texts = (f"{before} " + "\n".join(map("".join, zip(one.steps, marks, strict=True))) for marks in sides)
    row = dict(zip(("input", "label"), texts, strict=True)) | about(item, ["task"])
    return faithful(row, item, read, "math_shepherd")
