"""karat's built-in data: seeded word problems in whole-number arithmetic. Standard library only.

A problem tells how a number of things changes in 2 to 5 steps. A candidate solution is right, or one slip makes it
wrong from one step on: a calculation that is off, a wrong operation, a wrong operand, or a step that is left out of
the total. The slip is drawn so that right and wrong solutions have the same lengths and the same n-grams; what tells
them apart is whether a step fits the question and the step before it. How wordy a solution is and how well it is laid
out is drawn without regard to whether it is right. Most slips are wrong operations: a two-layer model of 64 units
learned to see these from some twenty thousand pairs, and wrong operands and calculations not at all from 28 000.

Step labels follow Math-Shepherd's hard estimate (Wang et al. 2024, arXiv:2312.08935): a step is right if the answer
can still be reached after it, so every step before the first wrong one is right, and that one and all later ones are
wrong, even a later step that is sound by itself. `first_error` is ProcessBench's label (Zheng et al. 2024,
arXiv:2412.06559): the index of the earliest wrong step, -1 for none.

The splits share words and single numbers, but neither a phrasing nor a held-out operand pair (the two numbers of a
step): see `held_out_phrasing` and `held_out_pair`. Every draw is a function of its seed, in every process.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Literal, TypeAlias

from karat.types import BadInput, Example, Labelled, Message, Pair, Ranking, Stepped

Split: TypeAlias = Literal["train", "test"]
Move: TypeAlias = tuple[str, int]  # an operation, "+", "-" or "*", and its operand

SLIPS = ("calculation", "operation", "operand", "skip")
_SHARES = (3, 75, 11, 11)  # percent; an operation slip is what a small model learns to see first
ATTRIBUTES = ("correctness", "brevity", "format")

_NAMES = ("Tom", "Ann", "Sam", "Mia", "Leo", "Eva", "Max", "Zoe")
_THINGS = ("pens", "eggs", "books", "coins", "cards", "plums")
_GAINS, _LOSSES = ("buys", "finds"), ("sells", "loses")
_FRAMES = (  # {s} what there is at first, {m} what happens then
    "{n} has {s}, {m}. How many {t}?",
    "{n} has {s}. {n} {m}. How many?",
    "Count {t}: {n} has {s}, {m}.",
    "First {n} has {s}, then {m}. Count {t}.",
    "How many {t}? {n} has {s}, {m}.",
    "Say {n} has {s}, then {m}. How many?",
)
_STARTS = {"plain": "{a} {t}", "lots": "{a} red and {b} blue {t}", "boxes": "{a} boxes of {b} {t}"}
_STRUCTURES = ("plain",) * 6 + ("lots", "boxes")  # drawn evenly
_STEP_COUNTS = (2,) * 15 + (3,) * 3 + (4,) + (5,)  # drawn evenly
_OPERANDS = (2, 3, 4, 5, 6)
_STARTING = {"plain": (13, 30), "lots": (6, 10), "boxes": (6, 10)}  # least and greatest first number
_LEAST, _MOST = 1, 80  # running totals
_FILLERS = ("", " now", " by now")  # 0, 1 and 2 units of wordiness


@dataclass(frozen=True, slots=True)
class Problem:
    """A word problem with its solution."""

    question: str
    steps: tuple[str, ...]  # the S right steps, 2 to 5, plainly worded
    answer: int  # exact, 1 to 80
    phrasing: str  # "things/frame": the wording, which belongs to one split only
    structure: str  # "plain", "lots" (first step a + b) or "boxes" (first step a * b)
    start: int  # the first number
    moves: tuple[Move, ...]  # S operations, done one after the other
    things: str  # what is counted

    @property
    def prompt(self) -> tuple[Message, ...]:
        """The question as one user message."""
        return (Message("user", self.question),)


@dataclass(frozen=True, slots=True)
class Candidate:
    """One solution of a problem, right or wrong, with everything that is known about it."""

    steps: tuple[str, ...]  # S texts
    labels: tuple[bool, ...]  # S labels: true before the first wrong step, false from it on
    first_error: int  # 0-based index of the first wrong step; -1 if none is wrong
    right: bool  # the outcome: the final answer is the problem's
    answer: int  # the final answer given
    attributes: Mapping[str, float]  # ATTRIBUTES, each in [0, 1]; higher is better
    slip: str  # one of SLIPS; "" if right

    @property
    def response(self) -> str:
        """The text: one line for each step and one for the answer."""
        return "\n".join((*self.steps, f"Answer: {self.answer}"))


def held_out_pair(left: int, right: int) -> bool:
    """Whether a step on these two operands, with any operation, is kept for the test split: about one in eight.

    No step of a training problem or of its candidates uses such a pair; the first step of every test problem does.
    """
    return (left * 7 + right * 3) % 17 in (0, 5)


def held_out_phrasing(scenario: int, frame: int) -> bool:
    """Whether a wording, by its two indices, is kept for the test split: one in six.

    Each frame and each kind of things occurs in both splits, but never the same two together.
    """
    return (scenario + frame) % 6 == 0


def problems(n: int, seed: int = 0, split: Split = "train") -> list[Problem]:
    """Draw `n` problems; the first of them do not depend on `n`.

    Raises:
        BadInput: `n` is negative or `split` is neither "train" nor "test".
    """
    return [_problem(_rng("problem", seed, split, i), split) for i in range(_checked(n, split))]


def candidates(problem: Problem, k: int, seed: int = 0) -> list[Candidate]:
    """Draw K candidates of a problem, right or wrong with the same chance; of two or more, both kinds occur."""
    rng = Random(f"candidates/{seed}/{problem.question}")
    rights = rng.sample((True, False), 2) + [rng.random() < 0.5 for _ in range(k - 2)]
    drawn = [_candidate(problem, right, rng) for right in rights[:k]]
    rng.shuffle(drawn)
    return drawn


def policy(problem: Problem, k: int, seed: int = 0) -> list[Candidate]:
    """Draw K candidates as a language model would: some problems suit it, and it repeats its mistakes.

    The chance of a right answer is drawn for each problem, evenly from 0.2 to 0.8; a wrong answer is the problem's
    favourite mistake with a chance of 0.6, so that the most frequent answer can be wrong.
    """
    rng = Random(f"policy/{seed}/{problem.question}")
    skill, favourite = rng.uniform(0.2, 0.8), _wrong(problem, rng)
    drawn = []
    for _ in range(k):
        if rng.random() < skill:
            drawn.append(_candidate(problem, True, rng))
        else:
            drawn.append(_told(problem, favourite if rng.random() < 0.6 else _wrong(problem, rng), rng))
    return drawn


def pool(n: int, k: int = 16, seed: int = 0, split: Split = "test") -> list[tuple[Problem, list[Candidate]]]:
    """Draw `n` problems with K policy-like candidates each: what best-of-n chooses from."""
    return [(p, policy(p, k, seed)) for p in problems(n, seed, split)]


def pairs(n: int, seed: int = 0, split: Split = "train") -> list[Pair]:
    """Draw `n` pairs of a right and a wrong solution of the same problem, one pair for each problem."""
    return [Pair(example(p, right), example(p, wrong)) for p, right, wrong in _contrasts(n, seed, split)]


def labelled(n: int, seed: int = 0, split: Split = "train") -> list[Labelled]:
    """Draw `n` solutions of as many problems with the outcome as label: 1.0 right, 0.0 wrong."""
    drawn = ((p, candidates(p, 2, seed)[0]) for p in problems(n, seed, split))
    return [Labelled(example(p, c), float(c.right)) for p, c in drawn]


def stepped(n: int, seed: int = 0, split: Split = "train") -> list[Stepped]:
    """Draw `n` solutions of as many problems with a label for every step."""
    drawn = [(p, candidates(p, 2, seed)[0]) for p in problems(n, seed, split)]
    return [_stepped(p, c) for p, c in drawn]


def rankings(n: int, k: int = 4, seed: int = 0, split: Split = "train") -> list[Ranking]:
    """Draw `n` rankings of K candidates by the fraction of right steps; equal fractions share a rank."""
    return [_ranking(p, candidates(p, k, seed)) for p in problems(n, seed, split)]


def example(problem: Problem, candidate: Candidate) -> Example:
    """A candidate as an example without context."""
    return Example(problem.prompt, candidate.response)


def _stepped(problem: Problem, candidate: Candidate) -> Stepped:
    context = {"first_error": candidate.first_error, "final_answer_correct": candidate.right}
    branch = Example.of_steps(problem.prompt, candidate.steps, context)
    return Stepped((branch,), (tuple(map(float, candidate.labels)),))


def pair_rows(n: int, seed: int = 0, split: Split = "train") -> list[dict[str, Any]]:
    """Draw the pairs of `pairs` as rows with `prompt`, `chosen` and `rejected`."""
    return [
        {"prompt": p.question, "chosen": right.response, "rejected": wrong.response}
        for p, right, wrong in _contrasts(n, seed, split)
    ]


def rows(drawn: Sequence[tuple[Problem, Sequence[Candidate]]]) -> list[dict[str, Any]]:
    """One plain row per candidate, ready for JSON; `id` is the problem's index in `drawn`."""
    return [_row(i, problem, c) for i, (problem, found) in enumerate(drawn) for c in found]


