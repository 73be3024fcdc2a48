"""What most kinds that are trained say of themselves; a kind says only what is different."""

from collections.abc import Mapping, Sequence
from typing import Any, Self

from torch import Tensor

from karat.models.heads import Head
from karat.rewards.base import Feature, Method, Options, Output
from karat.spec import RewardSpec
from karat.types import Example, Item, Reward, answers_of


class Learner:
    """A kind without a meaning of its own: every row counts as one label and is learnt whole, by gradient."""

    items: tuple[type, ...] = ()
    methods: tuple[Method, ...] = ("full", "lora", "frozen")
    output: Output = "logit"
    least = 1
    language_weight = 0.0

    def __init__(self, options: Options) -> None:
        pass

    @classmethod
    def defaults(cls, options: Mapping[str, Any]) -> dict[str, Any]:
        """None beyond the spec's own."""
        return {}

    def told(self, items: Sequence[Item], saved: RewardSpec | None) -> dict[str, Any]:
        """Nothing."""
        return {}

    def by(self, spec: RewardSpec) -> Self:
        """The same with any spec."""
        return self

    def learnt(self, item: Any) -> Any:
        """All of it."""
        return item

    def examples(self, item: Any) -> tuple[Example, ...]:
        """Its answers."""
        return answers_of(item)

    def judged(self, item: Any, rewards: Sequence[Reward]) -> Sequence[Reward]:
        """They are the answers' own."""
        return rewards

    def problem(self, items: Sequence[Item]) -> str:
        """None."""
        return ""

    def problem_of(self, item: Any) -> str:
        """None: types already hold labels to their ranges."""
        return ""

    def by_gradient(self, item: Any) -> bool:
        """Yes."""
        return True

    def solve(self, head: Head, features: Sequence[Feature]) -> list[str]:
        """Nothing is solved for."""
        return []

    def said_well(self, item: Any) -> tuple[int, ...]:
        """None."""
        return ()

    def size(self, item: Any) -> float:
        """One."""
        return 1.0

    def penalty(self, head: Head) -> Tensor | float:
        """None."""
        return 0.0
