"""Correlations of weighted rows, of many weightings at once, as resampling needs them."""

import numpy as np

from karat.metrics import FloatArray


def spearmans(label_B: FloatArray, score_B: FloatArray, weights_NB: FloatArray) -> FloatArray:
    """Pearson of mean ranks under each weighting, [N] in [-1, 1]; NaN where either is constant."""
    return pearsons(_ranks(label_B, weights_NB), _ranks(score_B, weights_NB), weights_NB)


def _ranks(values_B: FloatArray, weights_NB: FloatArray) -> FloatArray:
    """Mean ranks but for a constant, [N, B]; a weight of 2 takes two places."""
    level_B = np.unique(values_B, return_inverse=True)[1]
    order = np.argsort(level_B, kind="stable")
    starts = np.flatnonzero(np.diff(level_B[order], prepend=-1))
    mass_NL = np.add.reduceat(weights_NB[:, order], starts, axis=1, dtype=np.float64)
    middle_NL: FloatArray = np.cumsum(mass_NL, axis=1) - mass_NL / 2
    return middle_NL[:, level_B]


def pearsons(label: FloatArray, score: FloatArray, weights_NB: FloatArray) -> FloatArray:
    """Linear correlation under each weighting, [N] in [-1, 1]; NaN where either is constant.

    Args:
        label: [B], or [N, B] where it depends on the weighting.
        score: the same of the other value.
        weights_NB: [N, B] how much each row counts, >= 0.
    """
    known_N = ~np.logical_or(constant(label, weights_NB), constant(score, weights_NB))
    found = np.full(len(weights_NB), np.nan)
    weights = weights_NB[known_N]
    sides = [np.broadcast_to(side, weights_NB.shape)[known_N] for side in (label, score)]
    found[known_N] = np.clip((_standard(sides[0], weights) * _standard(sides[1], weights)).sum(axis=1), -1.0, 1.0)
    return found


def constant(values: FloatArray, weights_NB: FloatArray) -> FloatArray:
    """Whether all rows that weigh anything have one value, [N]; also where none does."""
    counts = weights_NB > 0
    lowest, highest = np.where(counts, values, np.inf).min(axis=1), np.where(counts, values, -np.inf).max(axis=1)
    alike: FloatArray = lowest >= highest
    return alike


def _standard(values_NB: FloatArray, weights_NB: FloatArray) -> FloatArray:
    """Centred and of length 1, each row times the root of its weight; scaled first, so that no square overflows."""
    used = np.where(weights_NB > 0, values_NB, 0.0)
    scaled = used / np.abs(used).max(axis=1, keepdims=True)
    mean = (scaled * weights_NB).sum(axis=1, keepdims=True) / weights_NB.sum(axis=1, keepdims=True)
    centred = (scaled - mean) * np.sqrt(weights_NB / weights_NB.max(axis=1, keepdims=True))
    centred /= np.abs(centred).max(axis=1, keepdims=True)
    unit: FloatArray = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    return unit
