"""What kinds say that score and are not trained here."""

from collections.abc import Mapping, Sequence
from typing import Any, Self

from torch import Tensor

from karat.rewards.base import Options
from karat.spec import RewardSpec
from karat.types import BadInput, Example, Item, Reward


class Untrained:
    """The contract's part about training: one sentence, `why`."""

    items: tuple[type, ...] = ()
    why: str

    def __init__(self, options: Options) -> None:
        self.options = options

    @classmethod
    def defaults(cls, options: Mapping[str, Any]) -> dict[str, Any]:
        """None beyond the spec's own."""
        return {}

    def by(self, spec: RewardSpec) -> Self:
        """The same with any spec."""
        return self

    def learnt(self, item: Any) -> Any:
        """Nothing."""
        raise BadInput(self.why)

    def examples(self, item: Any) -> tuple[Example, ...]:
        """None."""
        raise BadInput(self.why)

    def problem(self, items: Sequence[Item]) -> str:
        """That it is not trained."""
        return self.why

    def problem_of(self, item: Any) -> str:
        """That it is not trained."""
        return self.why

    def size(self, item: Any) -> float:
        """None."""
        return 0.0

    def targets(self, items: Sequence[Any]) -> dict[str, Tensor]:
        """None."""
        raise BadInput(self.why)

    def loss(self, numbers_BKk: Tensor, present_BK: Tensor, targets: dict[str, Tensor]) -> Tensor:
        """None."""
        raise BadInput(self.why)

    def compare(self, a: Reward, b: Reward) -> float:
        """None, where rewards are none."""
        raise BadInput(self.why)
