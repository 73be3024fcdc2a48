"""TruthfulQA's multiple choice: `question`, and `mc0_targets`, `mc1_targets` and `mc2_targets`, answers with 1 or 0.

Source: Lin et al. 2021, arXiv:2109.07958; targets are mappings, or Hugging Face's `choices` and `labels`. A row is a
ranking of all its answers, 1 for true and 2 for false; the context of an answer holds in `targets` which sets it is in.
"""

from collections.abc import Mapping
from hashlib import sha256
from string import ascii_uppercase
from typing import Any

from karat.formats._benchmarks import about, asked, columns, faithful, options
from karat.formats._columns import number, text
from karat.types import BadInput, Example, Item, Ranking, as_messages

TASKS = ("mc2", "mc1", "mc0")  # the largest set first: the order of the answers
_COLUMNS = tuple(f"{task}_targets" for task in TASKS)

NEEDED = (("question",), _COLUMNS)
OPTIONAL = ("weight", "context")
COLUMNS = f"question, and any of {', '.join(_COLUMNS)}; optional {', '.join(OPTIONAL)}"


def detect(sample: Mapping[str, Any]) -> bool:
    """There are a question and a set of targets."""
    return "question" in sample and not sample.keys().isdisjoint(_COLUMNS)


def read(row: Mapping[str, Any], origin: str) -> list[Item]:
    """One ranking of all answers to the question."""
    sets = {task: options(row, f"{task}_targets") for task in TASKS if row.get(f"{task}_targets") is not None}
    truth: dict[str, int] = {}
    for task, found in sets.items():
        for answer, label in found.items():
            if truth.setdefault(answer, label) != label:
                raise BadInput(f"{answer!r:.60} is both true and false, the latter or former in `{task}_targets`")
    if len(truth) < 2:
        raise BadInput(f"there are {len(truth)} answers to choose from; there have to be two at least")
    before = as_messages(text(row, "question"))
    answers = tuple(Example(before, answer, about(row, (), targets=_of(answer, sets))) for answer in truth)
    return [Ranking(answers, tuple(2 - label for label in truth.values()), number(row, "weight", 1.0), origin)]


def choice(row: Mapping[str, Any]) -> tuple[str, str]:
    """The question with the answers of `mc1_targets` behind letters, and the letter of the true one.

    The order is made of the texts alone, as in the file the true answer stands first in every row.

    Raises:
        BadInput: there is not exactly one true answer, or there are more answers than letters.
    """
    own, found = text(row, "question"), options(row, "mc1_targets")
    if sum(found.values()) != 1 or not 2 <= len(found) <= len(ascii_uppercase):
        raise BadInput("`mc1_targets` has to hold one true answer and false ones, 26 in all at most")
    order = sorted(found, key=lambda answer: sha256(f"{own}\n{answer}".encode("utf-8", "surrogatepass")).digest())
    lines = [f"{letter}. {answer}" for letter, answer in zip(ascii_uppercase, order, strict=False)]
    asking = "Which answer is true? End with its letter, as in: Answer: A"
    return "\n".join((own, "", *lines, "", asking)), next(
        line[0] for line, a in zip(lines, order, strict=True) if found[a]
    )


def _of(answer: str, sets: Mapping[str, Mapping[str, int]]) -> list[str]:
    return [task for task, found in sets.items() if answer in found]


def write(item: Ranking) -> dict[str, Any]:
    """The question and its targets, as mappings."""
    if not isinstance(item, Ranking):
        raise BadInput(f"the format truthfulqa holds rankings, but this is a {type(item).__name__}")
    known = [
        (c.response, 2 - rank, c.context.get("targets", ()))
        for c, rank in zip(item.candidates, item.ranks, strict=True)
    ]
    sets = {task: {answer: label for answer, label, of in known if task in of} for task in TASKS}
    row = {
        "question": asked(item, item.candidates[0], "truthfulqa", "kwise"),
        **{f"{task}_targets": found for task, found in sets.items() if found},
        **columns(item, item.candidates[0], [], ["targets"]),
    }
    return faithful(row, item, read, "truthfulqa", "kwise")
