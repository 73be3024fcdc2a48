"""Several reward models as one: their mean, the worst of them, or the mean less k standard deviations.

Source: Coste et al. 2023, arXiv:2310.02743. Their worst-case optimisation is `worst`. Their uncertainty-weighted
optimisation takes off lambda times the variance; `mean_minus_std` takes off k standard deviations (n - 1), so that k
does not depend on the rewards' unit. A disagreement costs the reward that it could hide.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, final

import numpy as np
from pydantic import Field, FiniteFloat

from karat.formats import base as formats
from karat.progress import track
from karat.rewards._numbers import logistic
from karat.rewards._untrained import Untrained
from karat.rewards._wrapped import (
    Inner,
    Opener,
    Part,
    Wrapped,
    check_scorer,
    names_of,
    read_spec,
    same_steps,
    together,
    with_values,
)
from karat.rewards.base import Options, Output, RewardModel
from karat.types import BadInput, Example, Result, Reward, Unscored, answers_of, grouped, nearest

COMBINE = ("mean", "worst", "mean_minus_std")


class Member(Part):
    """A model of an ensemble, and the unit of its rewards."""

    name: str
    model: Inner
    location: FiniteFloat = 0.0  # subtracted from its rewards, which are then
    scale: FiniteFloat = Field(default=1.0, gt=0)  # divided by this


class EnsembleSpec(Part):
    """`reward_spec.json` of an ensemble."""

    kind: Literal["ensemble"] = "ensemble"
    members: tuple[Member, ...] = Field(min_length=2)
    combine: Literal["mean", "worst", "mean_minus_std"] = "mean"
    k: FiniteFloat = Field(default=1.0, ge=0)  # standard deviations that mean_minus_std takes off
    rows: int = 0  # answers that locations and scales were measured on; 0: rewards are taken as they are


class EnsembleOptions(Options):
    """There are none."""


@final
class EnsembleKind(Untrained):
    """Learns from nothing."""

    Options = EnsembleOptions
    output: Output = "rating"
    why = "an ensemble is not trained; make one with karat ensemble A B --output E"


KIND = EnsembleKind


class Ensemble(Wrapped):
    """Its members' rewards combined; `objectives` of a reward hold that of each member, in the common unit."""

    spec: EnsembleSpec

    @property
    def output(self) -> Output:
        """That of the members where all have the same, and a rating where they were brought to a common unit."""
        outputs = {model.output for model in self.models}
        moved = any((m.location, m.scale) != (0.0, 1.0) for m in self.spec.members)
        if moved or len(outputs) > 1:
            return "rating"
        below_0 = outputs == {"probability"} and self.spec.combine == "mean_minus_std"
        return "rating" if below_0 else outputs.pop()

    @property
    def at_steps(self) -> bool:
        """Whether the rewards of all members come with those of an answer's steps."""
        return all(model.at_steps for model in self.models)

    def compared(self, a: Reward, b: Reward) -> float:
        """The logistic of a lead in logits; in another unit, or of steps, who is higher: 1, 0.5 or 0."""
        if self.output == "logit" and not self.at_steps:
            return logistic(a.value - b.value)
        return float(a.value > b.value) + 0.5 * (a.value == b.value)

    def _made(self, results: Sequence[Result], row: Any) -> Result:
        members, rewards = self.spec.members, [r for r in results if isinstance(r, Reward)]
        for member, result in zip(members, results, strict=True):
            if isinstance(result, Unscored):
                return replace(result, reason=f"{member.name}: {result.reason}")
        values = [_moved(m, r.value) for m, r in zip(members, rewards, strict=True)]
        steps = [[_moved(m, s) for s in r.steps or ()] for m, r in zip(members, rewards, strict=True)]
        together_at = same_steps([m.name for m in members], steps) if self.at_steps else []
        if isinstance(together_at, Unscored):
            return together_at
        gate = {m.name: 1 / len(members) for m in members} if self.spec.combine == "mean" else None
        joined = together(rewards, {m.name: value for m, value in zip(members, values, strict=True)}, gate)
        by_step = tuple(map(self._combined, together_at)) if self.at_steps else None
        return with_values(joined, self._combined(values), by_step)

    def _combined(self, values: Sequence[float]) -> float:
        if self.spec.combine == "worst":
            return min(values)
        mean = math.fsum(values) / len(values)
        if self.spec.combine == "mean":
            return mean
        variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
        return mean - self.spec.k * math.sqrt(variance)


