"""The contracts: what a policy is, which judges share, and what a method of search asks for and comes to.

A method is a file of this folder; its name is the word that users type. It is a generator: it yields what it wants
drawn, scored or compared, and is sent what came of it. So it knows nothing of policies, reward models or files, and
the searches of many problems share their batches.
"""

import difflib
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from karat import members
from karat.rewards._among import Meeting, Worth
from karat.rewards._sampling import Drawn, Missing, Policy, PolicyError, Sample, Sampling, Start
from karat.rewards.base import RewardModel
from karat.spec import one_line
from karat.types import BadInput, Result, Reward, nearest

if TYPE_CHECKING:
    from karat.search._task import Task

__all__ = ["Drawn", "Missing", "Policy", "PolicyError", "Sample", "Sampling", "Start"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Candidate:
    """An answer, or the beginning of one."""

    text: str = ""  # all that the policy wrote, with the delimiter behind its last step
    steps: tuple[str, ...] = ()  # its parts, without delimiters
    tokens: int = 0  # that were generated for it, those of its beginning included
    done: bool = False  # nothing follows: the policy ended it, a rule of the task did, or the length limit
    cut: bool = False  # it was the length limit
    answer: str | None = None  # its final answer; of one that is not done, what it marks as such

    @property
    def response(self) -> str:
        """Its text without the blanks around it."""
        return self.text.strip()


class Judged(NamedTuple):
    """A candidate with its reward."""

    candidate: Candidate
    result: Result | None  # None: no reward was asked for

    @property
    def value(self) -> float | None:
        """The reward; None where there is none."""
        return self.result.value if isinstance(self.result, Reward) else None


@dataclass(frozen=True, slots=True)
class Found:
    """What a search came to."""

    candidates: tuple[Judged, ...]  # that were chosen from, in the order they came
    chosen: int | None = None  # its place; None where no candidate can be chosen
    tied: int = 1  # different candidates, or in a vote answers, that shared the first place; the earliest was chosen
    reason: str = ""  # why nothing was chosen


# What a method may ask for.


@dataclass(frozen=True, slots=True)
class Draw:
    """A beginning that is to be gone on with, `count` times."""

    start: Candidate = Candidate()
    count: int = 1
    step: bool = False  # one step, else to the end
    greedy: bool = False  # the likeliest token is taken, not drawn
    over: bool = False  # even if the budget is spent: the one draw that ends a search with an answer


@dataclass(frozen=True, slots=True)
class Score:
    """Candidates whose rewards are wanted; a model that compares lets them meet."""

    candidates: tuple[Candidate, ...]
    meeting: Meeting | None = None
    worth: Worth = "bradley_terry"


@dataclass(frozen=True, slots=True)
class Alike:
    """Final answers of which it is asked which are equal."""

    answers: tuple[str | None, ...]


Request: TypeAlias = tuple[Draw, ...] | Score | Alike
Searching: TypeAlias = Generator[Request, Any, T]


def draw(wanted: Sequence[Draw]) -> Searching[list[list[Candidate]]]:
    """For each beginning the candidates that came of it: as many as were asked for, or fewer where some failed."""
    drawn: list[list[Candidate]] = (yield tuple(wanted)) if wanted else []
    return drawn


def score(
    candidates: Sequence[Candidate], meeting: Meeting | None = None, worth: Worth = "bradley_terry"
) -> Searching[list[Judged]]:
    """Candidates with their rewards; those without one have `Unscored`."""
    results: list[Result] = (yield Score(tuple(candidates), meeting, worth)) if candidates else []
    return [Judged(*pair) for pair in zip(candidates, results, strict=True)]


def alike(answers: Sequence[str | None]) -> Searching[list[int | None]]:
    """For each answer the place of the first that equals it; None where there is no answer."""
    classes: list[int | None] = (yield Alike(tuple(answers))) if answers else []
    return classes


# Methods.


class Options(BaseModel):
    """Base of a method's options."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @property
    def problem(self) -> str:
        """Why these options do not fit together, or the empty string."""
        return ""


@dataclass(frozen=True, slots=True)
class Method:
    """A method of search. Each member file has one, as METHOD."""

    options: type[Options]
    search: Callable[[Any], Searching[Found]]  # with its options
    rewarded: Callable[[Any], bool] = lambda options: True  # whether, by its options, it needs a reward model
    alone: bool = False  # it sets rewards of one round beside those of another: utilities among few are of no use
    adds: Callable[[Any], bool] = lambda options: False  # whether, by its options, it adds rewards as they are


def methods() -> dict[str, str]:
    """Every method and its one-line description, read without importing it."""
    return members.describe("search")


def method(name: str) -> Method:
    """The method of that name.

    Raises:
        BadInput: there is none; names the nearest.
    """
    found: Method = members.load("search", name, "method of search").METHOD
    return found


def options(name: str, given: dict[str, Any]) -> Options:
    """A method's options.

    Raises:
        BadInput: there is no such option, or one is out of its range.
    """
    made = method(name).options
    for word in given:
        if word not in made.model_fields:
            raise BadInput(f"unknown option {word!r} of {name}{nearest(word, made.model_fields)}")
    try:
        found = made(**given)
    except ValidationError as error:
        raise BadInput(f"an option of {name} is wrong: {one_line(error)}") from None
    if found.problem:
        raise BadInput(found.problem)
    return found


def hint(name: str, word: str) -> str:
    """What is said of an option that a method does not have: the one that is meant, or the methods that have it."""
    own = difflib.get_close_matches(word, method(name).options.model_fields, n=1, cutoff=0.7)
    if own:
        return f"; did you mean '--{own[0].replace('_', '-')}'?"
    others = [other for other in methods() if word in method(other).options.model_fields]
    return f" of {name}; it is an option of {', '.join(others)}" if others else ""


def search(
    name: str,
    problems: Sequence[Mapping[str, Any]],
    policy: Policy,
    reward: RewardModel | None = None,
    *,
    task: "Task | None" = None,
    seed: int = 0,
    budget: int | None = None,
    **given: Any,
) -> list[dict[str, Any]]:
    """Rows with `prompt` (and `answer`, to be judged by) with what a method found for them.

    Args:
        name: of the method.
        problems: rows; they are handed back with further columns, as `karat search` writes them.
        policy: where answers come from.
        reward: what they are chosen by.
        task: how answers are asked for and read.
        seed: of all draws.
        budget: tokens that the policy may generate for a problem.
        given: the method's options.

    Raises:
        BadInput: an option is wrong, or the reward model cannot be used.
        PolicyError: the policy cannot be used.
    """
    from karat.rewards._equality import Judge
    from karat.search import _file
    from karat.search._task import Task
    from karat.search._work import Tools

    with Judge() as judge:
        tools = Tools.of(policy, reward, task or Task(), judge, seed=seed, budget=budget)
        run = _file.Run(name, options(name, given), tools)
        return list(_file.search_rows(run, list(enumerate(map(dict, problems), 1))))
