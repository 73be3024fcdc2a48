"""Metrics of steps: worked examples, the best threshold against all others, and the bootstrap of sums."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from karat import metrics
from karat.types import BadInput


def test_first_error_f1_worked_example():
    assert metrics.first_error_f1([1, -1, 1, 0], [1, -1, 2, -1]) == (0.5, 0.5, 0.5)
    assert metrics.first_error_f1([0, 0], [1, -1]) == (0.0, 0.0, 0.0)
    assert metrics.first_error_f1([0, 1], [1, 1]) == (0.5, None, None)


def test_prm_score_worked_example():
    found = metrics.prm_score([1, 1, 0, 1], [1, 0, 0, 1])
    assert found == pytest.approx((0.8, 2 / 3, 11 / 15))
    assert metrics.confusion([1, 1, 0, 1], [1, 0, 0, 1]).sum(axis=0).tolist() == [2, 1, 0, 1]
    assert metrics.prm_score([1, 1], [1, 1]) == (1.0, None, None)
    assert metrics.prm_score([1, 1], [1, 0]) == pytest.approx((2 / 3, 0.0, 1 / 3))


def test_a_step_at_the_threshold_is_flagged():
    assert [metrics.first_error([0.9, 0.5, 0.2], t) for t in (0.1, 0.2, 0.5, 0.95)] == [-1, 2, 1, 0]


solution = st.tuples(st.lists(st.integers(0, 4), min_size=1, max_size=4), st.integers(-1, 3), st.integers(0, 2))


@settings(max_examples=200)
@given(st.lists(solution, min_size=1, max_size=8))
def test_the_best_threshold_is_the_best_of_all(rows):
    steps = [row[0] for row in rows]
    first = [min(k, len(s) - 1) for s, k, _ in rows]
    weights = [w for *_, w in rows]
    both = [any(w for k, w in zip(first, weights, strict=True) if (k < 0) is side) for side in (True, False)]
    if not any(weights):
        return
    found = metrics.best_threshold(steps, first, weights)
    assert (found is None) is (not all(both))
    if found is not None:
        f1 = lambda t: metrics.first_error_f1([metrics.first_error(s, t) for s in steps], first, weights).f1  # noqa: E731
        assert f1(found) == pytest.approx(max(f1(t) for t in np.arange(-0.5, 5, 0.25)))


def test_an_answer_without_rewards_is_never_right():
    assert metrics.best_threshold([[], [0.9]], [0, -1]) is None
    assert metrics.best_threshold([[], [0.2, 0.9], [0.8]], [0, 0, -1]) == pytest.approx(0.5)


def test_the_bootstrap_of_sums_is_that_of_rows():
    rng = np.random.default_rng(0)
    rows = np.stack([rng.random(300) < 0.3, np.ones(300)], axis=1).astype(float)
    groups = np.repeat(np.arange(100), 3)
    fast = metrics.bootstrap_of_sums(rows, lambda sums: sums[:, 0] / sums[:, 1], groups=groups)
    assert fast == pytest.approx(metrics.bootstrap_interval(rows[:, 0], groups=groups), abs=0.01)
    with pytest.raises(BadInput, match="undefined in every resample"):
        metrics.bootstrap_of_sums(rows, lambda sums: np.full(len(sums), np.nan))
