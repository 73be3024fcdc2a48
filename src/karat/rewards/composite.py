"""Rewards put together by a rule: an answer check times a model, a weighted sum, or models behind gates.

The check compares an answer's final answer with the reference in its context: 1 where they are equal, 0 where they
are not or where there is none. What a part cannot judge has no reward at all: a sum without one of its terms would be
another reward.
"""

import math
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self, final

from pydantic import FiniteFloat, model_validator

from karat.rewards._answers import final_answer, known_reference
from karat.rewards._equality import Judge
from karat.rewards._examples import as_example
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
from karat.types import BadInput, Prompt, Refused, Result, Reward, Unscored, nearest

COMBINE = ("product", "sum", "gated")
CHECK = "check"  # what the answer check is called beside the models
NO_STEPS = (
    "this composite has one reward for a whole answer; use score, or combine process models alone by product or sum"
)
NO_ANSWER = "no_answer"  # the flag of an answer in which the check finds no final answer


class Term(Part):
    """A model of a composite."""

    name: str
    model: Inner
    weight: FiniteFloat = 1.0  # in a sum
    at_least: FiniteFloat | None = None  # what its reward has to reach; then it is a gate and adds nothing


class Check(Part):
    """The answer check."""

    key: str  # where an answer's context has the reference
    weight: FiniteFloat = 1.0  # in a sum


class CompositeSpec(Part):
    """`reward_spec.json` of a composite."""

    kind: Literal["composite"] = "composite"
    combine: Literal["product", "sum", "gated"]
    terms: tuple[Term, ...] = ()
    check: Check | None = None
    otherwise: FiniteFloat | None = None  # the reward of an answer that does not pass a gate

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if (self.combine == "gated") != (self.otherwise is not None):
            raise ValueError("otherwise belongs to gated, which needs it")
        return self


class CompositeOptions(Options):
    """There are none."""


@final
class CompositeKind(Untrained):
    """Learns from nothing."""

    Options = CompositeOptions
    output: Output = "rating"
    why = "a composite is not trained; make one with karat composite MODEL --check answer --output C"


KIND = CompositeKind


class Composite(Wrapped):
    """The rule's reward; `objectives` hold what each part gave, and their weights add up to a sum."""

    spec: CompositeSpec

    def __init__(self, spec: CompositeSpec, models: Sequence[RewardModel]) -> None:
        super().__init__(spec, models)
        self._judge = Judge(processes=1)
        weakref.finalize(self, self._judge.__exit__, None, None, None)

    @property
    def output(self) -> Output:
        """A product of probabilities is one; all else is in the unit that the rule makes."""
        return "probability" if self.spec.combine == "product" else "rating"

    @property
    def at_steps(self) -> bool:
        """Where all models have rewards of steps and nothing judges the whole answer, as a check and gates do."""
        return not _judges_whole(self.spec) and all(model.at_steps for model in self.models)

    def score_steps(self, prompt: Prompt, steps: Sequence[str]) -> Result:
        """The reward of one answer that is given in steps, with a reward for each of them in `steps`.

        Raises:
            Refused: it has no rewards of steps.
        """
        if not self.at_steps:
            raise Refused(NO_STEPS)
        return super().score_steps(prompt, steps)

    def compared(self, a: Reward, b: Reward) -> float:
        """Who is higher: 1, 0.5 or 0."""
        return float(a.value > b.value) + 0.5 * (a.value == b.value)

    def _made(self, results: Sequence[Result], row: Any) -> Result:
        parts: dict[str, Reward] = {}
        for term, result in zip(self.spec.terms, results, strict=True):
            if isinstance(result, Unscored):
                return replace(result, reason=f"{term.name}: {result.reason}")
            parts[term.name] = result
        if self.spec.check is not None:
            checked = self._checked(row, self.spec.check.key)
            if isinstance(checked, Unscored):
                return checked
            parts[CHECK] = checked
        values = {name: reward.value for name, reward in parts.items()}
        joined = together(list(parts.values()), values, _weights(self.spec) if self.spec.combine == "sum" else None)
        steps = same_steps(list(parts), [r.steps or () for r in parts.values()]) if self.at_steps else []
        if isinstance(steps, Unscored):
            return steps
        by_step = tuple(_combined(self.spec, dict(zip(parts, own, strict=True))) for own in steps)
        return with_values(joined, _combined(self.spec, values), by_step if self.at_steps else None)

    def _checked(self, row: Any, key: str) -> Result:
        if row is None:
            raise Refused("a finished text has no context to check its answer by; use score_many, with a context")
        example = as_example(row)
        if (value := example.context.get(key)) is None:
            return Unscored(f"its context has no {key!r}, with which the answer check compares; add it to the row")
        if (reference := known_reference(value)) is None:
            return Unscored(
                f"its {key!r} is {value!r:.60}, which is no answer to compare with; give a text or a number"
            )
        answer = final_answer(example.response)
        if answer is None:
            return Reward(0.0, flags=(NO_ANSWER,))
        (equal,) = self._judge([(reference, answer)])
        if equal is None:
            return Unscored("whether its answer is the reference could not be decided in time")
        return Reward(float(equal))


def _judges_whole(spec: CompositeSpec) -> bool:
    return spec.check is not None or spec.combine == "gated"


def loses_steps(spec: CompositeSpec, models: Sequence[RewardModel]) -> bool:
    """Whether one of the models has rewards of steps and the composite has none."""
    have = [model.at_steps for model in models]
    return any(have) and (_judges_whole(spec) or not all(have))


