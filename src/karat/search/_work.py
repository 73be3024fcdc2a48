"""Many searches at once: what they ask for is drawn, scored and compared together, in the batches of the models.

Each by itself comes to the same: every draw has a seed of its own, made of the run's, the problem's and the beginning.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, get_args

from karat.progress import track
from karat.rewards._among import among
from karat.rewards._equality import Judge
from karat.rewards.base import RewardModel
from karat.search._cost import Size, Spent, size_of
from karat.search._task import Problem, Task
from karat.search.base import (
    Alike,
    Candidate,
    Draw,
    Drawn,
    Found,
    Method,
    Missing,
    Options,
    Policy,
    PolicyError,
    Request,
    Score,
    Searching,
    Start,
)
from karat.types import BadInput, Example, Refused, Result, Reward, Unscored


@dataclass(frozen=True, slots=True)
class Tools:
    """What searches are made with."""

    policy: Policy
    reward: RewardModel | None
    task: Task
    judge: Judge
    seed: int = 0
    budget: int | None = None  # tokens that the policy may generate for a problem; the last draw may pass it
    policy_size: Size | None = None
    reward_size: Size | None = None

    @classmethod
    def of(
        cls,
        policy: Policy,
        reward: RewardModel | None,
        task: Task,
        judge: Judge,
        *,
        seed: int = 0,
        budget: int | None = None,
        parameters: tuple[float | None, float | None] = (None, None),
    ) -> "Tools":
        """With the models' sizes; `parameters` of policy and reward model are for those that run elsewhere."""
        if budget is not None and budget < 1:
            raise BadInput(f"budget is {budget}, but it has to be at least one token")
        sizes = size_of(policy, parameters[0]), size_of(reward, parameters[1])
        return cls(policy, reward, task.of(policy), judge, seed, budget, *sizes)


@dataclass(slots=True)
class Work:
    """A problem under way, what it cost, and what came of it."""

    problem: Problem
    searching: Searching[Found]
    spent: Spent = field(default_factory=Spent)
    drawn: Counter[tuple[Any, ...]] = field(default_factory=Counter)  # samples by beginning and kind
    rewards: dict[str, Result] = field(default_factory=dict)  # by text, of a model that scores each by itself
    missing: Counter[str] = field(default_factory=Counter)  # samples that could not be had, by reason
    unscored: Counter[str] = field(default_factory=Counter)  # candidates without a reward, by reason
    out_of_budget: bool = False
    found: Found = field(default_factory=lambda: Found(()))


def check(name: str, method: Method, options: Options, reward: RewardModel | None) -> None:
    """Raise for a reward model that a method cannot use.

    Raises:
        BadInput: it needs one, and there is none.
        Refused: it adds rewards, and the model's are not probabilities.
    """
    if not method.rewarded(options):
        return
    if reward is None:
        raise BadInput(f"{name} chooses by rewards; give a reward model with --reward")
    if method.alone and reward.compares:
        raise Refused(f"{name} needs a reward for each answer by itself, and this model compares two; use tournament")
    if not reward.compares and (unused := {"meeting", "worth"} & options.model_fields_set):
        raise BadInput(
            f"{min(unused)} is for models that compare two answers, and this one rewards each by itself, so that none"
            " meet; leave it out"
        )
    # Negative rewards turn a vote round: of a (-1, -1) and b (-1.5), the sum prefers b.
    if method.adds(options) and reward.output != "probability":
        raise Refused(
            f"{name} adds rewards, and this model's are {_UNITS[reward.output]}, whose sum means nothing: give"
            f" {_mends(options)}, or load it with activation='sigmoid', or calibrate it with karat calibrate"
        )


_UNITS = {"logit": "log-odds, above and below 0", "rating": "ratings without a natural zero"}


def _mends(options: Options) -> str:
    """The ways of a method to make weights of rewards."""
    words = get_args(type(options).model_fields["normalize"].annotation)
    return " or ".join(f"normalize='{word}'" for word in words if word != "none")


