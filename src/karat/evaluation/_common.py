"""What the evaluations share: asking the scorer, setting the unscored aside, figures with intervals."""

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from karat import metrics
from karat.evaluation.base import LEAD, Figure, Mistake, Scorer
from karat.metrics import FloatArray, Interval
from karat.types import BadInput, Example, Item, Labelled, Pair, Reward, Unscored

MISTAKES = 5
_RESAMPLES_OF_A_STATISTIC = 500


@dataclass(frozen=True, slots=True)
class Judged:
    """Items of which every answer has a reward, and why the others have not."""

    kept: tuple[int, ...]  # places in the items given
    rewards: tuple[FloatArray, ...]  # for each of them [K], one reward per answer
    unscored: dict[str, int]  # reason of the first unscored answer → items


def answers_of(item: Item) -> tuple[Example, ...]:
    """The answers of an item: chosen and rejected, the one, or the candidates."""
    if isinstance(item, Pair):
        return (item.chosen, item.rejected)
    return (item.example,) if isinstance(item, Labelled) else item.candidates


def judge(scorer: Scorer, items: Sequence[Item]) -> Judged:
    """Scores all answers in one call and sets aside the items with an unscored one.

    Raises:
        BadInput: the scorer returned too few or too many, a value that is not finite, or no reward at all.
    """
    answers = [answers_of(item) for item in items]
    flat = [answer for group in answers for answer in group]
    scored = list(scorer(flat))
    if len(scored) != len(flat):
        raise BadInput(f"the scorer returned {len(scored)} results for {len(flat)} answers: it has to return one each")
    ends = np.cumsum([len(group) for group in answers])
    groups = [scored[end - len(group) : end] for group, end in zip(answers, ends, strict=True)]
    reasons = [next((r.reason for r in group if isinstance(r, Unscored)), None) for group in groups]
    kept = tuple(i for i, reason in enumerate(reasons) if reason is None)
    unscored = Counter(reason for reason in reasons if reason is not None)
    if not kept:
        raise BadInput(f"nothing could be judged: {_most(unscored)}")
    rewards = tuple(_values([r for r in groups[i] if isinstance(r, Reward)]) for i in kept)
    return Judged(kept, rewards, dict(unscored.most_common()))


def _most(unscored: Counter[str]) -> str:
    reason, times = unscored.most_common(1)[0]
    return f"all {unscored.total()} items are unscored, {times} of them because {reason!r}"


def _values(rewards: Iterable[Reward]) -> FloatArray:
    values = np.array([reward.value for reward in rewards], dtype=np.float64)
    if not np.isfinite(values).all():
        raise BadInput("the scorer returned a reward that is not finite: return Unscored with the reason instead")
    return values


def prompt_ids(examples: Iterable[Example]) -> list[int]:
    """A number for each distinct prompt, in order of appearance: the clusters of the bootstrap."""
    seen: dict[Hashable, int] = {}
    return [seen.setdefault(example.prompt, len(seen)) for example in examples]


def lengths_of(examples: Iterable[Example]) -> FloatArray:
    """Characters of each answer."""
    return np.array([len(example.response) for example in examples], dtype=np.float64)


def share(
    name: str, credit: FloatArray, weights: FloatArray, groups: Sequence[int], seed: int, note: str = ""
) -> Figure:
    """A mean of credits in [0, 1], [B], with an interval over whole prompts.

    Where no resample differs (all right, all wrong, one prompt), the bootstrap would claim certainty; Wilson's interval
    over the number of prompts takes its place.
    """
    value = float(credit @ weights / weights.sum())
    low, high = metrics.bootstrap_interval(credit, weights=weights, groups=groups, seed=seed)
    if math.isclose(low, high):
        clusters = len(set(groups))
        low, high = metrics.wilson_interval(min(value, 1.0) * clusters, clusters)
        note = f"{note}; Wilson interval" if note else "Wilson interval"
    return Figure(name, value, low, high, credit.size, note, percent=True)


def null_shares(
    credits: dict[str, FloatArray], against: str, weights: FloatArray, groups: Sequence[int], seed: int
) -> tuple[Figure, ...]:
    """The nulls of a share, from each one's credits [B]; a constant credit is exact and has no interval."""
    figures = []
    for name, credit in credits.items():
        figure = share(name, credit, weights, groups, seed)
        exact = np.ptp(credit) == 0
        known = replace(figure, low=None, high=None, note="expected") if exact else figure
        figures.append(replace(known, against=against))
    return tuple(figures)


def lead(
    credit: FloatArray, null: FloatArray, weights: FloatArray, groups: Sequence[int], seed: int, over: str
) -> Figure:
    """Mean difference of the model's and the null's credits on the same rows, with a paired interval."""
    gap = credit - null
    low, high = metrics.bootstrap_interval(gap, weights=weights, groups=groups, seed=seed)
    return Figure(
        LEAD, float(gap @ weights / weights.sum()), low, high, gap.size, f"over {over}, on the same rows", percent=True
    )


def statistic_interval(columns: FloatArray, statistic: metrics.Statistic, groups: Sequence[int], seed: int) -> Interval:
    """Interval over whole prompts of a statistic of rows [B, F]."""
    return metrics.bootstrap_interval(columns, statistic, groups=groups, n=_RESAMPLES_OF_A_STATISTIC, seed=seed)


def spread(rewards: FloatArray) -> list[Figure]:
    """Mean, standard deviation and range of all rewards judged."""
    found = {
        "mean": rewards.mean(),
        "standard deviation": rewards.std(),
        "lowest": rewards.min(),
        "highest": rewards.max(),
    }
    return [Figure(f"reward, {name}", float(value), n=rewards.size) for name, value in found.items()]


def length_correlation(lengths: FloatArray, rewards: FloatArray) -> list[Figure]:
    """Correlation of reward and characters of the answer; none where either is constant."""
    found = {"Pearson": metrics.pearson(lengths, rewards), "Spearman": metrics.spearman(lengths, rewards)}
    return [
        Figure(f"reward and length, {name}", value, n=rewards.size, note="characters of the answer; 0 is no relation")
        for name, value in found.items()
        if value is not None
    ]


def overlap_note(items: Sequence[Item], training: Sequence[Item]) -> list[str]:
    """A warning if evaluated answers were trained on."""
    known = {(a.prompt, a.response) for item in training for a in answers_of(item)}
    seen = sum(all((a.prompt, a.response) in known for a in answers_of(item)) for item in items)
    return [f"{seen} of {len(items)} evaluated items are in the training data, answers included"] if seen else []


def mistake(margin: float, better: Example, worse: Example | None, origin: str) -> Mistake:
    """One wrongly ordered item as text."""
    prompt = "\n\n".join(message.content for message in better.prompt)
    return Mistake(prompt, better.response, worse.response if worse else "", margin, origin)