def step_rows(n: int, seed: int = 0, split: Split = "train") -> list[dict[str, Any]]:
    """The same solutions as `stepped` draws, as rows: prompt, completions and labels."""
    drawn = [(p, candidates(p, 2, seed)[0]) for p in problems(n, seed, split)]
    return [{"prompt": p.question, "completions": list(c.steps), "labels": list(c.labels)} for p, c in drawn]


def candidate_rows(n: int, k: int = 4, seed: int = 0, split: Split = "train") -> list[dict[str, Any]]:
    """Draw `n` problems with K candidates each as the rows of `rows`: n * k of them."""
    return rows([(p, candidates(p, k, seed)) for p in problems(n, seed, split)])


def _row(number: int, problem: Problem, candidate: Candidate) -> dict[str, Any]:
    return {
        "id": number,
        "prompt": problem.question,
        "response": candidate.response,
        "steps": list(candidate.steps),
        "labels": list(candidate.labels),
        "first_error": candidate.first_error,
        "label": float(candidate.right),
        "answer": candidate.answer,
        "reference": problem.answer,
        **candidate.attributes,
        "slip": candidate.slip,
        "phrasing": problem.phrasing,
    }


def _contrasts(n: int, seed: int, split: Split) -> list[tuple[Problem, Candidate, Candidate]]:
    found = []
    for problem in problems(n, seed, split):
        first, second = candidates(problem, 2, seed)
        found.append((problem, first, second) if first.right else (problem, second, first))
    return found


