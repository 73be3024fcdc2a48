"""From problems to labelled answers with a policy and a judge: what the estimators ask for is sampled and checked."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from karat.formats import stepwise
from karat.formats._columns import QUESTIONS, asked, context, only, present, renames, steps
from karat.rewards._answers import final_answer, marked_answer, reference_answer
from karat.rewards._equality import Judge
from karat.search._task import PARAGRAPH, split
from karat.search._work import seed_of
from karat.search.base import Missing, Policy, PolicyError, Sample, Start
from karat.training._labels_tree import Tree
from karat.training.labels import ESTIMATORS, Ask, Asking, Estimate, Plan, Rollout, Solution, together
from karat.types import BadInput, Example, Message, Stepped

READY = ("completions", "steps")  # columns that may hold an answer in steps
CUT = "the length limit cut it before it gave an answer"


@dataclass(frozen=True, slots=True)
class Problem:
    """A question with its answer, and an answer in steps where there is one to be labelled."""

    line: int  # of its file
    prompt: tuple[Message, ...]
    answer: str
    steps: tuple[str, ...] = ()
    context: Mapping[str, Any] = field(default_factory=dict)


class Labelled(NamedTuple):
    """An answer with its labels."""

    solution: Solution
    estimate: Estimate


@dataclass(slots=True)
class Work:
    """A problem under way: its estimators, what they cost, and what came of them."""

    problem: Problem
    separator: str
    asking: Asking[list[Labelled]]
    settled: bool  # the separator is; else the policy's first answers tell it
    drawn: Counter[tuple[str, ...]] = field(default_factory=Counter)  # rollouts by their beginning
    tokens: int = 0
    missing: Counter[str] = field(default_factory=Counter)  # rollouts without a verdict, by reason
    found: list[Labelled] = field(default_factory=list)
    reason: str | None = None  # why there are no labels


def read(row: Mapping[str, Any], line: int) -> Problem:
    """A row with prompt (or problem, or question), answer and, if they are to be labelled, steps or completions.

    Raises:
        BadInput: a column is missing or of the wrong type.
    """
    value = present(row, "answer")
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise BadInput(f"`answer` has to be a text or a number, but it is {value!r:.60}")
    answer = reference_answer(str(value))
    if not answer:
        raise BadInput("`answer` is empty, and without it no rollout can be judged; give one, or remove the row")
    ready = any(row.get(name) is not None for name in READY)
    return Problem(line, asked(row), answer, steps(row, only(row, READY)) if ready else (), context(row))


def check_columns(columns: set[str], path: str) -> None:
    """Raise BadInput for columns that cannot hold problems with answers."""
    there = columns | {"prompt"} if set(QUESTIONS) & columns else columns
    if lacking := [name for name in ("prompt", "answer") if name not in there]:
        misspelt = renames(sorted(columns), (*QUESTIONS, "answer"))
        raise BadInput(
            f"{path} has no column {lacking[0]!r}, but a problem needs a prompt, and an answer to judge rollouts by"
            f"; {f'rename {misspelt}' if misspelt else 'add it'}"
        )


def label(problems: Sequence[Problem], policy: Policy, judge: Judge, plan: Plan) -> list[Work]:
    """Label problems together, in the policy's batches; each by itself comes to the same.

    Raises:
        PolicyError: the policy cannot be used, or gave none of the rollouts that were asked for together.
    """
    works = [_work(*pair, plan) for pair in zip(problems, _finals(problems, judge, plan), strict=True)]
    wanted: dict[int, list[Ask]] = {}
    for number, work in enumerate(works):
        _advance(work, number, None, wanted)
    while wanted:
        asked, wanted = wanted, {}
        starts = [_start(works[number], one, plan.seed) for number, asks in asked.items() for one in asks]
        replies = iter(_judged(starts, [works[number] for number, asks in asked.items() for _ in asks], policy, judge))
        for number, asks in asked.items():
            _advance(works[number], number, [next(replies) for _ in asks], wanted)
    return works


def _finals(problems: Sequence[Problem], judge: Judge, plan: Plan) -> list[bool | None]:
    """Whether each ready answer ends right; None where it marks no final answer, or where there is none."""
    ends = [marked_answer((plan.separator or PARAGRAPH).join(problem.steps)) for problem in problems]
    pairs = [(problem.answer, end) for problem, end in zip(problems, ends, strict=True) if end is not None]
    verdicts = iter(judge(pairs))
    return [None if end is None else next(verdicts) for end in ends]


def _work(problem: Problem, right: bool | None, plan: Plan) -> Work:
    if problem.steps:
        asking = _estimates([Solution(problem.steps, right)], plan)
    elif plan.method == "omega":
        asking = _tree(plan)
    else:
        asking = _sampled(plan)
    return Work(problem, plan.separator or PARAGRAPH, asking, plan.separator is not None or bool(problem.steps))


def _estimates(solutions: list[Solution], plan: Plan) -> Asking[list[Labelled]]:
    estimator = ESTIMATORS[plan.method]
    found = yield from together([estimator(solution, plan) for solution in solutions])
    labelled = [Labelled(*pair) for pair in zip(solutions, found, strict=True)]
    kept = [one for one in labelled if any(value is not None for value in one.estimate.labels)]
    if not kept:
        raise BadInput("no step could be labelled: the rollouts had no verdict, or the budget ended; raise it")
    return kept


def _sampled(plan: Plan) -> Asking[list[Labelled]]:
    """Answers of the policy, each once, and their labels."""
    (rollouts,) = yield [Ask((), plan.solutions)]
    usable = {r.steps: r.right for r in rollouts if r.steps and r.right is not None}
    if not usable:
        why = Counter(r.reason or "it is empty" for r in rollouts).most_common(1)[0][0]
        raise BadInput(f"none of the policy's {plan.solutions} answers can be used: {why}")
    return (yield from _estimates([Solution(*pair) for pair in usable.items()], plan))


def _tree(plan: Plan) -> Asking[list[Labelled]]:
    return [Labelled(*branch) for branch in (yield from Tree(plan).grow())]


def _advance(work: Work, number: int, replies: list[list[Rollout]] | None, wanted: dict[int, list[Ask]]) -> None:
    """Send a work its rollouts; what it wants next goes into `wanted`, what it came to into the work."""
    try:
        wanted[number] = work.asking.send(replies) if replies is not None else next(work.asking)
    except StopIteration as ended:
        work.found = ended.value
    except BadInput as error:
        work.reason = str(error)


def _start(work: Work, ask: Ask, seed: int) -> Start:
    """The beginning's text, and a seed of its own for each rollout ever drawn from it."""
    first = work.drawn[ask.steps]
    work.drawn[ask.steps] += ask.count
    text = "".join(step + work.separator for step in ask.steps)
    seeds = [seed_of(seed, work.problem.line, text, number) for number in range(first, first + ask.count)]
    return Start(work.problem.prompt, text, tuple(seeds))