def _moved(member: Member, value: float) -> float:
    return (value - member.location) / member.scale


def load(folder: Path, opener: Opener, options: Mapping[str, Any]) -> Ensemble:
    """The ensemble of a folder, with all its members."""
    spec = read_spec(EnsembleSpec, folder)
    return Ensemble(spec, [member.model.open(folder, opener, options) for member in spec.members])


# ---------------------------------------------------------------------------------------------- making one


class Rule(NamedTuple):
    """How rewards are combined."""

    combine: str = "mean"  # one of COMBINE
    k: float | None = None  # of mean_minus_std, where None is 1


class Made(NamedTuple):
    """A new ensemble, and what its units were measured without."""

    spec: EnsembleSpec
    unscored: dict[str, int]  # reason → answers


def check(paths: Sequence[str], rule: Rule) -> None:
    """Raise BadInput for what makes no ensemble, before a model is loaded."""
    if len(paths) < 2:
        raise BadInput(f"an ensemble needs at least two models, but got {len(paths)}; give another one")
    if twice := [path for path, count in Counter(paths).items() if count > 1]:
        raise BadInput(f"{twice[0]} is given twice, which adds nothing; give another model")
    if rule.combine not in COMBINE:
        raise BadInput(f"no way to combine called {rule.combine!r}{nearest(rule.combine, COMBINE)}")
    if rule.k is not None and rule.combine != "mean_minus_std":
        raise BadInput(f"{rule.combine} has no k; leave it out, or combine by mean_minus_std")
    if rule.k is not None and not 0 <= rule.k < math.inf:
        raise BadInput(f"k is {rule.k:g}, but it has to be a finite number of at least 0")


def read_answers(data: str) -> list[Example]:
    """All answers of a data file of any format, labelled or not.

    Raises:
        BadInput: it holds none.
    """
    items = formats.load(data).items
    return [answer for item in items for answer in ([item] if isinstance(item, Example) else answers_of(item))]


def make(
    models: Mapping[str, RewardModel],
    folder: Path,
    rule: Rule,
    answers: Sequence[Example] = (),
    options: Mapping[str, Any] | None = None,
) -> Made:
    """An ensemble of the models at these paths, as it is kept in `folder`.

    Where there are answers, each member's location and scale are the mean and the standard deviation (n - 1) of its
    rewards of them; answers that one member cannot score are left out for all.

    Raises:
        BadInput: `check` does, the rewards are in different units and there are no answers, or they do not differ.
        Refused: a model gives no rewards.
    """
    check(list(models), rule)
    for path, model in models.items():
        check_scorer(model, path)
    units, rows, unscored = _units(models, answers) if answers else ([(0.0, 1.0)] * len(models), 0, {})
    outputs = sorted({model.output for model in models.values()})
    if len(outputs) > 1 and not answers:
        raise BadInput(f"the members' rewards are {' and '.join(outputs)}; bring them to one unit with --data")
    members = tuple(
        Member(name=name, model=Inner.of(path, folder, options or {}), location=location, scale=scale)
        for name, path, (location, scale) in zip(names_of(list(models)), models, units, strict=True)
    )
    k = 1.0 if rule.k is None else rule.k
    made = {"members": members, "combine": rule.combine, "k": k, "rows": rows}
    return Made(EnsembleSpec.model_validate(made), unscored)


def _units(
    models: Mapping[str, RewardModel], answers: Sequence[Example]
) -> tuple[list[tuple[float, float]], int, dict[str, int]]:
    """Location and scale of each model, on how many answers, and why not on the others."""
    columns = [
        list(track(model.score_many(answers), len(answers), f"{path}: scored")) for path, model in models.items()
    ]
    found = list(zip(*columns, strict=True))
    reasons = [next((r.reason for r in row if isinstance(r, Unscored)), None) for row in found]
    rewards = [[r.value for r in row if isinstance(r, Reward)] for row in found]
    values = np.array([own for own in rewards if len(own) == len(models)])
    if len(values) < 2:
        raise BadInput(f"{len(values)} answers have a reward of every member; a unit takes at least two to measure")
    scales = values.std(axis=0, ddof=1)
    for path, scale in zip(models, scales, strict=True):
        if not scale > 0:
            raise BadInput(
                f"{path} gives all {len(values)} answers the same reward; give more answers, or leave it out"
            )
    unscored = {reason: len(places) for reason, places in grouped(why for why in reasons if why).items()}
    return list(zip(values.mean(axis=0).tolist(), scales.tolist(), strict=True)), len(values), unscored
