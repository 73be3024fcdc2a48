"""No reward but a vector: any model as an embedding model, read at its last token, its first, or the mean of all.

Source: Reimers and Gurevych 2019, arXiv:1908.10084. Texts are rendered with the tokenizer's own special tokens and no
chat template. It is used, not trained here.
"""

from collections.abc import Mapping
from typing import Any, final

from karat.rewards._untrained import Untrained
from karat.rewards.base import Options, Output


class EmbeddingOptions(Options):
    """There are none."""


@final
class Embedding(Untrained):
    """Learns from nothing."""

    Options = EmbeddingOptions
    output: Output = "rating"
    why = "embedding models are not trained here and give no rewards; use embed, or train another kind"

    @classmethod
    def defaults(cls, options: Mapping[str, Any]) -> dict[str, Any]:
        """The mean of all tokens, as it is."""
        return {"layout": "concat", "pooling": "mean", "head": "hidden"}


KIND = Embedding
