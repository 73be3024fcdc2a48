"""Adaptive N (Aggarwal et al. 2023): answers are drawn until it is known well enough which one wins, n at most.

With a reward model an answer counts by its reward, without one as a vote of 1. What is known: by Beta(w1 + 1, w2 + 1)
of the two heaviest final answers, with what probability the first is the more frequent one.
"""

from typing import Literal

from pydantic import Field

from karat.search._choice import tally, vote
from karat.search._choice import weights as as_weights
from karat.search.base import Draw, Found, Judged, Method, Options, Searching, alike, draw, score


class Adaptive(Options):
    """Options of adaptive N."""

    n: int = Field(default=32, ge=1)  # answers at most
    wave: int = Field(default=2, ge=1)  # answers that are drawn at a time
    confidence: float = Field(default=0.95, gt=0.5, lt=1)  # at which drawing stops
    weigh: Literal["reward", "count"] = "reward"  # what an answer counts
    normalize: Literal["none", "sigmoid"] = "none"  # what makes weights in [0, 1] of rewards that are log-odds

    @property
    def problem(self) -> str:
        """Counts need no weights."""
        counts = self.weigh == "count" and self.normalize != "none"
        return f"normalize={self.normalize!r} makes weights of rewards, and weigh='count' has none" if counts else ""


def adaptive(options: Adaptive) -> Searching[Found]:
    """Draw a wave, weigh, and go on while the winner is in doubt."""
    found: list[Judged] = []
    own: list[float | None] = []
    asked = 0
    while asked < options.n:
        wave = min(options.wave, options.n - asked)
        (answers,) = yield from draw([Draw(count=wave)])
        asked += wave
        if options.weigh == "reward":
            found += yield from score(answers)
            own = as_weights([one.value for one in found], options.normalize)
        else:
            found += [Judged(one, None) for one in answers]
            own = [1.0] * len(found)
        places = yield from alike([one.candidate.answer for one in found])
        if certainty(list(tally(places, own).values())) >= options.confidence:
            break
    return (yield from vote(found, own))


def certainty(sums: list[float]) -> float:
    """Probability that the heaviest of some final answers is the most frequent, from their weights; 0 without any.

    >>> [round(certainty(sums), 4) for sums in ([3.0], [3.0, 1.0], [4.0, 0.0], [])]
    [0.9375, 0.8125, 0.9688, 0.0]
    """
    from scipy.special import betainc

    if not sums:
        return 0.0
    first, second = sorted([*sums, 0.0], reverse=True)[:2]
    return float(1 - betainc(first + 1, second + 1, 0.5))


METHOD = Method(
    Adaptive,
    adaptive,
    rewarded=lambda options: options.weigh == "reward",
    alone=True,
    adds=lambda options: options.weigh == "reward" and options.normalize == "none",
)