def _ranking(problem: Problem, found: Sequence[Candidate]) -> Ranking:
    scores = [c.attributes["correctness"] for c in found]
    ranks = tuple(1 + sum(other > score for other in scores) for score in scores)
    return Ranking(tuple(example(problem, c) for c in found), ranks)


def _rng(kind: str, seed: int, split: str, index: int) -> Random:
    return Random(f"{kind}/{seed}/{split}/{index}")  # seeded through SHA-512, so the same in every process


def _checked(n: int, split: str) -> int:
    if split not in ("train", "test"):
        raise BadInput(f'the split is {split!r}, but it has to be "train" or "test"')
    if n < 0:
        raise BadInput(f"n is {n}, but it has to be 0 or more")
    return n


# Problems.


def _problem(rng: Random, split: Split) -> Problem:
    structure = rng.choice(_STRUCTURES)
    start, moves = _sums(rng, structure, split)
    scenario, frame = _phrasing(rng, split)
    things = _THINGS[scenario]
    steps = tuple(f"{line} {things}" for line, _ in _worked(start, moves))
    return Problem(
        question=_question(rng, structure, start, moves, scenario, frame),
        steps=steps,
        answer=_totals(start, moves)[-1],
        phrasing=f"{things}/{frame}",
        structure=structure,
        start=start,
        moves=moves,
        things=things,
    )


