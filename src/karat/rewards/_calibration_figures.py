"""What shows that a calibration helped: figures before and after on rows that it was not fitted on, and a verdict."""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, TypeAlias

import numpy as np

from karat import metrics
from karat.metrics import FloatArray, Interval, sigmoid
from karat.rewards._calibration import How, Length, Rows, Temperature, nll
from karat.rewards.base import Output

_CERTAIN = 1e-12  # a probability of 0 or 1 counts as this far from it, where a logarithm is taken
_RESAMPLES = 500
ACCURACY = "accuracy"


class Change(NamedTuple):
    """A figure before and after; intervals are of 95 %, None where there is one prompt."""

    name: str
    before: float | None  # None where the rewards by themselves say nothing of it
    after: float | None
    before_interval: Interval | None
    after_interval: Interval | None

    @property
    def worse(self) -> bool | None:
        """Whether it is worse than before: an accuracy that fell, or anything else that is farther from 0."""
        if self.before is None or self.after is None:
            return None
        return self.after < self.before if self.name == ACCURACY else abs(self.after) > abs(self.before)


class Verdict(NamedTuple):
    """Whether correcting helped, by the figure that a method is for, on rows that it was not fitted on."""

    word: Literal["better", "worse", "no clear change"]
    change: Change
    by: float  # how much farther from 0 the figure is; below 0 is better
    interval: Interval | None  # 95 %, paired; None where there is one prompt
    also: tuple[Change, ...]  # the other figures that are worse

    def __str__(self) -> str:
        """It in a sentence, with the figures before and after."""
        ends = f", 95 % interval {self.interval.low:+.4f} … {self.interval.high:+.4f}" if self.interval else ""
        told = f"{self.word}: {_from_to(self.change)} ({self.by:+.4f}{ends})"
        told += "".join(f"; worse: {_from_to(one)}" for one in self.also)
        mend = "fit on more rows, take another method, or leave the model as it was"
        return told if self.word == "better" else f"{told}; {mend}"


def _from_to(change: Change) -> str:
    return f"{change.name} from {change.before:.4f} to {change.after:.4f}"


Figure: TypeAlias = tuple[float | None, Interval | None]


def changes(how: How, rows: Rows, output: Output, seed: int) -> tuple[Change, ...]:
    """What correcting does to rows that it was not fitted on; `output` is what the rewards were."""
    after = rows._replace(rewards_BK=how.apply(rows.rewards_BK, rows.characters_BK))
    if isinstance(how, Length):
        found = [
            (f"length correlation, {name}", _correlation(rows, columns, seed), _correlation(after, columns, seed))
            for name, columns in (("within pairs", _within), ("over answers", _over))
        ]
        found.append((ACCURACY, _accuracy(rows, seed), _accuracy(after, seed)))
    else:
        before = _logits(rows, output)
        own = [_nll_figure, _calibration_error]
        names = ["negative log-likelihood, nats", "calibration error (ECE)"]
        of_before = [(None, None) if before is None else figure(before, rows, seed) for figure in own]
        logits = _logits(after, "logit" if isinstance(how, Temperature) else "probability")
        assert logits is not None
        found = [(n, b, figure(logits, rows, seed)) for n, b, figure in zip(names, of_before, own, strict=True)]
    return tuple(Change(name, b[0], a[0], b[1], a[1]) for name, b, a in found)


def verdict(how: How, rows: Rows, output: Output, seed: int, found: Sequence[Change]) -> Verdict | None:
    """What the first of the changes comes to, paired on the same rows; None where nothing is known of before."""
    if not found or found[0].worse is None:
        return None
    after = rows._replace(rewards_BK=how.apply(rows.rewards_BK, rows.characters_BK))
    gap = _farther if isinstance(how, Length) else _lost
    if isinstance(how, Length):
        both = np.concatenate([_within(rows), _within(after)], axis=1)
    else:
        logits = [_logits(rows, output), _logits(after, "logit" if isinstance(how, Temperature) else "probability")]
        nats = [nll(own, rows.labels) * rows.weights for own in logits if own is not None]
        both = np.stack([*nats, rows.weights], axis=1)
    by = float(gap(both.sum(axis=0)[None])[0])
    ends = _interval(rows, lambda: metrics.bootstrap_of_sums(both, gap, groups=rows.prompts, seed=seed))
    clear = ends is not None and (ends.low > 0 or ends.high < 0)
    word: Literal["better", "worse", "no clear change"] = "no clear change"
    if clear:
        word = "worse" if by > 0 else "better"
    return Verdict(word, found[0], by, ends, tuple(one for one in found[1:] if one.worse))


def _farther(sums_N6: FloatArray) -> FloatArray:
    """How much farther from 0 the second correlation is, [N]."""
    found: FloatArray = np.abs(_ratio(sums_N6[:, 3:])) - np.abs(_ratio(sums_N6[:, :3]))
    return found


