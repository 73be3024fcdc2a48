"""What pairs and rankings share: accuracy of the margins, by both conventions for ties, beside its nulls."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from karat import metrics
from karat.evaluation import _nulls
from karat.evaluation._common import Sample
from karat.evaluation.base import Figure
from karat.metrics import FloatArray


@dataclass(frozen=True, slots=True)
class Ordered:
    """How often the better answer got the higher reward."""

    figures: tuple[Figure, ...]  # `name`, the same with ties half, and the lead over the best null
    nulls: tuple[Figure, ...]  # of `name`, ties half


def ordered(name: str, margins: FloatArray, nulls: Mapping[str, FloatArray], sample: Sample, note: str) -> Ordered:
    """Accuracy of margins, better minus worse [B], beside that of the nulls' margins on the same rows."""
    credits = {_nulls.RANDOM: np.full(margins.size, 0.5)}
    credits |= {null: metrics.credit(theirs) for null, theirs in nulls.items()}
    found = sample.nulls(credits, name)
    best = max(found, key=lambda figure: figure.value)
    strict = (margins > 0).astype(np.float64)
    figures = (
        sample.share(name, strict, note),
        sample.share(f"{name}, ties half", metrics.credit(margins)),
        sample.lead(strict, credits[best.name], best.name),
    )
    return Ordered(figures, found)
