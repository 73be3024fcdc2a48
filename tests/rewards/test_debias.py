"""Debiasing against worked numbers, RLHFlow's grid, brute force, planted data, and code that does not use it."""

import time
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import pearsonr, spearmanr

from karat.rewards import _debias
from karat.rewards._debias import matrix, transform
from karat.types import BadInput

VERBOSITY = 4


def rank_correlation(x, y):
    return 0.0 if np.ptp(x) == 0 or np.ptp(y) == 0 else float(spearmanr(x, y)[0])


def remaining(rewards, T, reference):
    """The largest correlation with the reference, either way, that is left in any other attribute."""
    after = rewards @ T
    others = [a for a in range(rewards.shape[1]) if a != reference]
    return max(abs(rank_correlation(after[:, a], rewards[:, reference])) for a in others)


def planted(rows, seed):
    """19 attributes of which most go with verbosity, some against it, and two not in a line."""
    rng = np.random.default_rng(seed)
    rewards = rng.standard_normal((rows, 19)) * np.logspace(-1, 1, 19)
    verbosity = rng.gamma(2.0, 1.0, rows)
    rewards += np.linspace(-2, 6, 19) * np.logspace(-1, 1, 19) * verbosity[:, None]
    rewards[:, 7], rewards[:, 8] = np.exp(verbosity) + rewards[:, 7], np.tanh(verbosity) + 0.1 * rewards[:, 8]
    rewards[:, VERBOSITY] = verbosity
    return rewards


# ------------------------------------------------------------------------------------------ worked numbers


def test_the_worked_numbers():
    rewards, gate = np.array([0.6, 0.5, 0.4]), np.array([0.5, 0.3, 0.2])
    T = matrix([0.25, 0.5, 7.0], 2)
    np.testing.assert_allclose(rewards @ T, [0.5, 0.3, 0.0], atol=1e-15)
    assert gate @ (rewards @ T) == pytest.approx(0.34)
    coefficients = gate @ T.T
    np.testing.assert_allclose(coefficients, [0.5, 0.3, -0.275])
    assert coefficients @ rewards == pytest.approx(0.34)


def synthetic():
    rng = np.random.default_rng(0)
    v = rng.normal(size=4000)
    rewards = np.c_[0.6 * v + 0.5 * rng.normal(size=4000), 0.2 * v + rng.normal(size=4000), v]
    before = [spearmanr(rewards[:, a], v)[0] for a in (0, 1)]
    assert np.round(before, 3).tolist() == [0.75, 0.179]
    return rewards


def test_the_grid_on_the_worked_numbers():
    rewards = synthetic()
    T = transform(rewards, 2, "grid")
    np.testing.assert_array_equal(T, [[1, 0, 0], [0, 1, 0], [-0.6, -0.2, 0]])
    after = [spearmanr((rewards @ T)[:, a], rewards[:, 2])[0] for a in (0, 1)]
    assert np.round(after, 3).tolist() == [0.002, -0.01]


def test_bisection_on_the_worked_numbers():
    rewards = synthetic()
    T = transform(rewards, 2, "bisection")
    assert remaining(rewards, T, 2) < 1e-6
    np.testing.assert_allclose(T[2], [-0.6, -0.2, 0], atol=0.02)


def test_a_normal_distribution_has_a_closed_form():
    rng = np.random.default_rng(1)
    mixed = rng.standard_normal((200_000, 3)) @ rng.standard_normal((3, 3))
    covariance = np.cov(mixed.T)
    T = transform(mixed, 1, "bisection")
    np.testing.assert_allclose(-T[1, [0, 2]], covariance[1, [0, 2]] / covariance[1, 1], atol=0.01)
    assert abs(pearsonr((mixed @ T)[:, 0], mixed[:, 1])[0]) < 0.01


# ------------------------------------------------------------------------------------------ RLHFlow


def by_rlhflow(rewards, reference, threshold):
    """The loop of its `stage-2_train.py`."""
    grid = [0, 0.01, 0.025, 0.05, 0.075, 0.1, 0.125, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45]
    grid += [0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95]
    T = np.eye(rewards.shape[1])
    for a in range(rewards.shape[1]):
        penalty = 1.0
        for tried in grid if a != reference else []:
            if spearmanr(rewards[:, a] - tried * rewards[:, reference], rewards[:, reference])[0] <= threshold:
                penalty = tried
                break
        T[reference, a] -= penalty
    return T


@pytest.mark.parametrize("threshold", [0.03, 0.3])
def test_the_grid_is_rlhflows(threshold):
    rewards = planted(1000, 3)
    verbosity = rewards[:, VERBOSITY].copy()
    rewards *= 0.2 / np.logspace(-1, 1, 19)
    rewards[:, VERBOSITY] = verbosity
    T = transform(rewards, VERBOSITY, "grid", threshold)
    np.testing.assert_allclose(T, by_rlhflow(rewards, VERBOSITY, threshold))
    assert len(set(np.round(T[VERBOSITY], 3))) > 4
    assert len(_debias.GRID) == 24