def _lost(sums_N3: FloatArray) -> FloatArray:
    """How much more nats the second way costs, [N]."""
    found: FloatArray = (sums_N3[:, 1] - sums_N3[:, 0]) / sums_N3[:, 2]
    return found


def _logits(rows: Rows, output: Output) -> FloatArray | None:
    """What rewards say as log-odds: of a preference a lead in any unit, of an outcome None for ratings."""
    if rows.rewards_BK.shape[1] == 2:
        return rows.leads
    reward = rows.rewards_BK[:, 0]
    if output == "probability":
        share = np.clip(reward, _CERTAIN, 1 - _CERTAIN)
        odds: FloatArray = np.log(share) - np.log1p(-share)
        return odds
    return reward if output == "logit" else None


def _nll_figure(logits: FloatArray, rows: Rows, seed: int) -> Figure:
    nats = nll(logits, rows.labels)
    return float(np.average(nats, weights=rows.weights)), _interval(
        rows, lambda: metrics.bootstrap_interval(nats, weights=rows.weights, groups=rows.prompts, seed=seed)
    )


def _calibration_error(logits: FloatArray, rows: Rows, seed: int) -> Figure:
    """Of pairs, that of the favoured answer's probability, in ten bins from 0.5; else in 15 bins from 0."""
    of_pairs = rows.rewards_BK.shape[1] == 2
    turned = of_pairs & (logits < 0)
    label = np.where(turned, 1 - rows.labels, rows.labels)
    label = np.where(of_pairs & (logits == 0), 0.5, label)  # neither is favoured
    prob, bins = sigmoid(np.where(turned, -logits, logits)), 20 if of_pairs else 15
    gaps = np.zeros((prob.size, bins + 1))  # summed over rows: each bin's distance, and the weight of all
    gaps[np.arange(prob.size), np.minimum((prob * bins).astype(int), bins - 1)] = rows.weights * (prob - label)
    gaps[:, bins] = rows.weights

    def error(sums_NF: FloatArray) -> FloatArray:
        found: FloatArray = np.abs(sums_NF[:, :bins]).sum(axis=1) / sums_NF[:, bins]
        return found

    return metrics.expected_calibration_error(prob, label, bins, rows.weights), _interval(
        rows, lambda: metrics.bootstrap_of_sums(gaps, error, groups=rows.prompts, n=_RESAMPLES, seed=seed)
    )


def _within(rows: Rows) -> FloatArray:
    """Products whose sums give the correlation of leads and differences of log(1 + characters), about 0, [B, 3]."""
    length = np.log1p(rows.characters_BK)
    lead, longer = rows.leads, length[:, 0] - length[:, 1]
    return np.stack([lead * longer, lead**2, longer**2], axis=1) * rows.weights[:, None]


def _over(rows: Rows) -> FloatArray:
    """Products whose sums give the correlation of rewards and log(1 + characters), about their means, [B, 3]."""
    reward, length = (_centred(of, rows.weights) for of in (rows.rewards_BK, np.log1p(rows.characters_BK)))
    products = np.stack([reward * length, reward**2, length**2], axis=-1)
    summed: FloatArray = products.sum(axis=1) * rows.weights[:, None]
    return summed


def _centred(values_BK: FloatArray, weights: FloatArray) -> FloatArray:
    centred: FloatArray = values_BK - np.average(values_BK.mean(axis=1), weights=weights)
    return centred


def _correlation(rows: Rows, columns: Callable[[Rows], FloatArray], seed: int) -> Figure:
    products = columns(rows)
    (value,) = _ratio(products.sum(axis=0)[None])
    if np.isnan(value):
        return None, None
    return float(value), _interval(
        rows, lambda: metrics.bootstrap_of_sums(products, _ratio, groups=rows.prompts, seed=seed)
    )


def _ratio(sums_N3: FloatArray) -> FloatArray:
    """The correlation of sums of products, [N]; NaN where there is none."""
    size = np.sqrt(sums_N3[:, 1] * sums_N3[:, 2])
    found: FloatArray = np.divide(sums_N3[:, 0], size, out=np.full(len(size), np.nan), where=size > 0)
    return found


def _accuracy(rows: Rows, seed: int) -> Figure:
    """How often the preferred answer leads; a tie in the rewards is wrong, pairs without a preference do not count."""
    weights = np.where(rows.labels == 0.5, 0.0, rows.weights)
    if not weights.any():
        return None, None
    hits = (rows.leads * (rows.labels - 0.5) > 0).astype(np.float64)
    return float(np.average(hits, weights=weights)), _interval(
        rows, lambda: metrics.bootstrap_interval(hits, weights=weights, groups=rows.prompts, seed=seed)
    )


def _interval(rows: Rows, found: Callable[[], Interval]) -> Interval | None:
    """Over whole prompts, where there are several."""
    return found() if len(set(rows.prompts)) > 1 else None