def search(method: Method, options: Options, problems: Sequence[Problem], tools: Tools) -> list[Work]:
    """Search for answers to problems, together.

    Raises:
        PolicyError: the policy cannot be used, or gave none of the samples that were asked for together.
    """
    works = [Work(problem, method.search(options)) for problem in problems]
    wanted: dict[int, Request] = {}
    for number, work in enumerate(works):
        _advance(work, number, None, wanted)
    while wanted:
        replies = _served({number: request for number, request in wanted.items()}, works, tools)
        wanted = {}
        for number, reply in replies.items():
            _advance(works[number], number, reply, wanted)
    return works


def _advance(work: Work, number: int, reply: Any, wanted: dict[int, Request]) -> None:
    """Send a search what it asked for; what it asks for next goes into `wanted`, what it came to into the work."""
    try:
        wanted[number] = next(work.searching) if reply is None else work.searching.send(reply)
    except StopIteration as ended:
        work.found = ended.value


def _served(wanted: dict[int, Request], works: Sequence[Work], tools: Tools) -> dict[int, Any]:
    """What each request gets, in the order of requests."""
    draws = {number: request for number, request in wanted.items() if isinstance(request, tuple)}
    scores = {number: request for number, request in wanted.items() if isinstance(request, Score)}
    alikes = {number: request for number, request in wanted.items() if isinstance(request, Alike)}
    found: dict[int, Any] = {}
    found |= _drawn(draws, works, tools) if draws else {}
    found |= _scored(scores, works, tools) if scores else {}
    found |= {number: classes(request.answers, tools.judge) for number, request in alikes.items()}
    return {number: found[number] for number in wanted}


# Drawing


class _Ask(NamedTuple):
    """One draw of a request, that may be served in parts where there is a budget."""

    number: int  # of the work
    place: int  # in its request
    draw: Draw


def _drawn(
    requests: dict[int, tuple[Draw, ...]], works: Sequence[Work], tools: Tools
) -> dict[int, list[list[Candidate]]]:
    found: dict[int, list[list[Candidate]]] = {number: [[] for _ in asked] for number, asked in requests.items()}
    left = [
        _Ask(number, place, one)
        for number, asked in requests.items()
        for place, one in enumerate(asked)
        for _ in range(one.count)
    ]
    while left:
        now, left = _affordable(left, works, tools.budget)
        for ask, candidate in _sampled(now, works, tools):
            found[ask.number][ask.place].append(candidate)
    return found


def _affordable(asks: list[_Ask], works: Sequence[Work], budget: int | None) -> tuple[list[_Ask], list[_Ask]]:
    """The draws that are made now, and those that are made later; those beyond a problem's budget are not made."""
    if budget is None:
        return asks, []
    now, later, taken = [], [], Counter[int]()
    for ask in asks:
        spent = works[ask.number].spent
        each = spent.policy_tokens / spent.draws if spent.draws else budget  # the first draw says what one costs
        room = math.ceil((budget - spent.policy_tokens) / max(each, 1.0))
        if ask.draw.over or taken[ask.number] < room:
            taken[ask.number] += 1
            now.append(ask)
        elif room > 0:
            later.append(ask)
        else:
            works[ask.number].out_of_budget = True
    return now, later


def _sampled(asks: Sequence[_Ask], works: Sequence[Work], tools: Tools) -> list[tuple[_Ask, Candidate]]:
    """The candidates that came of draws; what failed is counted with its problem."""
    together: dict[tuple[Any, ...], list[_Ask]] = {}
    for ask in asks:
        key = (ask.number, ask.draw.start.text, ask.draw.step, ask.draw.greedy)
        together.setdefault(key, []).append(ask)
    groups = list(together.values())
    drawn = tools.policy.sample([_start(group, works[group[0].number], tools) for group in groups]) if groups else []
    every = [one for own in drawn for one in own]
    if every and all(isinstance(one, Missing) and one.down for one in every):
        assert isinstance(every[0], Missing)
        raise PolicyError(
            f"the policy gave none of {len(every)} samples: {every[0].reason}; the same command goes on from here"
        )
    found = []
    for group, own in zip(groups, drawn, strict=True):
        for ask, one in zip(group, own, strict=True):
            candidate = _candidate(ask.draw, one, works[ask.number], tools)
            found += [(ask, candidate)] if candidate else []
    return found


