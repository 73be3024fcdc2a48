"""What methods that grow answers step by step share: their options, lookahead, and the last word to a beginning."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from pydantic import Field

from karat.rewards._among import in_order
from karat.search._choice import Choose, Normalize
from karat.search.base import Candidate, Draw, Judged, Options, Searching, draw, score


class Growing(Options):
    """Options of methods that keep several beginnings."""

    n: int = Field(default=16, ge=1)  # beginnings that are gone on with at a time
    width: int = Field(default=4, ge=1)  # steps that are drawn from each that is kept, so that n / width are kept
    max_steps: int = Field(default=40, ge=1)  # of an answer; the last is drawn to the end
    lookahead: int = Field(default=0, ge=0)  # greedy steps further at which the reward is taken
    choose: Choose = "best"  # among the answers in the end
    normalize: Normalize = "none"  # of rewards for choose=weighted

    @property
    def problem(self) -> str:
        """N has to be a multiple of width, and weights are for a vote."""
        if self.n % self.width:
            return f"n={self.n} is no multiple of width={self.width}; change one"
        if self.normalize != "none" and self.choose != "weighted":
            return f"normalize={self.normalize!r} makes weights for choose='weighted'; give that too, or leave it out"
        return ""


@dataclass(frozen=True, slots=True)
class Grown:
    """A beginning, and what it looks like from further on."""

    candidate: Candidate
    seen: Judged  # itself, or with the steps of the lookahead; what its reward is of


def grow(wanted: Sequence[tuple[Candidate, int]], last: bool, lookahead: int) -> Searching[list[list[Grown]]]:
    """A step more of each beginning, so often as asked, with rewards; `last` draws to the end. All in one batch."""
    drawn = yield from draw([Draw(start, count, step=not last) for start, count in wanted])
    flat = [one for own in drawn for one in own]
    seen = iter((yield from score((yield from ahead(flat, lookahead)))))
    return [[Grown(one, next(seen)) for one in own] for own in drawn]


def ahead(candidates: Sequence[Candidate], steps: int) -> Searching[list[Candidate]]:
    """Each candidate some greedy steps further on; one that cannot be gone on with stays as far as it came."""
    found = list(candidates)
    for _ in range(steps):
        open_ = [i for i, one in enumerate(found) if not one.done]
        drawn = yield from draw([Draw(found[i], step=True, greedy=True) for i in open_])
        for i, further in zip(open_, drawn, strict=True):
            found[i] = further[0] if further else replace(found[i], done=True)
    return found


def finish(finished: Sequence[Candidate], beginnings: Sequence[Candidate]) -> Searching[list[Candidate]]:
    """The finished answers; where there are none, as the budget was spent, the first beginning is drawn to its end."""
    if finished or not beginnings:
        return list(finished)
    (drawn,) = yield from draw([Draw(beginnings[0], over=True)])
    return drawn


def ranked(grown: Sequence[Grown]) -> list[Grown]:
    """Those with a reward, best first, under a floor last; of equal ones the first."""
    order = in_order(one.seen.result for one in grown if one.seen.result is not None)
    return [grown[place.number] for place in order if grown[place.number].seen.value is not None]
