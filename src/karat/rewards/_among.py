"""Answers among those to the same prompt: rewards where a model has them, and else utilities from comparisons."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Literal, TypeAlias, get_args

from karat.rewards._ranking import Judged, Places, Standings, active, borda, round_robin, tournament
from karat.rewards.base import Ranked, RewardModel
from karat.types import BadInput, Example, Result, Reward, Unscored, nearest

Meeting: TypeAlias = Literal["round_robin", "active", "tournament"]
Worth: TypeAlias = Literal["bradley_terry", "borda"]
ROUND_ROBIN = 8  # answers up to which all pairs are compared; beyond, those that inform most
_ALONE = "a model that compares needs another answer to the same prompt, and there is none"


def floored(flags: Iterable[str]) -> bool:
    """Whether flags say that an objective is under its floor.

    >>> floored(["no_eos"]), floored(["below_safety"])
    (False, True)
    """
    return any(flag.startswith("below_") for flag in flags)


def in_order(results: Iterable[Result]) -> list[Ranked]:
    """Best first; answers under a floor behind all others, and unscored ones last, each in the order given."""

    def key(place: Ranked) -> tuple[int, float]:
        result = place.result
        if isinstance(result, Unscored):
            return 2, 0.0
        return int(floored(result.flags)), -result.value

    return sorted((Ranked(number, result) for number, result in enumerate(results)), key=key)


def among(
    model: RewardModel,
    examples: Sequence[Example],
    meeting: Meeting | None = None,
    worth: Worth = "bradley_terry",
    pairs: bool = False,
) -> list[Result]:
    """One result per example, whose values may be compared with those of the same prompt.

    A model that compares gives utilities, in logits that sum to 0 over a prompt's different answers: the lead of one
    over another is by Bradley-Terry the log-odds that it is preferred. Up to 8 answers all meet; of more, O(n log n)
    pairs do (`meeting` says otherwise). By "borda", the value is the mean probability of winning, in [0, 1], which says
    nothing of those that did not meet. Answers in a circle, of which each beats the next, have the flag "cycle". A
    comparison's tokens are counted with the answer that is first of the two. Of `pairs`, each two examples in
    turn are judged by their own comparison alone.
    """
    if not model.compares:
        return list(model.score_many(examples))
    groups: dict[object, _Group] = {}
    for number, example in enumerate(examples):
        groups.setdefault((number // 2 if pairs else 0, example.prompt), _Group([], {})).add(number, example)
    _check("worth", worth, get_args(Worth))
    for group in groups.values():
        group.meeting, group.worth = _meeting(meeting, len(group.answers)), worth
    _meet(model, list(groups.values()))
    results: dict[int, Result] = {}
    for group in groups.values():
        own = group.results(lambda pairs, group=group: group.ask(model, pairs))  # type: ignore[misc]
        results |= {number: own[place] for place, numbers in enumerate(group.numbers.values()) for number in numbers}
    return [results[number] for number in range(len(examples))]


@dataclass
class _Group:
    """The different answers to a prompt, and what is known of pairs of them."""

    answers: list[Example]
    numbers: dict[str, list[int]]  # by answer, the examples that have it

    def __post_init__(self) -> None:
        self.known: dict[Places, Result] = {}
        self.meeting: Meeting = "round_robin"
        self.worth: Worth = "bradley_terry"

    def add(self, number: int, example: Example) -> None:
        if example.response not in self.numbers:
            self.answers.append(example)
        self.numbers.setdefault(example.response, []).append(number)

    def pair(self, places: Places) -> Example:
        a, b = (self.answers[place] for place in places)
        return replace(a, other=b.response)

    def ask(self, model: RewardModel, pairs: Sequence[Places]) -> list[float | None]:
        """Probabilities that the first of each pair is preferred; None where they cannot be compared."""
        new = [places for places in pairs if places not in self.known]
        self.known |= dict(zip(new, model.compare_many([self.pair(p) for p in new]), strict=True))
        found = [self.known[places] for places in pairs]
        return [result.value if isinstance(result, Reward) else None for result in found]

    def results(self, compare: Callable[[Sequence[Places]], list[float | None]]) -> list[Result]:
        """One for each different answer."""
        count = len(self.answers)
        if count < 2:
            return [Unscored(_ALONE)] * count
        standings = {"round_robin": round_robin, "active": active, "tournament": tournament}[self.meeting](
            compare, count
        )
        values = standings.utilities if self.worth == "bradley_terry" else borda(self._judged(), count)
        return [self._result(place, values[place], standings) for place in range(count)]

    def _judged(self) -> list[Judged]:
        return [(i, j, result.value) for (i, j), result in self.known.items() if isinstance(result, Reward)]

    def _result(self, place: int, utility: float | None, standings: Standings) -> Result:
        own = {places: result for places, result in self.known.items() if place in places}
        if utility is None:
            return next((result for result in own.values() if isinstance(result, Unscored)), Unscored(_ALONE))
        first = [r for (a, _), r in own.items() if a == place and isinstance(r, Reward)]
        flags = ("cycle",) if any(place in cycle for cycle in standings.cycles) else ()
        tokens, cached = sum(r.tokens for r in first), sum(r.cached_tokens for r in first)
        return Reward(utility, orders=self._orders(place), tokens=tokens, cached_tokens=cached, flags=flags)

    def _orders(self, place: int) -> tuple[float, float] | None:
        """Of the one comparison of two answers, the probability of this one, read first and read second."""
        met = self.known.get((0, 1))
        if len(self.answers) != 2 or not isinstance(met, Reward) or met.orders is None:
            return None
        return met.orders if place == 0 else (1 - met.orders[1], 1 - met.orders[0])


def _check(what: str, word: str, words: Sequence[str]) -> None:
    """Raise BadInput for a word that is none of those known."""
    if word not in words:
        raise BadInput(f"no {what} {word!r}{nearest(word, words)}")


def _meeting(asked: Meeting | None, count: int) -> Meeting:
    if asked is not None:
        _check("meeting", asked, get_args(Meeting))
    return asked or ("round_robin" if count <= ROUND_ROBIN else "active")


def _meet(model: RewardModel, groups: Sequence[_Group]) -> None:
    """All comparisons of groups whose answers all meet, in one call, so that they fill forwards together."""
    whole = [group for group in groups if group.meeting == "round_robin"]
    pairs = [(group, places) for group in whole for places in combinations(range(len(group.answers)), 2)]
    found = list(model.compare_many([group.pair(places) for group, places in pairs]))
    if len(found) != len(pairs):
        raise BadInput(f"the model returned {len(found)} results for {len(pairs)} comparisons; it has to return each")
    for (group, places), result in zip(pairs, found, strict=True):
        group.known[places] = result