def _start(group: Sequence[_Ask], work: Work, tools: Tools) -> Start:
    """A beginning with a seed for each of its draws, that no other draw of the problem has."""
    draw, task = group[0].draw, tools.task
    key = (draw.start.text, draw.step, draw.greedy)
    first = work.drawn[key]
    work.drawn[key] += len(group)
    seeds = tuple(seed_of(tools.seed, work.problem.line, *key, number) for number in range(first, first + len(group)))
    prompt = work.problem.prompt if getattr(tools.policy, "verbatim", False) else task.asked(work.problem.prompt)
    stop = (task.delimiter, *task.stop) if draw.step else task.stop
    return Start(prompt, draw.start.text, seeds, stop, draw.greedy, draw.step, first)


def seed_of(*parts: Any) -> int:
    """A number from 0 to 2^31 - 1 of these parts alone."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode("utf-8", "surrogatepass")).digest()[:4]) >> 1


def _candidate(draw: Draw, drawn: Drawn, work: Work, tools: Tools) -> Candidate | None:
    if isinstance(drawn, Missing):
        work.missing[drawn.reason] += 1
        return None
    if not drawn.counted:
        if tools.budget is not None:
            raise BadInput(
                "the endpoint does not say how many tokens it generated, so a budget cannot be kept; leave --budget"
                " out, or use a server whose answers have usage"
            )
        work.spent.unmeasured.add("tokens")
    work.spent.drew(tools.policy_size, drawn.read, drawn.tokens)
    return tools.task.grown(draw.start, drawn.text, drawn.tokens, not drawn.stopped, drawn.cut)


# Scoring


def _scored(requests: dict[int, Score], works: Sequence[Work], tools: Tools) -> dict[int, list[Result]]:
    model = tools.reward
    if model is None:
        raise BadInput("this search needs rewards; give a reward model with --reward")
    if model.compares:
        return {number: _met(request, works[number], tools, model) for number, request in requests.items()}
    new = [
        (works[number], one)
        for number, request in requests.items()
        for one in {c.text: c for c in request.candidates}.values()
        if one.text not in works[number].rewards
    ]
    examples = [_example(work.problem, one, model) for work, one in new]
    results = track(model.score_many(examples), len(examples), "scored")
    for (work, one), result in zip(new, results, strict=True):
        _count(work, result, tools.reward_size)
        work.rewards[one.text] = result
    return {
        number: [works[number].rewards[one.text] for one in request.candidates] for number, request in requests.items()
    }


def _example(problem: Problem, candidate: Candidate, model: RewardModel) -> Example:
    if model.at_steps:
        return Example.of_steps(problem.prompt, candidate.steps)
    return Example(problem.prompt, candidate.response)


def _count(work: Work, result: Result, size: Size | None) -> None:
    if isinstance(result, Reward):
        work.spent.scored(size, result)
    else:
        work.unscored[result.reason] += 1


def _met(request: Score, work: Work, tools: Tools, model: RewardModel) -> list[Result]:
    """Utilities among the candidates of one problem; a single one needs no meeting to be the best."""
    metered = _Metered(model, work, tools.reward_size)
    examples = [_example(work.problem, one, model) for one in request.candidates]
    if len({one.response for one in examples}) == 1:
        return [Reward(0.0)] * len(examples)
    found = among(metered, examples, request.meeting, request.worth)
    for result in found:
        if isinstance(result, Unscored):
            work.unscored[result.reason] += 1
    return found


class _Metered:
    """A model that compares, whose comparisons are counted with a problem."""

    def __init__(self, model: RewardModel, work: Work, size: Size | None) -> None:
        self._model, self._work, self._size = model, work, size

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def compare_many(self, examples: Iterable[Any], *, strict: bool = False) -> Any:
        for result in self._model.compare_many(examples, strict=strict):
            if isinstance(result, Reward):
                self._work.spent.scored(self._size, result)
            yield result


# Equal answers


def classes(answers: Sequence[str | None], judge: Judge) -> list[int | None]:
    """For each answer the place of the first that equals it; what cannot be compared in time is not equal."""
    first: dict[str, int] = {}
    found: list[int | None] = []
    for place, answer in enumerate(answers):
        if answer is not None and answer not in first:
            known = list(dict.fromkeys(first.values()))
            equal = judge([(str(answers[other]), answer) for other in known])
            first[answer] = next((other for other, same in zip(known, equal, strict=True) if same), place)
        found.append(None if answer is None else first[answer])
    return found
