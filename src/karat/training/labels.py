"""Step labels from rollouts: from behind each step a policy goes on to an answer, and the answers are checked.

Estimators are generators: they yield which beginnings they want gone on with and how often, are sent the rollouts, and
return estimates. So they know nothing of policies, files or answers, and many of them share a policy's batches.

Math-Shepherd (Wang et al. 2024, arXiv:2312.08935): `hard`, `soft`. OmegaPRM (Luo et al. 2024, arXiv:2406.06592):
`omega`, and `_labels_tree` for problems without a solution. `adaptive` spends rollouts where they lower the variance
of the labels most, by the model of `_labels_posterior`.
"""

import math
from collections import Counter
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, TypeVar

from karat.training._labels_posterior import Interval, Posterior, beta_interval, choose, fraction
from karat.types import BadInput, nearest

METHODS = ("hard", "soft", "omega", "adaptive")
ALPHA, BETA, LENGTH, EXPLORE = 0.5, 0.9, 500, 0.125  # OmegaPRM's constants
ROUND = 4  # rollouts of one answer that `adaptive` draws together

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Ask:
    """A beginning that is to be gone on with, and how often."""

    steps: tuple[str, ...]
    count: int  # >= 1


@dataclass(frozen=True, slots=True)
class Rollout:
    """What came of going on once."""

    right: bool | None  # it reached the answer; None: it could not be had or judged, and counts for nothing
    steps: tuple[str, ...] = ()  # that were added
    reason: str = ""  # why there is no verdict


Replies: TypeAlias = list[list[Rollout]]
Asking: TypeAlias = Generator[list[Ask], Replies, T]


@dataclass(frozen=True, slots=True)
class Solution:
    """An answer whose steps are to be labelled."""

    steps: tuple[str, ...]  # at least one
    right: bool | None = None  # whether the answer that it ends with is right; None: it ends with none


@dataclass(frozen=True, slots=True)
class Estimate:
    """What rollouts said of the S steps of one answer; all tuples have S entries."""

    labels: tuple[float | None, ...]  # in [0, 1]; None says nothing
    reached: tuple[int, ...]  # rollouts that reached the answer, by the step that they start behind
    judged: tuple[int, ...]  # rollouts with a verdict
    posterior: tuple[Interval, ...]  # of the chance to reach the answer