def _phrasing(rng: Random, split: Split) -> tuple[int, int]:
    every = [(s, f) for s in range(len(_THINGS)) for f in range(len(_FRAMES))]
    return rng.choice([pair for pair in every if held_out_phrasing(*pair) == (split == "test")])


def _sums(rng: Random, structure: str, split: Split) -> tuple[int, tuple[Move, ...]]:
    """Draw numbers until every total is in range and the operand pairs belong to the split."""
    count = rng.choice(_STEP_COUNTS)
    while True:
        start = rng.randint(*_STARTING[structure])
        first = {"plain": rng.choice("+-"), "lots": "+", "boxes": "*"}[structure]
        later = ((rng.choice("+-"), rng.choice(_OPERANDS)) for _ in range(count - 1))
        moves = ((first, rng.choice(_OPERANDS)), *later)
        if _in_range(start, moves) and _fits_split(start, moves, split):
            return start, moves


def _fits_split(start: int, moves: Sequence[Move], split: Split) -> bool:
    if split == "test":
        return held_out_pair(start, moves[0][1])
    return not _uses_held_out(start, moves)


def _uses_held_out(start: int, moves: Sequence[Move]) -> bool:
    lefts = (start, *_totals(start, moves))
    return any(held_out_pair(left, operand) for left, (_, operand) in zip(lefts, moves, strict=False))


def _in_range(start: int, moves: Sequence[Move]) -> bool:
    return all(_LEAST <= total <= _MOST for total in _totals(start, moves))


def _totals(start: int, moves: Sequence[Move]) -> list[int]:
    totals = []
    for operation, operand in moves:
        start = _apply(start, operation, operand)
        totals.append(start)
    return totals


def _apply(left: int, operation: str, right: int) -> int:
    return {"+": left + right, "-": left - right, "*": left * right}[operation]


def _worked(start: int, moves: Sequence[Move]) -> list[tuple[str, int]]:
    lefts = (start, *_totals(start, moves))
    return [_line(left, move, _apply(left, *move)) for left, move in zip(lefts, moves, strict=False)]


def _line(left: int, move: Move, result: int) -> tuple[str, int]:
    return f"{left} {move[0]} {move[1]} = {result}", result


def _question(rng: Random, structure: str, start: int, moves: Sequence[Move], scenario: int, frame: int) -> str:
    things = _THINGS[scenario]
    begin = _STARTS[structure].format(a=start, b=moves[0][1], t=things)
    told = moves if structure == "plain" else moves[1:]
    events = [f"{rng.choice(_GAINS if operation == '+' else _LOSSES)} {by}" for operation, by in told]
    return _FRAMES[frame].format(n=rng.choice(_NAMES), s=begin, m=", ".join(events), t=things)


# Candidates. A draft is what a solution computes; telling it adds the wording.


@dataclass(frozen=True, slots=True)
class _Draft:
    lines: tuple[tuple[str, int], ...]  # expression and result of each step
    slip: str = ""
    at: int = -1


def _candidate(problem: Problem, right: bool, rng: Random) -> Candidate:
    draft = _Draft(tuple(_worked(problem.start, problem.moves))) if right else _wrong(problem, rng)
    return _told(problem, draft, rng)