def test_negative_control_a_transform_that_is_not_used():
    """RLHFlow computes R = rewards @ T and then trains and evaluates on the rewards themselves."""
    rewards = planted(10_000, 0)
    T = transform(rewards, VERBOSITY, "bisection")
    assert remaining(rewards, T, VERBOSITY) < 1e-3
    assert remaining(rewards, np.eye(19), VERBOSITY) > 0.9


def test_negative_control_the_grid_leaves_what_goes_against_the_reference():
    rewards = planted(10_000, 0)
    assert remaining(rewards, transform(rewards, VERBOSITY, "grid"), VERBOSITY) > 0.3


# ------------------------------------------------------------------------------------------ planted data


def test_nothing_is_left_on_the_rows_at_hand_and_little_on_others():
    rewards, others = planted(10_000, 0), planted(10_000, 1)
    start = time.process_time()
    T = transform(rewards, VERBOSITY, "bisection")
    assert time.process_time() - start < 10
    assert remaining(rewards, T, VERBOSITY) < 1e-6
    assert remaining(others, T, VERBOSITY) < 0.03
    assert not (rewards @ T)[:, VERBOSITY].any()
    np.testing.assert_array_equal(np.delete(T, VERBOSITY, 0), np.delete(np.eye(19), VERBOSITY, 0))


def test_lambda_of_a_reward_that_is_the_reference():
    v = np.random.default_rng(0).standard_normal(100)
    T = transform(np.c_[v, 2 * v, -0.5 * v, np.full(100, 0.1)], 0, "bisection")
    np.testing.assert_array_equal(T[0], [0, -2, 0.5, 0])


@given(st.integers(0, 10**6), st.floats(0.01, 100), st.floats(-50, 50))
def test_units_carry_over(seed, scale, shift):
    rewards = np.random.default_rng(seed).standard_normal((200, 2))
    mine, theirs = transform(rewards, 1, "bisection"), transform(rewards * [scale, 1] + shift, 1, "bisection")
    assert -theirs[1, 0] == pytest.approx(-mine[1, 0] * scale, rel=0.05, abs=0.02 * scale)


small = st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=3, max_size=9)


@settings(max_examples=20)
@given(small.filter(lambda rows: len({v for _, v in rows}) > 1))
def test_ties_against_every_lambda_at_which_something_changes(rows):
    """The order changes at (r_a - r_b) / (v_a - v_b) only, so that these and a point between each two are enough."""
    own, against = np.array(rows, float).T
    turns = {(a - b) / (v - w) for a, v in rows for b, w in rows if v != w}
    ordered = sorted(turns)
    between = [(low + high) / 2 for low, high in pairwise(ordered)]
    every = [ordered[0] - 1, *ordered, *between, ordered[-1] + 1]
    least = min(abs(rank_correlation(own - tried * against, against)) for tried in every)
    found = -transform(np.c_[own, against], 1, "bisection")[1, 0]
    assert abs(rank_correlation(own - found * against, against)) <= least + 1e-12


@given(st.integers(0, 10**6))
def test_the_sign_of_the_correlation_falls_in_lambda(seed):
    rng = np.random.default_rng(seed)
    own, against = rng.integers(-4, 5, (2, 30)).astype(float)
    correlation = _debias._with(own, against, _debias._ranks(against))
    signs = [np.sign(correlation(strength)) for strength in np.linspace(-9, 9, 73)]
    assert all(np.diff(signs) <= 0)


@given(st.lists(st.integers(-5, 5), min_size=3, max_size=30), st.randoms(), st.floats(-3, 3))
def test_the_correlation_is_scipys(values, random, strength):
    own = np.array(values, float)
    against = np.array(random.sample(values, len(values)), float)
    found = _debias._with(own, against, _debias._ranks(against))(strength)
    assert found == pytest.approx(rank_correlation(own - strength * against, against), abs=1e-12)


# ------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("rewards", "reference", "method", "told"),
    [
        (np.c_[np.arange(5.0), np.full(5, 0.3)], 1, "bisection", "reference, attribute 1, are 0.3"),
        (np.eye(3), 3, "grid", "from 0 to 2"),
        (np.eye(3), -1, "grid", "from 0 to 2"),
        (np.eye(3)[:2], 0, "bisection", "three rows"),
        (np.arange(9.0), 0, "bisection", "three rows"),
        (np.diag([1.0, np.nan, 1.0]), 0, "bisection", "finite"),
        (np.eye(3), 0, "bisect", "did you mean 'bisection'"),
    ],
)
def test_what_cannot_be_debiased(rewards, reference, method, told):
    with pytest.raises(BadInput, match=told):
        transform(rewards, reference, method)