def _judged(starts: list[Start], works: list[Work], policy: Policy, judge: Judge) -> list[list[Rollout]]:
    drawn = policy.sample(starts)
    every = [one for samples in drawn for one in samples]
    if every and all(isinstance(one, Missing) and one.down for one in every):
        assert isinstance(every[0], Missing)
        raise PolicyError(
            f"the policy gave none of {len(every)} rollouts: {every[0].reason}; the same command goes on from here"
        )
    for work, samples in zip(works, drawn, strict=True):
        _settle(work, samples)
    ends = [_end(start, one) for start, samples in zip(starts, drawn, strict=True) for one in samples]
    golds = [work.problem.answer for work, samples in zip(works, drawn, strict=True) for _ in samples]
    pairs = [(gold, end) for gold, end in zip(golds, ends, strict=True) if end is not None]
    verdicts = iter(judge(pairs))
    right = iter([None if end is None else next(verdicts) for end in ends])
    return [
        [_rollout(work, start, one, next(right)) for one in samples]
        for work, start, samples in zip(works, starts, drawn, strict=True)
    ]


def _settle(work: Work, samples: Sequence[Sample | Missing]) -> None:
    """Take the separator of the policy's first answers: paragraphs where most have them, else lines."""
    if not work.settled:
        found = [PARAGRAPH in one.text.strip() for one in samples if isinstance(one, Sample)]
        work.separator, work.settled = PARAGRAPH if 2 * sum(found) > len(found) else "\n", True


def _end(start: Start, drawn: Sample | Missing) -> str | None:
    """The answer that a rollout ends with; empty where it ended without one, None where nothing can be said."""
    if isinstance(drawn, Missing):
        return None
    text = start.text + drawn.text
    return marked_answer(text) if drawn.cut else final_answer(text) or ""


def _rollout(work: Work, start: Start, drawn: Sample | Missing, right: bool | None) -> Rollout:
    """A rollout with its verdict; its cost is the work's."""
    if isinstance(drawn, Missing):
        work.missing[drawn.reason] += 1
        return Rollout(None, reason=drawn.reason)
    work.tokens += drawn.tokens
    reason = "" if right is not None else CUT if drawn.cut else "its answer could not be compared in time"
    if reason:
        work.missing[reason] += 1
    return Rollout(right, split(drawn.text, work.separator), reason)


def rows(work: Work, plan: Plan) -> list[dict[str, Any]]:
    """The work's labelled answers as rows of the format `stepwise`; what was sampled at what cost is in `context`."""
    return [_row(work, plan, number, one) for number, one in enumerate(work.found)]


def _row(work: Work, plan: Plan, number: int, one: Labelled) -> dict[str, Any]:
    estimate = one.estimate
    about = {
        **work.problem.context,
        "answer": work.problem.answer,
        "final_answer_correct": one.solution.right,
        "problem": work.problem.line,
        "solution": number,
        "labelling": {
            "method": plan.method,
            "seed": plan.seed,
            "reached": list(estimate.reached),
            "rollouts": list(estimate.judged),
            "mean": [_rounded(interval.mean) for interval in estimate.posterior],
            "low": [_rounded(interval.low) for interval in estimate.posterior],
            "high": [_rounded(interval.high) for interval in estimate.posterior],
            "problem_rollouts": sum(work.drawn.values()),
            "problem_tokens": work.tokens,
            "problem_missing": sum(work.missing.values()),
        },
    }
    labels = tuple(None if value is None else _rounded(value) for value in estimate.labels)
    return stepwise.write(Stepped((Example.of_steps(work.problem.prompt, one.solution.steps, about),), (labels,)))


def _rounded(value: float) -> float:
    return round(value, 6)