@dataclass(frozen=True, slots=True)
class Plan:
    """How labels are made."""

    method: str = "hard"  # one of METHODS
    rollouts: int = 8  # from behind each step that is asked for; of adaptive, on average
    budget: int | None = None  # rollouts for an answer at most; of omega's trees, for a problem (200)
    solutions: int = 4  # that the policy is asked for where a problem has none
    searches: int = 20  # of a tree: wrong rollouts that are searched at most
    tolerance: float = 0.0  # adaptive stops where every step's standard deviation is at most this
    seed: int = 0
    separator: str | None = None  # between steps; None: a blank line where the answer has one, else a line end

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise BadInput(f"no method {self.method!r}{nearest(self.method, METHODS)}")
        for name in ("rollouts", "budget", "solutions", "searches"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise BadInput(f"{name} is {value}, but it has to be at least 1")
        if not 0 <= self.tolerance < 1:
            raise BadInput(f"tolerance is {self.tolerance:g}, but it has to be at least 0 and below 1")
        if self.separator == "":
            raise BadInput("separator is empty; give the text between two steps, such as \\n\\n")


def hard_estimate(rollouts: Iterable[bool | None]) -> float | None:
    """1.0 if any rollout reached the answer, else 0.0; None without a verdict (Math-Shepherd, equation 3).

    >>> hard_estimate([True, False, False, True]), hard_estimate([None])
    (1.0, None)
    """
    judged = [right for right in rollouts if right is not None]
    return float(any(judged)) if judged else None


def soft_estimate(rollouts: Iterable[bool | None]) -> float | None:
    """The share of rollouts that reached the answer, in [0, 1] (Math-Shepherd, equation 4).

    >>> soft_estimate([True, False, False, True])
    0.5
    """
    judged = [right for right in rollouts if right is not None]
    return fraction(sum(judged), len(judged))


def omega_q(chance: float, words: int) -> float:
    """OmegaPRM's value of a wrong rollout of `words` words from a state whose rollouts succeed with `chance`.

    Higher where a mistake is least expected and the rollout is short; in (0, 1].

    >>> round(omega_q(0.25, 100), 7)
    0.5822051
    """
    return float(ALPHA ** (1 - chance) * BETA ** (words / LENGTH))


def omega_u(visits: int, total: int) -> float:
    """OmegaPRM's exploration bonus of a state that was searched from `visits` times, of `total` times in all; >= 0.

    >>> round(omega_u(2, 10), 7)
    0.1317616
    """
    return EXPLORE * math.sqrt(total) / (1 + visits)


class Estimator(Protocol):
    """What each method is."""

    def __call__(self, solution: Solution, plan: Plan) -> Asking[Estimate]:
        """Ask for rollouts until the steps of a solution can be labelled.

        Raises:
            BadInput: the budget is too small for its steps.
        """
        ...


class _Tally:
    """Rollouts counted by the step that they start behind."""

    def __init__(self, solution: Solution) -> None:
        self.solution = solution
        self.reached, self.judged = [0] * len(solution.steps), [0] * len(solution.steps)
        self.drawn = 0  # rollouts, with those that have no verdict

    @property
    def open(self) -> range:
        """The steps that need rollouts: the last is judged by its answer where it has one."""
        return range(len(self.solution.steps) - (self.solution.right is not None))

    def ask(self, counts: Sequence[tuple[int, int]]) -> Asking[None]:
        """Have so many rollouts drawn from behind these steps, (step, count), and count them."""
        replies = yield [Ask(self.solution.steps[: step + 1], count) for step, count in counts]
        self.drawn += sum(count for _, count in counts)
        for (step, _), rollouts in zip(counts, replies, strict=True):
            self.reached[step] += sum(r.right is True for r in rollouts)
            self.judged[step] += sum(r.right is not None for r in rollouts)

    def estimate(self, labels: Sequence[float | None], posterior: Sequence[Interval] | None = None) -> Estimate:
        """The estimate with these labels; the last one is the known verdict, where there is one."""
        found, intervals = list(labels), list(posterior or map(beta_interval, self.reached, self.judged))
        if self.solution.right is not None:
            known = float(self.solution.right)
            found[-1], intervals[-1] = (None if found[-1] is None else known), Interval(known, known, known)
        return Estimate(tuple(found), tuple(self.reached), tuple(self.judged), tuple(intervals))


def _each(tally: _Tally, plan: Plan) -> int:
    """How many rollouts each step gets within the budget."""
    steps = len(tally.open)
    if plan.budget is None or not steps:
        return plan.rollouts
    if plan.budget < steps:
        raise BadInput(
            f"a budget of {plan.budget} is not one rollout for each of {steps} steps; raise budget, or use"
            " method='omega' or method='adaptive'"
        )
    return min(plan.rollouts, plan.budget // steps)


def soft(solution: Solution, plan: Plan) -> Asking[Estimate]:
    """Math-Shepherd's soft estimate of every step."""
    tally = _Tally(solution)
    if tally.open:
        count = _each(tally, plan)
        yield from tally.ask([(step, count) for step in tally.open])
    return tally.estimate(
        _last_known(tally, [fraction(*pair) for pair in zip(tally.reached, tally.judged, strict=True)])
    )


def hard(solution: Solution, plan: Plan) -> Asking[Estimate]:
    """Math-Shepherd's hard estimate of every step; no more is drawn from behind a step once a rollout succeeded.

    The labels are those of drawing all rollouts. Waves of 1, 1, 2, 4, … keep the batches large.
    """
    tally = _Tally(solution)
    drawn, left = 0, _each(tally, plan)
    while drawn < left and (undecided := [step for step in tally.open if not tally.reached[step]]):
        wave = min(max(drawn, 1), left - drawn)
        yield from tally.ask([(step, wave) for step in undecided])
        drawn += wave
    labels = [float(r > 0) if n else None for r, n in zip(tally.reached, tally.judged, strict=True)]
    return tally.estimate(_last_known(tally, labels))


def _last_known(tally: _Tally, labels: list[float | None]) -> list[float | None]:
    if tally.solution.right is not None:
        labels[-1] = float(tally.solution.right)
    return labels


def omega(solution: Solution, plan: Plan) -> Asking[Estimate]:
    """OmegaPRM's binary search for the first wrong step: labels 1 before it, 0 at it, and none behind it."""
    tally = _Tally(solution)
    first = yield from _first_error(tally, plan)
    return tally.estimate(until(first, len(solution.steps)))


def _first_error(tally: _Tally, plan: Plan) -> Asking[int | None]:
    """The first step from behind which no rollout reaches the answer; S if there is none, None if it is not found.

    Halves the steps that it may be among each time, so draws from behind about log2(S) of them.
    """
    count = len(tally.solution.steps)
    if tally.solution.right:
        return count
    low, high = -1, count - 1 if tally.solution.right is False else count
    while high - low > 1:
        middle = (low + high) // 2
        if plan.budget is not None and tally.drawn + plan.rollouts > plan.budget:
            return None
        yield from tally.ask([(middle, plan.rollouts)])
        if not tally.judged[middle]:
            return None
        low, high = (middle, high) if tally.reached[middle] else (low, middle)
    return high


def until(first: int | None, count: int) -> list[float | None]:
    """Labels of `count` steps whose first wrong one is known: 1 before it, 0 at it, None behind; all None if unknown.

    >>> until(1, 4), until(2, 2)
    ([1.0, 0.0, None, None], [1.0, 1.0])
    """
    if first is None:
        return [None] * count
    return ([1.0] * first + [0.0] + [None] * count)[:count]


def adaptive(solution: Solution, plan: Plan) -> Asking[Estimate]:
    """Posterior means, with rollouts drawn where they lower the labels' summed variance most.

    Stops at the budget, where no rollout would inform, or where all standard deviations are within the tolerance.
    """
    tally = _Tally(solution)
    posterior = Posterior(len(solution.steps), solution.right)
    left = plan.rollouts * len(tally.open) if plan.budget is None else plan.budget
    while left > 0 and tally.open and posterior.deviations().max() > plan.tolerance:
        gains = posterior.gains()
        if gains.max() <= 0:
            break
        chosen = choose(gains, min(ROUND, left))
        counts = [(step, chosen.count(step)) for step in sorted(set(chosen))]
        before = list(zip(tally.reached, tally.judged, strict=True))
        yield from tally.ask(counts)
        for step, _ in counts:
            posterior.add(step, tally.reached[step] - before[step][0], tally.judged[step] - before[step][1])
        left -= len(chosen)
    unknown = not sum(tally.judged) and solution.right is None
    labels = [None if unknown else mean for mean in posterior.means().tolist()]
    return tally.estimate(labels, posterior.intervals())


ESTIMATORS: dict[str, Estimator] = {"hard": hard, "soft": soft, "omega": omega, "adaptive": adaptive}


def together(works: Sequence[Asking[T]]) -> Asking[list[T]]:
    """Askings about one problem as one; what two of them want of the same beginning is drawn once, for both."""
    pool: dict[tuple[str, ...], list[Rollout]] = {}
    taken: list[Counter[tuple[str, ...]]] = [Counter() for _ in works]
    results: dict[int, Any] = {}
    wanted = {number: asks for number in range(len(works)) if (asks := _next(works, number, None, results)) is not None}
    while wanted:
        needed = {one.steps: 0 for asks in wanted.values() for one in asks}
        for number, asks in wanted.items():
            for one in asks:
                needed[one.steps] = max(needed[one.steps], taken[number][one.steps] + one.count)
        lacking = [Ask(steps, n - len(pool.get(steps, ()))) for steps, n in needed.items()]
        lacking = [one for one in lacking if one.count > 0]
        drawn = (yield lacking) if lacking else []
        for one, rollouts in zip(lacking, drawn, strict=True):
            pool.setdefault(one.steps, []).extend(rollouts)
        asked, wanted = wanted, {}
        for number, asks in asked.items():
            replies = [_take(pool[one.steps], taken[number], one) for one in asks]
            if (more := _next(works, number, replies, results)) is not None:
                wanted[number] = more
    return [results[number] for number in range(len(works))]


def _next(
    works: Sequence[Asking[Any]], number: int, replies: Replies | None, results: dict[int, Any]
) -> list[Ask] | None:
    """What a work wants next; None where it has returned, and its result is in `results`."""
    try:
        return works[number].send(replies) if replies is not None else next(works[number])
    except StopIteration as ended:
        results[number] = ended.value
        return None


def _take(rollouts: list[Rollout], taken: Counter[tuple[str, ...]], ask: Ask) -> list[Rollout]:
    """The rollouts of a beginning that an asker has not had yet."""
    first = taken[ask.steps]
    taken[ask.steps] += ask.count
    return rollouts[first : first + ask.count]
