"""No reward but a vector: any model as an embedding model, read at its last token, its first, or the mean of all.

Source: Reimers and Gurevych 2019, arXiv:1908.10084. Texts are rendered with the tokenizer's own special tokens and no
chat template. It is used, not trained here.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Self, final

from torch import Tensor

from karat.rewards.base import Options, Output
from karat.spec import RewardSpec
from karat.types import BadInput, Example, Item, Reward

_NONE = "an embedding model gives vectors and no rewards; use embed"


class EmbeddingOptions(Options):
    """There are none."""


@final
class Embedding:
    """Learns from nothing."""

    Options = EmbeddingOptions
    items: tuple[type, ...] = ()
    output: Output = "rating"

    def __init__(self, options: EmbeddingOptions) -> None:
        self.options = options

    @classmethod
    def defaults(cls, options: Mapping[str, Any]) -> dict[str, Any]:
        """The mean of all tokens, as it is."""
        return {"layout": "concat", "pooling": "mean", "head": "hidden"}

    def by(self, spec: RewardSpec) -> Self:
        """The same with any spec."""
        return self

    def examples(self, item: Any) -> tuple[Example, ...]:
        """None."""
        raise BadInput(_NONE)

    def problem(self, items: Sequence[Item]) -> str:
        """It is not trained."""
        return "embedding models are not trained here; use sentence-transformers, or train another kind"

    def problem_of(self, item: Any) -> str:
        """It is not trained."""
        return self.problem([])

    def size(self, item: Any) -> float:
        """None."""
        return 0.0

    def targets(self, items: Sequence[Any]) -> dict[str, Tensor]:
        """None."""
        raise BadInput(_NONE)

    def loss(self, numbers_BKk: Tensor, present_BK: Tensor, targets: dict[str, Tensor]) -> Tensor:
        """None."""
        raise BadInput(_NONE)

    def compare(self, a: Reward, b: Reward) -> float:
        """None."""
        raise BadInput(_NONE)


KIND = Embedding
