"""What rollouts say of each step: posteriors of the chance that a policy reaches the answer from behind it.

The model has S steps and a first wrong one, e in 0 … S - 1, or none. From before it the answer can be reached, with a
chance that is uniform on (0, 1) beforehand and a Beta afterwards; from it on, it cannot. That no step is wrong has half
of the prior, each place of the first wrong one an even share of the other half. Knows nothing of texts or policies.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import special

Counts = NDArray[np.int64]
Floats = NDArray[np.float64]
MASS = 0.95  # of the intervals


class Interval(NamedTuple):
    """A posterior of a chance: its mean and the ends of its central 95 %, all in [0, 1]."""

    mean: float
    low: float
    high: float


def beta_interval(right: int, judged: int) -> Interval:
    """The posterior of a step by itself, from a uniform prior: Beta(1 + right, 1 + judged - right)."""
    a, b = 1 + right, 1 + judged - right
    low, high = special.betaincinv(a, b, [(1 - MASS) / 2, (1 + MASS) / 2])
    return Interval(a / (a + b), float(low), float(high))


class Posterior:
    """The joint posterior of the S steps of one answer."""

    def __init__(self, steps: int, final: bool | None = None) -> None:
        """`final` is whether the whole answer is known to be right or wrong: its last step then needs no rollout."""
        self.right: Counts = np.zeros(steps, np.int64)  # [S] rollouts that reached the answer
        self.judged: Counts = np.zeros(steps, np.int64)  # [S] rollouts that have a verdict
        self._final = final
        self._prior = np.log(np.append(np.full(steps, 0.5 / steps), 0.5))  # [S + 1], the last for no wrong step
        if final is not None:
            self._prior[-1 if final is False else slice(0, -1)] = -np.inf

    def add(self, step: int, right: int, judged: int) -> None:
        """Take `judged` more rollouts from behind a step into account, of which `right` reached the answer."""
        self.right[step] += right
        self.judged[step] += judged

    def reachable(self) -> Floats:
        """For each step the probability that the answer can be reached from behind it, in [0, 1], falling; [S]."""
        return self._moments(self.right, self.judged)[0]

    def means(self) -> Floats:
        """For each step the posterior mean of the chance to reach the answer, [S]."""
        alive, mean, _ = self._moments(self.right, self.judged)
        return alive * mean

    def deviations(self) -> Floats:
        """For each step the posterior standard deviation of that chance, [S], 0 to 0.5."""
        return np.sqrt(self._variances(self.right, self.judged))

    def gains(self) -> Floats:
        """For each step by how much one more rollout there lowers the summed variance of all steps on average, [S]."""
        one, chance = np.eye(len(self.right), dtype=np.int64), self.means()
        possible = one * (chance > 0)[:, None]  # a success where none can be has no posterior
        now = self._variances(self.right, self.judged).sum(-1)
        hit = self._variances(self.right + possible, self.judged + one).sum(-1)  # [S] by where the rollout starts
        miss = self._variances(np.broadcast_to(self.right, one.shape), self.judged + one).sum(-1)
        gains: Floats = now - (chance * hit + (1 - chance) * miss)
        if self._final is not None:
            gains[-1] = 0.0
        return np.maximum(gains, 0.0)

    def intervals(self) -> list[Interval]:
        """For each step its posterior: a mixture of 0 and a Beta."""
        alive, means = self.reachable(), self.means()
        return [self._interval(k, float(alive[k]), float(means[k])) for k in range(len(alive))]

    def _interval(self, step: int, alive: float, mean: float) -> Interval:
        if self._final is not None and step == len(self.right) - 1:
            return Interval(mean, mean, mean)
        a, b = 1 + self.right[step], 1 + self.judged[step] - self.right[step]
        ends = np.array([(1 - MASS) / 2, (1 + MASS) / 2])
        inside = np.clip((ends - (1 - alive)) / max(alive, 1e-300), 0.0, 1.0)  # of the Beta; below is the mass at 0
        low, high = special.betaincinv(a, b, inside)
        return Interval(mean, float(low), float(high))

    def _variances(self, right: Any, judged: Any) -> Floats:
        alive, mean, square = self._moments(right, judged)
        return np.maximum(alive * square - (alive * mean) ** 2, 0.0)

    def _moments(self, right: Any, judged: Any) -> tuple[Floats, Floats, Floats]:
        """P(reachable), and mean and mean square of the chance where it is; each [..., S] as the counts are."""
        a, b = 1.0 + right, 1.0 + judged - right
        mean, square = a / (a + b), a * (a + 1) / ((a + b) * (a + b + 1))
        alive = self._alive(right, special.betaln(a, b))
        if self._final is not None:  # the last step is certain
            mean[..., -1] = square[..., -1] = 1.0
        return alive, mean, square

    def _alive(self, right: Any, likelihood: Floats) -> Floats:
        before = np.cumsum(likelihood, -1)  # of the steps up to each one, all reachable
        dead = np.where(_from_the_end(right) > 0, -np.inf, 0.0)  # a success at it or later
        ends = np.zeros((*right.shape[:-1], 1))
        # [..., S + 1] by the place of the first wrong step
        joint = np.concatenate([ends, before], -1) + np.concatenate([dead, ends], -1) + self._prior
        shares = np.exp(joint - joint.max(-1, keepdims=True))
        alive: Floats = _from_the_end(shares)
        return alive[..., 1:] / alive[..., :1]


def _from_the_end(values: Any) -> Any:
    """Sums of each value and all behind it, along the last axis."""
    return np.cumsum(values[..., ::-1], -1)[..., ::-1]


def fraction(right: int, judged: int) -> float | None:
    """Of the rollouts with a verdict, those that reached the answer; None without any."""
    return right / judged if judged else None


def choose(gains: Floats, count: int) -> Sequence[int]:
    """Where `count` rollouts that are drawn together inform most; those already chosen dampen the gain of a place."""
    pending = np.zeros(len(gains))
    chosen = []
    for _ in range(count):
        chosen.append(int(np.argmax(gains / (1 + pending) ** 2)))
        pending[chosen[-1]] += 1
    return chosen
