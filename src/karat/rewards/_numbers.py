"""Arithmetic that several kinds need."""

import math


def logistic(lead: float) -> float:
    """1/(1+e^-lead), without overflow.

    >>> logistic(0.0), logistic(-1e9), logistic(1e9)
    (0.5, 0.0, 1.0)
    """
    return 1 / (1 + math.exp(-lead)) if lead >= 0 else 1 - logistic(-lead)