def _weights(spec: CompositeSpec) -> dict[str, float]:
    check = {} if spec.check is None else {CHECK: spec.check.weight}
    return {term.name: term.weight for term in spec.terms} | check


def _combined(spec: CompositeSpec, values: Mapping[str, float]) -> float:
    if spec.combine == "product":
        return math.prod(values.values())
    if spec.combine == "sum":
        return math.fsum(weight * values[name] for name, weight in _weights(spec).items())
    floors = {term.name: term.at_least for term in spec.terms if term.at_least is not None}
    floors |= {} if spec.check is None else {CHECK: 1.0}
    if spec.otherwise is not None and any(values[name] < floor for name, floor in floors.items()):
        return spec.otherwise
    return math.fsum(term.weight * values[term.name] for term in spec.terms if term.at_least is None)


def load(folder: Path, opener: Opener, options: Mapping[str, Any]) -> Composite:
    """The composite of a folder, with all its models."""
    spec = read_spec(CompositeSpec, folder)
    return Composite(spec, [term.model.open(folder, opener, options) for term in spec.terms])


# ---------------------------------------------------------------------------------------------- making one


class Rule(NamedTuple):
    """How rewards are put together."""

    combine: str  # one of COMBINE
    check: str | None = None  # where an answer's context has the reference
    weights: Mapping[str, float] = {}  # of models by their names, and of the check, where not 1
    at_least: Mapping[str, float] = {}  # of models by their names: gates
    otherwise: float | None = None  # what answers get that do not pass


def check(paths: list[str], rule: Rule) -> None:
    """Raise BadInput for what makes no composite, before a model is loaded."""
    if rule.combine not in COMBINE:
        raise BadInput(f"no way to combine called {rule.combine!r}{nearest(rule.combine, COMBINE)}")
    if rule.check is None:
        _check_alone(paths, rule)
    names = names_of(paths)
    if twice := [path for path in paths if paths.count(path) > 1]:
        raise BadInput(f"{twice[0]} is given twice; give another model, or a weight")
    if rule.check is not None and CHECK in names:
        raise BadInput(f"a model's folder is called {CHECK}, as the check is; rename the folder")
    known = [*names, *([CHECK] if rule.check is not None else [])]
    for name in rule.weights:
        if name not in known:
            raise BadInput(f"no part called {name!r} to weigh{nearest(name, known)}")
    for name in rule.at_least:
        if name not in names:
            raise BadInput(f"no model called {name!r} to be a gate{nearest(name, names)}")
    if rule.weights and rule.combine == "product":
        raise BadInput("a product has no weights; leave them out, or combine by sum")
    _check_numbers(rule)
    _check_gates(names, rule)


def _check_alone(paths: Sequence[str], rule: Rule) -> None:
    """Raise BadInput for no part at all, and for a single model to which nothing is done."""
    if not paths:
        raise BadInput("a composite needs a model or a check (the context's key of the reference answer); give one")
    if len(paths) == 1 and not rule.weights and rule.combine != "gated":
        raise BadInput("one model by itself is no composite; give a check, another model, or a weight")


def _check_numbers(rule: Rule) -> None:
    weights = {f"the weight of {name}": value for name, value in rule.weights.items()}
    floors = {f"at_least of {name}": value for name, value in rule.at_least.items()}
    otherwise = {} if rule.otherwise is None else {"otherwise": rule.otherwise}
    for name, value in (weights | floors | otherwise).items():
        if not math.isfinite(value):
            raise BadInput(f"{name} is {value:g}, but it has to be a finite number")


def _check_gates(names: Sequence[str], rule: Rule) -> None:
    if rule.combine != "gated":
        if rule.at_least or rule.otherwise is not None:
            raise BadInput(f"a {rule.combine} has no gates; leave at_least and otherwise out, or combine by gated")
        return
    if rule.check is None and not rule.at_least:
        raise BadInput("gated needs a gate: a check, or at_least for one of the models")
    if set(names) <= rule.at_least.keys():
        raise BadInput("gated needs a model that is no gate, whose reward answers get that pass")
    if rule.otherwise is None:
        raise BadInput("gated needs otherwise: the reward of answers that do not pass, below all others")
    if CHECK in rule.weights or rule.weights.keys() & rule.at_least.keys():
        raise BadInput("a gate has no weight; leave it out")


def make(
    models: Mapping[str, RewardModel], folder: Path, rule: Rule, options: Mapping[str, Any] | None = None
) -> CompositeSpec:
    """A composite of the models at these paths, as it is kept in `folder`.

    Raises:
        BadInput: `check` does.
        Refused: a model gives no rewards, or in a product ones that are no probabilities: a wrong answer, whose
            product is 0, would be better than a right one with a reward below 0.
    """
    check(list(models), rule)
    for path, model in models.items():
        check_scorer(model, path)
        if rule.combine == "product" and model.output != "probability":
            raise Refused(
                f"{path} gives rewards that may be below 0, and a product (what --combine is where it is not given)"
                " would turn their order; load it with activation='sigmoid', or combine by gated or sum"
            )
    terms = tuple(
        Term(
            name=name,
            model=Inner.of(path, folder, options or {}),
            weight=rule.weights.get(name, 1.0),
            at_least=rule.at_least.get(name),
        )
        for name, path in zip(names_of(list(models)), models, strict=True)
    )
    told = None if rule.check is None else Check(key=rule.check, weight=rule.weights.get(CHECK, 1.0))
    return CompositeSpec.model_validate(
        {"combine": rule.combine, "terms": terms, "check": told, "otherwise": rule.otherwise}
    )
