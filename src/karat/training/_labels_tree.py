"""OmegaPRM's tree of a problem (Luo et al. 2024, arXiv:2406.06592): wrong rollouts, searched for their first mistake.

From the problem and from each state that the searches find, rollouts are drawn once. A wrong rollout of a state that
others got right from holds a mistake. The one with the highest Q + U is searched by halves; each state on the way may
add rollouts to choose from. Priorities are computed anew for each choice, as every visit changes them all.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from karat.training._labels_posterior import Interval, beta_interval, fraction
from karat.training.labels import Ask, Asking, Estimate, Plan, Rollout, Solution, omega_q, omega_u, until
from karat.types import BadInput

BUDGET = 200  # rollouts of a problem at most


@dataclass(slots=True)
class State:
    """A beginning, and what going on from it came to."""

    steps: tuple[str, ...]
    reached: int
    judged: int
    visits: int = 0  # searches that started here
    wrong: list[tuple[str, ...]] = field(default_factory=list)  # steps of its wrong rollouts that wait to be searched

    @property
    def chance(self) -> float:
        """The share of its rollouts that reached the answer, in [0, 1]."""
        return fraction(self.reached, self.judged) or 0.0


class Branch(NamedTuple):
    """An answer of the tree, and its labels."""

    solution: Solution
    estimate: Estimate


class Tree:
    """The states of one problem, by their steps."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.states: dict[tuple[str, ...], State] = {}
        self.spent = 0  # rollouts
        self.right: tuple[str, ...] | None = None  # the steps of the first right rollout from the problem itself

    def grow(self) -> Asking[list[Branch]]:
        """The answers whose first mistake was found, and a right one where there is one.

        Raises:
            BadInput: no rollout from the problem itself has a verdict, or none is right.
        """
        root = yield from self._visit(())
        if root is None:
            mend = "raise budget, or lower rollouts"
            raise BadInput(f"a budget of {self._budget} is less than {self.plan.rollouts} rollouts; {mend}")
        if not root.reached:
            raise BadInput(
                f"none of {root.judged} answers of the policy is right, so no step can be told from another; use a"
                " better policy, raise rollouts, or remove this problem"
            )
        found = [self._right()] if self.right else []
        for _ in range(self.plan.searches):
            chosen = self._select()
            if chosen is None or self.spent + self.plan.rollouts > self._budget:
                break
            first = yield from self._search(*chosen)
            if first is not None:
                found.append(self._branch(chosen[0].steps + chosen[1], first))
        return found

    @property
    def _budget(self) -> int:
        return BUDGET if self.plan.budget is None else self.plan.budget

    def _select(self) -> tuple[State, tuple[str, ...]] | None:
        """Take the wrong rollout with the highest priority, and the state that it is from; None if none is left."""
        total = sum(state.visits for state in self.states.values())
        best = max(self._waiting(), key=lambda one: _priority(one[0], one[1], total), default=None)
        if best is not None:
            best[0].wrong.remove(best[1])
            best[0].visits += 1
        return best

    def _waiting(self) -> Iterator[tuple[State, tuple[str, ...]]]:
        return ((state, steps) for state in self.states.values() if 0 < state.chance < 1 for steps in state.wrong)

    def _search(self, state: State, rollout: tuple[str, ...]) -> Asking[int | None]:
        """The first step of a wrong rollout from behind which no rollout is right; None if it is not found."""
        steps = state.steps + rollout
        low, high = len(state.steps) - 1, len(steps) - 1
        while high - low > 1:
            middle = (low + high) // 2
            at = yield from self._visit(steps[: middle + 1])
            if at is None or not at.judged:
                return None
            low, high = (middle, high) if at.reached else (low, middle)
        return high

    def _visit(self, steps: tuple[str, ...]) -> Asking[State | None]:
        """The state of a beginning, with its rollouts; None where the budget does not give them."""
        if steps not in self.states:
            if self.spent + self.plan.rollouts > self._budget:
                return None
            (rollouts,) = yield [Ask(steps, self.plan.rollouts)]
            self.spent += self.plan.rollouts
            self.states[steps] = _state(steps, rollouts)
            if not steps:
                self.right = next((r.steps for r in rollouts if r.right and r.steps), None)
        return self.states[steps]

    def _right(self) -> Branch:
        assert self.right is not None
        solution = Solution(self.right, True)
        return Branch(solution, self._estimate(solution, len(self.right)))

    def _branch(self, steps: tuple[str, ...], first: int) -> Branch:
        solution = Solution(steps, False)
        return Branch(solution, self._estimate(solution, first))

    def _estimate(self, solution: Solution, first: int) -> Estimate:
        counts = [self._counts(solution.steps[: i + 1]) for i in range(len(solution.steps))]
        known = float(bool(solution.right))
        intervals = [*(beta_interval(*pair) for pair in counts[:-1]), Interval(known, known, known)]
        reached, judged = (tuple(part) for part in zip(*counts, strict=True))
        return Estimate(tuple(until(first, len(solution.steps))), reached, judged, tuple(intervals))

    def _counts(self, steps: tuple[str, ...]) -> tuple[int, int]:
        state = self.states.get(steps)
        return (state.reached, state.judged) if state else (0, 0)


def _state(steps: tuple[str, ...], rollouts: list[Rollout]) -> State:
    wrong = dict.fromkeys(r.steps for r in rollouts if r.right is False and r.steps)  # each once, in their order
    judged = [r.right for r in rollouts if r.right is not None]
    return State(steps, sum(judged), len(judged), wrong=list(wrong))


def _priority(state: State, rollout: tuple[str, ...], total: int) -> float:
    words = sum(len(step.split()) for step in rollout)
    return omega_q(state.chance, words) + omega_u(state.visits, total)
