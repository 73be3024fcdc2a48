"""What sequences got → results: rewards with their objectives, flags and both orders of a comparison."""

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

from torch import Tensor

from karat import types
from karat.models.heads import objectives_of, weights_of
from karat.models.render import Rendered
from karat.spec import RewardSpec
from karat.types import Result, Reward, Unscored


class Scored(NamedTuple):
    """What a sequence got."""

    value: float
    cached_tokens: int
    steps: tuple[float, ...] | None = None  # where rewards are read at steps
    objectives: dict[str, float] | None = None  # where outputs have names
    gate: dict[str, float] | None = None  # their weights
    sound: bool = True  # the head gave finite numbers


def named(spec: RewardSpec, numbers_Rk: Tensor) -> list[tuple[dict[str, float], dict[str, float]]]:
    """Objectives and their weights by name, for each read; none where outputs have no names."""
    if not spec.objectives:
        return []
    both = zip(objectives_of(spec, numbers_Rk).tolist(), weights_of(spec, numbers_Rk).tolist(), strict=True)
    return [(_by_name(spec, own), _by_name(spec, weights)) for own, weights in both]


def _by_name(spec: RewardSpec, values: Sequence[float]) -> dict[str, float]:
    return dict(zip(spec.objectives, values, strict=True))


def flagged(result: Result, spec: RewardSpec) -> Result:
    """With a flag for each objective that is under its floor."""
    if isinstance(result, Unscored):
        return result
    floors, own = spec.at_least.items(), result.objectives or {}
    return replace(result, flags=(*result.flags, *(f"below_{name}" for name, floor in floors if own[name] < floor)))


def averaged(first: Result, second: Result) -> Result:
    """What both orders say of the answer that comes first in the first."""
    if isinstance(first, Unscored) or isinstance(second, Unscored):
        return first if isinstance(first, Unscored) else second
    orders = (first.value, 1 - second.value)
    return replace(joined(first, second, (orders[0] + orders[1]) / 2), orders=orders)


def joined(a: Reward, b: Reward, value: float) -> Reward:
    """A value that two rewards have together, with what both of them cost and were flagged with."""
    return Reward(
        value,
        tokens=a.tokens + b.tokens,
        cached_tokens=a.cached_tokens + b.cached_tokens,
        truncated=a.truncated or b.truncated,
        flags=tuple(dict.fromkeys(a.flags + b.flags)),
    )


def by_step(tokens: Sequence[float], sequence: types.Sequence) -> tuple[float, ...]:
    """Sums over each step of what an answer's tokens have."""
    reads, ends = sequence.reads["answer"], sequence.reads["ends"]
    assert isinstance(reads, tuple) and isinstance(ends, tuple)
    bounds = [0, *(end - reads[0] for end in ends)]  # a token's number stands at the position before it
    return tuple(math.fsum(tokens[a:b]) for a, b in pairwise(bounds))


def as_result(rendered: Rendered, scored: Scored | Unscored) -> Result:
    """The reward of a rendered answer; a value that is no number is none."""
    if isinstance(scored, Unscored):
        return scored
    value, cached, steps, objectives, gate, sound = scored
    if not all(abs(v) < float("inf") for v in (value, *(steps or ()), *(objectives or {}).values())):
        if sound:
            return Unscored(f"the model's numbers became {value}, which is no reward; check its output and weights")
        return Unscored(
            f"the model gave {value}, which is no reward; check its weights, or load it with dtype='float32'",
            failed=True,
        )
    tokens = len(rendered.sequence.ids)
    told = {"truncated": rendered.truncated, "flags": rendered.flags}
    return Reward(value, steps, objectives, gate, tokens=tokens, cached_tokens=cached, **told)  # type: ignore[arg-type]
