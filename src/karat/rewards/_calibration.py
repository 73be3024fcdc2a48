"""How rewards are corrected: numbers in, numbers out. It knows no model and no text."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, NamedTuple, Self, TypeAlias

import numpy as np
from pydantic import Field, FiniteFloat, model_validator

from karat.metrics import FloatArray, sigmoid
from karat.rewards._wrapped import Part
from karat.types import BadInput, Item, Labelled, Pair

_KNOTS, _PAIRS_TO_A_KNOT = 8, 50  # of length control at most, and how many pairs each takes


class Rows(NamedTuple):
    """Answers with their labels: K is 2 (chosen, rejected) for pairs, and 1 for labelled answers."""

    rewards_BK: FloatArray
    characters_BK: FloatArray
    labels: FloatArray  # [B] probability that the first is preferred, or that the one is right, in [0, 1]
    weights: FloatArray  # [B] >= 0
    prompts: list[str]  # [B]

    @property
    def leads(self) -> FloatArray:
        """Of chosen over rejected, [B]."""
        lead: FloatArray = self.rewards_BK[:, 0] - self.rewards_BK[:, 1]
        return lead


# ---------------------------------------------------------------------------------------------- methods


class Temperature(Part):
    """Divides: a lead of 1 then means odds of e to 1 that the answer is preferred."""

    ITEM: ClassVar[type[Item]] = Pair
    method: Literal["temperature"] = "temperature"
    temperature: FiniteFloat = Field(gt=0)

    @classmethod
    def fit(cls, rows: Rows) -> Self:
        """Maximum likelihood of the preferences, P(chosen preferred) = sigmoid(lead / temperature).

        Raises:
            BadInput: the pairs do not determine it.
        """
        lead, label = rows.leads, rows.labels
        signed = np.concatenate([lead[label > 0], -lead[label < 1]])  # what an infinite slope would have to leave >= 0
        if not lead.any():
            raise BadInput("the model gives both answers of every pair the same reward; give other pairs")
        if signed.min() >= 0:
            raise BadInput("every preferred answer leads, so any temperature down to 0 fits; give more pairs")
        (slope,) = _logistic_fit(lead[:, None], label, rows.weights)
        if slope <= 0:
            raise BadInput("the preferred answers have the lower rewards, which no temperature mends; check the data")
        return cls(temperature=1 / slope)

    def apply(self, rewards: FloatArray, characters: FloatArray) -> FloatArray:
        """Rewards in logits."""
        return rewards / self.temperature


class Platt(Part):
    """The probability that an answer is right, by a logistic curve over the reward."""

    ITEM: ClassVar[type[Item]] = Labelled
    method: Literal["platt"] = "platt"
    slope: FiniteFloat = Field(gt=0)  # logits to a unit of reward
    intercept: FiniteFloat

    @classmethod
    def fit(cls, rows: Rows) -> Self:
        """Maximum likelihood of the labels, without a prior on them.

        Raises:
            BadInput: the labels do not determine it.
        """
        reward, label = rows.rewards_BK[:, 0], rows.labels
        _check_classes(label)
        _check_rewards(reward)
        right, wrong = reward[label > 0], reward[label < 1]
        if right.min() >= wrong.max():
            raise BadInput("every right answer is above every wrong one, so any steep curve fits; give more answers")
        centre, spread = reward.mean(), reward.std()
        design = np.stack([(reward - centre) / spread, np.ones(reward.size)], axis=1)
        slope, level = (0.0, 0.0) if wrong.min() >= right.max() else _logistic_fit(design, label, rows.weights)
        if slope <= 0:
            raise BadInput("the wrong answers have the higher rewards, which calibration would turn; check the labels")
        return cls(slope=slope / spread, intercept=level - slope * centre / spread)

    def apply(self, rewards: FloatArray, characters: FloatArray) -> FloatArray:
        """Probabilities."""
        return sigmoid(self.slope * rewards + self.intercept)


class Isotonic(Part):
    """The probability that an answer is right, by a rising table over the reward, straight between its places."""

    ITEM: ClassVar[type[Item]] = Labelled
    method: Literal["isotonic"] = "isotonic"
    rewards: tuple[FiniteFloat, ...] = Field(min_length=2)  # rising
    probabilities: tuple[Annotated[float, Field(ge=0, le=1)], ...]  # not falling; the ends hold beyond the table

    @model_validator(mode="after")
    def _rises(self) -> Self:
        if len(self.rewards) != len(self.probabilities):
            raise ValueError("a table needs as many probabilities as rewards")
        if np.any(np.diff(self.rewards) <= 0) or np.any(np.diff(self.probabilities) < 0):
            raise ValueError("the rewards of a table have to rise, and its probabilities must not fall")
        return self

    @classmethod
    def fit(cls, rows: Rows) -> Self:
        """The rising curve nearest to the labels, from 1/(B + 2) to (B + 1)/(B + 2): B answers show no certainty.

        Raises:
            BadInput: the labels do not determine it.
        """
        from sklearn.isotonic import IsotonicRegression

        reward, label = rows.rewards_BK[:, 0], rows.labels
        _check_classes(label)
        _check_rewards(reward)
        least = 1 / (reward.size + 2)
        curve = IsotonicRegression(y_min=least, y_max=1 - least).fit(reward, label, sample_weight=rows.weights)
        if np.ptp(curve.y_thresholds_) == 0:
            raise BadInput("the wrong answers have the higher rewards, so the curve is flat; check the labels")
        return cls(rewards=tuple(curve.X_thresholds_.tolist()), probabilities=tuple(curve.y_thresholds_.tolist()))

    def apply(self, rewards: FloatArray, characters: FloatArray) -> FloatArray:
        """Probabilities."""
        found: FloatArray = np.interp(rewards, self.rewards, self.probabilities)
        return found


class Length(Part):
    """Takes off what the answer's length explains, by a table over log(1 + characters)."""

    ITEM: ClassVar[type[Item]] = Pair
    method: Literal["length"] = "length"
    lengths: tuple[FiniteFloat, ...] = Field(min_length=2)  # log(1 + characters), rising
    rewards: tuple[FiniteFloat, ...] = Field(min_length=2)  # taken off; straight between, the ends hold beyond

    @model_validator(mode="after")
    def _rises(self) -> Self:
        if len(self.lengths) != len(self.rewards) or np.any(np.diff(self.lengths) <= 0):
            raise ValueError("a table needs as many rewards as lengths, and its lengths have to rise")
        return self

    @classmethod
    def fit(cls, rows: Rows) -> Self:
        """Least squares of the leads within pairs, which knows neither the labels nor what a prompt's answers share.

        The knots are quantiles of the answers' lengths. The mean reward stays what it is.

        Raises:
            BadInput: the answers are equally long.
        """
        length = np.log1p(rows.characters_BK)
        if not np.ptp(length, axis=1).any():
            raise BadInput("both answers of every pair are equally long, so length explains nothing; give other pairs")
        wanted = min(_KNOTS, max(2, len(length) // _PAIRS_TO_A_KNOT))
        knots = np.unique(np.quantile(length, np.linspace(0, 1, wanted)))
        hats = np.stack([np.interp(length, knots, one) for one in np.eye(knots.size)[1:]], axis=-1)
        weight = np.sqrt(rows.weights)
        found = np.linalg.lstsq((hats[:, 0] - hats[:, 1]) * weight[:, None], rows.leads * weight, rcond=None)[0]
        taken = np.concatenate([[0.0], found])
        taken -= np.average(np.interp(length, knots, taken).mean(axis=1), weights=rows.weights)
        return cls(lengths=tuple(knots.tolist()), rewards=tuple(taken.tolist()))

    def apply(self, rewards: FloatArray, characters: FloatArray) -> FloatArray:
        """Rewards in the unit that they had."""
        return rewards - np.interp(np.log1p(characters), self.lengths, self.rewards)


How: TypeAlias = Temperature | Platt | Isotonic | Length
METHODS: Mapping[str, type[How]] = {
    "temperature": Temperature,
    "platt": Platt,
    "isotonic": Isotonic,
    "length": Length,
}


def _check_classes(labels: FloatArray) -> None:
    if np.ptp(labels) == 0:
        raise BadInput(f"every label is {labels[0]:g}, so there is nothing to fit; give right and wrong answers")


def _check_rewards(rewards: FloatArray) -> None:
    if np.ptp(rewards) == 0:
        raise BadInput(f"the model gives every answer the reward {rewards[0]:g}; check it, or give other answers")


def _logistic_fit(design_BF: FloatArray, labels: FloatArray, weights: FloatArray) -> list[float]:
    """Coefficients [F] of a logistic regression of labels in [0, 1] by maximum likelihood; Newton's method, damped."""
    unit = np.abs(design_BF).max(axis=0)
    design = design_BF / unit
    found = np.zeros(unit.size)

    def loss(at: FloatArray) -> float:
        return float(weights @ nll(design @ at, labels))

    for _ in range(200):
        forecast = sigmoid(design @ found)
        gradient = design.T @ (weights * (forecast - labels))
        curvature = (design * (weights * forecast * (1 - forecast))[:, None]).T @ design
        step = np.linalg.lstsq(curvature, gradient, rcond=None)[0]
        while np.abs(step).max() > 1e-12 * (1 + np.abs(found).max()) and loss(found - step) > loss(found):
            step = step / 2
        found = found - step
        if np.abs(step).max() <= 1e-12 * (1 + np.abs(found).max()):
            break
    coefficients: list[float] = (found / unit).tolist()
    return coefficients


def nll(logits: FloatArray, labels: FloatArray) -> FloatArray:
    """Cross-entropy of each label in [0, 1], [B], in nats."""
    nats: FloatArray = np.logaddexp(0, logits) - labels * logits
    return nats