def _wrong(problem: Problem, rng: Random) -> _Draft:
    """Draw a slip; its totals are in range and, for a training problem, no operand pair is held out.

    A draw that cannot be used is drawn anew as a calculation slip and not as another slip of its kind: this keeps
    the chance of going from one solution to another the same as that of going back, and so right and wrong
    solutions alike in what operations and operands they use.
    """
    training = not _uses_held_out(problem.start, problem.moves)
    kind = rng.choices(SLIPS, _SHARES)[0]
    draft = _slip(problem, kind, rng)
    if draft is None and kind == "skip":  # there is nothing to skip to
        draft = _slip(problem, "operation", rng)
    while draft is None or (training and _draft_uses_held_out(draft)):
        draft = _slip(problem, "calculation", rng)
    return draft


def _draft_uses_held_out(draft: _Draft) -> bool:
    """Whether a step of the draft is on a held-out operand pair."""
    parts = (line.split() for line, _ in draft.lines)
    return any(held_out_pair(int(left), int(right)) for left, _, right, *_ in parts)


def _slip(problem: Problem, kind: str, rng: Random) -> _Draft | None:
    first = 1 if kind == "skip" and problem.structure != "plain" else 0
    at = rng.randrange(first, len(problem.moves))
    if kind == "skip" and len(problem.moves) - first < 2:
        return None
    moves, lefts = list(problem.moves), [problem.start, *_totals(problem.start, problem.moves)]
    off = 0
    if kind == "calculation":
        off = rng.choice((-2, -1, -1, 1, 1, 2, -10, 10))
    elif kind == "operation":
        moves[at] = _other_operation(problem, at), moves[at][1]
    elif kind == "operand":
        moves[at] = moves[at][0], _other_operand(problem, at, rng)
    else:
        moves[at] = moves[rng.choice([i for i in range(first, len(moves)) if i != at])]
    if not off and moves[at] == problem.moves[at]:
        return None
    result = _apply(lefts[at], *moves[at]) + off
    later = moves[at + 1 :]
    lines = (*_worked(problem.start, moves[:at]), _line(lefts[at], moves[at], result), *_worked(result, later))
    sound = lines[-1][1] != problem.answer and all(_LEAST <= total <= _MOST for _, total in lines)
    return _Draft(lines, kind, at) if sound else None


def _other_operation(problem: Problem, at: int) -> str:
    if at == 0 and problem.structure != "plain":
        return {"+": "*", "*": "+"}[problem.moves[0][0]]
    return {"+": "-", "-": "+"}[problem.moves[at][0]]


def _other_operand(problem: Problem, at: int, rng: Random) -> int:
    """Another number of the problem, or with the same chance any other operand that could have been there."""
    own = problem.moves[at][1]
    others = [by for i, (_, by) in enumerate(problem.moves) if i != at and by != own]
    if others and rng.random() < 0.5:
        return rng.choice(others)
    return rng.choice([by for by in _OPERANDS if by != own])


def _told(problem: Problem, draft: _Draft, rng: Random) -> Candidate:
    count = len(draft.lines)
    numbered = [rng.random() < share for share in [rng.choice((0.0, 0.0, 0.0, 0.5, 1.0))] * count]
    words = [rng.choice(levels) for levels in [rng.choice(((0,), (0,), (0,), (0, 1), (0, 1, 2)))] * count]
    steps = []
    for i, (line, _) in enumerate(draft.lines):
        head = f"Step {i + 1}: " if numbered[i] else ""
        steps.append(f"{head}{line} {problem.things}{_FILLERS[words[i]]}")
    right_steps = count if draft.at < 0 else draft.at
    answer = draft.lines[-1][1]
    shares = (right_steps / count, 1 - sum(words) / (2 * count), sum(numbered) / count)
    return Candidate(
        steps=tuple(steps),
        labels=tuple(i < right_steps for i in range(count)),
        first_error=draft.at,
        right=answer == problem.answer,
        answer=answer,
        attributes=dict(zip(ATTRIBUTES, shares, strict=True)),
        slip=draft.slip,
    )
