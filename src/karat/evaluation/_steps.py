"""Answers in steps as tables: every step with its label and its reward, and the solutions whose first error is known.

Labels: above 0.5 is right, below is wrong; None and exactly 0.5 say nothing. Where any label is below 0, all are
classes: 1 and 0 (neutral) are right, as in PRM800K, and -1 is wrong.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from karat.evaluation import _nulls
from karat.evaluation._common import Judged, Sample, judge, overlap_note, prompt_ids, require
from karat.evaluation.base import Scorer, Setup
from karat.metrics import FloatArray, IntArray
from karat.rewards.base import Output
from karat.types import BadInput, Example, Labelled, Reward, Stepped

UNKNOWN = 0.5  # the label of a step of which nothing is said
EARLIER, LATER = "earlier wins", "later wins"


@dataclass(frozen=True, slots=True)
class Steps:
    """Every step of every branch of every item, [T]."""

    examples: list[Example]  # the question, and the step as its answer
    item: IntArray  # place of its item among those given
    branch: IntArray  # number of its branch, counted over all items
    position: IntArray  # in its branch, from 0
    label: FloatArray  # in [0, 1]; UNKNOWN says nothing
    weight: FloatArray  # >= 0
    reward: FloatArray  # as the scorer gave it; 0 where it gave none
    scored: FloatArray  # 1 or 0

    def take(self, rows: IntArray) -> "Steps":
        """Some of the rows."""
        return Steps(**{column.name: _taken(getattr(self, column.name), rows) for column in fields(self)})

    @property
    def judged(self) -> IntArray:
        """Rows that have a label and a reward."""
        return np.flatnonzero((self.label != UNKNOWN) & (self.scored > 0))


@dataclass(frozen=True, slots=True)
class Branches:
    """Every answer, [A]: the branches of all items."""

    examples: list[Example]
    item: IntArray  # place of its item among those given
    start: IntArray  # its first row in `Steps`
    stop: IntArray  # past its last one
    first: IntArray  # 0-based index of its first wrong step, -1 for none
    known: FloatArray  # 1 where `first` is known, 0 where it is not, as in a tree
    final: list[bool | None]  # whether its final answer is right
    weight: FloatArray  # >= 0
    value: FloatArray  # the reward of the whole; 0 where there is none
    scored: FloatArray  # 1 or 0

    def take(self, rows: IntArray) -> "Branches":
        """Some of the rows."""
        return Branches(**{column.name: _taken(getattr(self, column.name), rows) for column in fields(self)})

    def sample(self, seed: int) -> Sample:
        """What intervals over these answers are drawn from."""
        return Sample(self.weight, prompt_ids(self.examples), seed)


@dataclass(frozen=True, slots=True)
class Study:
    """Items, what the scorer gave them, and what the nulls give their steps."""

    items: Sequence[Stepped]
    judged: Judged
    steps: Steps
    branches: Branches
    nulls: _nulls.NullRewards  # of `steps`, [T]
    setup: Setup
    notes: tuple[str, ...]

    @property
    def threshold(self) -> float:
        """A step with a reward at most this is taken for wrong."""
        return threshold(self.setup.output)

    @property
    def solutions(self) -> Branches:
        """The answers whose first error is known, scored or not."""
        return self.branches.take(np.flatnonzero(self.branches.known))

    @property
    def tied(self) -> int:
        """Items with a reward and without a label that says right or wrong."""
        return len(set(self.judged.kept)) - len(self.decided)

    @property
    def decided(self) -> set[int]:
        """Places of the items behind the figures."""
        known = set(self.branches.item[self.branches.known > 0].tolist())
        return (set(self.steps.item[self.steps.judged].tolist()) | known) & set(self.judged.kept)

    def rewards(self, branches: Branches, reward: FloatArray) -> list[FloatArray]:
        """Rewards of all steps [T] by answer; none for an answer without a reward."""
        ends = zip(branches.start, branches.stop, branches.scored, strict=True)
        return [reward[start:stop] if scored else np.zeros(0) for start, stop, scored in ends]


def _taken(column: Any, rows: IntArray) -> Any:
    return [column[i] for i in rows] if isinstance(column, list) else column[rows]


def threshold(output: Output) -> float:
    """The reward above which a step is taken for right."""
    return 0.5 if output == "probability" else 0.0


def check(items: Sequence[Stepped]) -> None:
    """Raise BadInput for labels of two kinds, a first error that is no step, and where nothing is right or wrong."""
    classes = in_classes(items)
    for item in items:
        where = f"{item.origin}: " if item.origin else ""
        odd = next((x for row in item.labels for x in row if classes and x not in (None, -1, 0, 1)), None)
        if odd is not None:
            raise BadInput(f"{where}label is {odd:g}, but others are below 0: give classes (-1, 0, 1) or probabilities")
        told, size = item.branches[0].context.get("first_error"), len(item.labels[0])
        if len(item.branches) == 1 and told is not None and not -1 <= told < max(size, 1):
            raise BadInput(f"{where}first_error is {told}, but there are {size} steps: count from 0, -1 is none")
    decided = [item for item in items if _decides(item, classes)]
    require(decided, "no step has a label that says right or wrong: give some")


def check_single(items: Sequence[Stepped], benchmark: str) -> None:
    """Raise BadInput for an item that is a tree, or whose first error nobody says."""
    bad = next((i for i in items if len(i.branches) > 1 or i.branches[0].context.get("first_error") is None), None)
    if bad is not None:
        where = f"{bad.origin}: " if bad.origin else ""
        raise BadInput(
            f"{where}{benchmark} needs one answer with its first_error (-1 is none); evaluate without a name"
        )


def study(scorer: Scorer, items: Sequence[Stepped], setup: Setup) -> Study:
    """Scores all branches in one call and lays steps and answers out in tables.

    Raises:
        BadInput: labels as `check` says, or a scorer that gives no number, or not one, for each step.
    """
    check(items)
    judged = judge(scorer, items)
    check([items[i] for i in judged.kept])
    given = dict(zip(judged.kept, judged.given, strict=True))
    classes = in_classes(items)
    steps, branches = _tables(items, given, classes)
    nulls = _null_rewards(steps, setup)
    return Study(items, judged, steps, branches, nulls, setup, _notes(items, steps, branches, nulls.note, setup))


def labelled_steps(items: Sequence[Stepped]) -> list[Labelled]:
    """Each step with a label as an answer by itself, to the question."""
    classes = in_classes(items)
    return [
        Labelled(Example(branch.prompt, text), label_of(label, classes), item.weight)
        for item in items
        for branch, labels in zip(item.branches, item.labels, strict=True)
        for text, label in zip(branch.steps, labels, strict=True)
        if label is not None
    ]


def in_classes(items: Sequence[Stepped]) -> bool:
    """Whether labels are classes: -1, 0 and 1."""
    return any(label is not None and label < 0 for item in items for labels in item.labels for label in labels)


def label_of(label: float | None, classes: bool) -> float:
    """A label as a number in [0, 1]; `UNKNOWN` where it says nothing."""
    if label is None:
        return UNKNOWN
    return float(label >= 0) if classes else float(label)


def _decides(item: Stepped, classes: bool) -> bool:
    if any(label_of(x, classes) != UNKNOWN for labels in item.labels for x in labels):
        return True
    return first_wrong(item, classes) is not None


def first_wrong(item: Stepped, classes: bool) -> int | None:
    """The first wrong step of the only answer, -1 for none; None where the labels do not tell, and in a tree."""
    if len(item.branches) > 1 or not item.labels[0]:
        return None
    told = item.branches[0].context.get("first_error")
    if told is not None:
        return int(told)
    for place, label in enumerate(label_of(x, classes) for x in item.labels[0]):
        if label <= UNKNOWN:
            return place if label < UNKNOWN else None
    return -1


def _tables(items: Sequence[Stepped], given: dict[int, tuple[Reward, ...]], classes: bool) -> tuple[Steps, Branches]:
    flat = [(i, k) for i, item in enumerate(items) for k in range(len(item.branches))]
    examples = [items[i].branches[k] for i, k in flat]
    rewards = [given[i][k] if i in given else None for i, k in flat]
    sizes = np.array([len(example.steps) for example in examples])
    branch = np.repeat(np.arange(len(flat)), sizes)
    stop = np.cumsum(sizes)
    item = np.array([i for i, _ in flat])
    weight = np.array([items[i].weight for i, _ in flat], dtype=np.float64)
    scored = np.array([reward is not None for reward in rewards], dtype=np.float64)
    of_steps = [_step_rewards(e, r, items[i].origin) for e, r, (i, _) in zip(examples, rewards, flat, strict=True)]
    firsts = [first_wrong(items[i], classes) for i, _ in flat]
    steps = Steps(
        examples=[Example(example.prompt, text) for example in examples for text in example.steps],
        item=item[branch],
        branch=branch,
        position=np.arange(len(branch)) - (stop - sizes)[branch],
        label=np.array([label_of(x, classes) for i, k in flat for x in items[i].labels[k]]),
        weight=weight[branch],
        reward=np.concatenate(of_steps),
        scored=scored[branch],
    )
    return steps, Branches(
        examples=examples,
        item=item,
        start=stop - sizes,
        stop=stop,
        first=np.array([-1 if first is None else first for first in firsts]),
        known=np.array([first is not None for first in firsts], dtype=np.float64),
        final=[_final(example) for example in examples],
        weight=weight,
        value=np.array([0.0 if reward is None else reward.value for reward in rewards]),
        scored=scored,
    )


def _step_rewards(example: Example, reward: Reward | None, origin: str) -> FloatArray:
    if reward is None:
        return np.zeros(len(example.steps))
    given = np.array(reward.steps if reward.steps is not None else (), dtype=np.float64)
    if given.size != len(example.steps):
        where = f"{origin}: " if origin else ""
        words = f"{where}the scorer gave {given.size} step rewards for {len(example.steps)} steps"
        raise BadInput(f"{words}: evaluate a process reward model, which gives one for each")
    if not np.isfinite(given).all():
        raise BadInput("the scorer returned a step reward that is not finite: return Unscored with the reason instead")
    return given


def _final(example: Example) -> bool | None:
    told = example.context.get("final_answer_correct")
    return None if told is None else bool(told)


def _null_rewards(steps: Steps, setup: Setup) -> _nulls.NullRewards:
    training = labelled_steps([item for item in setup.training if isinstance(item, Stepped)])
    found = _nulls.null_rewards(steps.examples, training, setup.seed)
    position = steps.position.astype(np.float64)
    rewards = found.rewards | {EARLIER: -position, LATER: position}
    return replace(found, rewards=rewards, note=found.note.replace("training answers", "steps of training answers"))


def _notes(items: Sequence[Stepped], steps: Steps, branches: Branches, ngram: str, setup: Setup) -> tuple[str, ...]:
    silent = int((steps.label == UNKNOWN).sum())
    unknown = int((branches.known == 0).sum())
    lost = int(((branches.scored == 0) & (branches.known > 0)).sum())
    said = {
        "labels are classes: 1 (right) and 0 (neutral) count as right, as PRM800K's P(1) + P(0), -1 is wrong": (
            in_classes(items)
        ),
        f"{silent:,} of {steps.label.size:,} steps have no label, or 0.5, and are in no figure of single steps": silent,
        f"of {unknown:,} of {branches.known.size:,} answers the labels do not tell the first error": unknown,
        f"{lost:,} solutions without a reward count as wrong where a first error is sought, and nowhere else": lost,
    }
    return (*(note for note, holds in said.items() if holds), ngram, *overlap_note(items, setup.training))
