"""OmegaPRM's search trees: `question` and `reasoning_steps`, nodes or prefixes of solutions with Monte-Carlo values.

A node has `text`, `mc_value` and `children`; its root is the question. In the flat layout a `solution_prefix` is the
question and all steps up to a node, with an empty line, and maybe more blanks, before each. Each path to a leaf is a
branch, and each node's value is the label of its step in the first branch that has it; that of the root is `mc_value`
of the context.
"""

from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

from karat.formats._columns import as_step, as_text, json_value, probability, question, text
from karat.formats._steps import STEP_OPTIONAL, Labels, Path, about, as_stepped, faithful, optional_text, stepped
from karat.types import BadInput, Item, Stepped

_ABOUT = ("final_answer", "question_id")

NEEDED = (("question",), ("reasoning_steps",))
OPTIONAL = (*_ABOUT, *STEP_OPTIONAL)
COLUMNS = (
    "question, reasoning_steps, a node with text, mc_value and children, or a list of solution_prefix and mc_value;"
    f" optional {', '.join(OPTIONAL)}"
)

_Node: TypeAlias = dict[str, Any]


def detect(sample: Mapping[str, Any]) -> bool:
    """There are a question and its steps."""
    return {"question", "reasoning_steps"} <= sample.keys()


def read(row: Mapping[str, Any], origin: str) -> list[Item]:
    """One tree."""
    asked, found = text(row, "question"), json_value(row, "reasoning_steps")
    root = _tree(found, asked) if isinstance(found, list) else _object(found)
    if root.get("text") != asked:
        raise BadInput("the `text` of the first node of `reasoning_steps` is not the question; make it that")
    paths = list(_paths(root))
    if paths == [([], [])]:
        raise BadInput("`reasoning_steps` has no step below the question")
    known = {"final_answer": optional_text(row, "final_answer"), "mc_value": _value(root)}
    if row.get("question_id") is not None:
        known["question_id"] = json_value(row, "question_id")
    return [stepped(row, asked, paths, origin, known)]


def _object(found: Any) -> _Node:
    if not isinstance(found, Mapping):
        raise BadInput(f"a node of `reasoning_steps` has to be an object, but it is {found!r:.60}")
    return dict(found)


def _value(node: _Node) -> float | None:
    return None if node.get("mc_value") is None else probability(node, "mc_value")


def _tree(flat: list[Any], asked: str) -> _Node:
    """The nodes of the flat layout, each below the longest other prefix that it continues."""
    prefixes = [_object(one) for one in flat]
    nodes: dict[str, _Node] = {asked: {"text": asked}}
    for one in prefixes:
        nodes.setdefault(text(one, "solution_prefix"), {})
    placed: set[str] = set()
    for one in prefixes:
        prefix = one["solution_prefix"]
        node = {} if prefix in placed else nodes[prefix]  # the same text may have been reached twice
        placed.add(prefix)
        node["mc_value"] = one.get("mc_value")
        if prefix != asked:
            end = _parent(prefix, nodes)
            node["text"] = prefix[end + 2 :].strip()
            nodes[prefix[:end]].setdefault("children", []).append(node)
    return nodes[asked]


def _parent(prefix: str, nodes: Mapping[str, _Node]) -> int:
    """Where the longest other prefix ends that this one continues after an empty line."""
    end = prefix.rfind("\n\n")
    while end >= 0 and prefix[:end] not in nodes:
        end = prefix.rfind("\n\n", 0, end + 1)
    if end < 0:
        raise BadInput(f"a `solution_prefix` does not start with the question and an empty line: {prefix!r:.60}")
    return end


def _paths(root: _Node) -> Iterator[Path]:
    """The steps from the root to each leaf; a label is in the first of them only."""
    waiting: list[tuple[_Node, list[str], Labels]] = [(root, [], [])]
    while waiting:
        node, steps, labels = waiting.pop()
        below = [_object(child) for child in _children(node)]
        for place, child in reversed(list(enumerate(below))):
            said = as_step(as_text(child.get("text"), "text"), "a node of `reasoning_steps`")
            before = labels if place == 0 else [None] * len(labels)
            waiting.append((child, [*steps, said], [*before, _value(child)]))
        if not below:
            yield steps, labels


def _children(node: _Node) -> list[Any]:
    found = node.get("children")
    if found is not None and not isinstance(found, list):
        raise BadInput(f"`children` has to be a list, but it is {found!r:.60}")
    return found or []


def write(item: Stepped) -> dict[str, Any]:
    """The nested layout."""
    item = as_stepped(item, "omega_prm")
    first = item.branches[0]
    asked = question(first, "omega_prm", "stepwise")
    root: _Node = {"text": asked, "mc_value": first.context.get("mc_value"), "children": []}
    path: list[_Node] = []  # of the branch before
    for branch, labels in zip(item.branches, item.labels, strict=True):
        path = path[: _shared(path, branch.steps, labels)]
        for said, value in list(zip(branch.steps, labels, strict=True))[len(path) :]:
            node: _Node = {"text": said, "mc_value": value, "children": []}
            (path[-1] if path else root)["children"].append(node)
            path.append(node)
    row = {"question": asked, "reasoning_steps": root} | about(item, _ABOUT, ["mc_value"])
    return faithful(row, item, read, "omega_prm")


def _shared(path: list[_Node], steps: tuple[str, ...], labels: Labels) -> int:
    """How many first steps are nodes of the path: the same texts, whose labels are not said again."""
    count = 0
    while count < min(len(path), len(steps) - 1) and labels[count] is None and path[count]["text"] == steps[count]:
        count += 1
    return count
