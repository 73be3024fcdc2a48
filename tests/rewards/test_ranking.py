"""Ranking by comparisons: how many, which answer, and what is said where no order exists or nothing was judged."""

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.stats import kendalltau

from karat.rewards._ranking import active, borda, bradley_terry, cycles, round_robin, tournament
from karat.types import BadInput

METHODS = [tournament, round_robin, active]


class Scorer:
    """Bradley-Terry with an error of each pair's own, which counts what it is asked."""

    def __init__(self, utilities, error=0.0, seed=0, unjudged=lambda i, j: False):
        self.utilities = np.asarray(utilities, dtype=float)
        noise = np.random.default_rng(seed).normal(size=(len(utilities),) * 2) * error
        self.error = np.triu(noise) - np.triu(noise).T
        self.unjudged = unjudged
        self.batches = []

    def __call__(self, pairs):
        self.batches.append(list(pairs))
        assert pairs and len(pairs) == len({frozenset(p) for p in pairs})
        return [None if self.unjudged(i, j) else self.prob(i, j) for i, j in pairs]

    def prob(self, i, j):
        return 1 / (1 + math.exp(self.utilities[j] - self.utilities[i] - self.error[i, j]))

    @property
    def asked(self):
        return [frozenset(pair) for batch in self.batches for pair in batch]


def drawn(n, seed=0):
    return np.random.default_rng(seed).normal(scale=1.5, size=n)


@given(st.lists(st.integers(-20, 20), min_size=1, max_size=24))
@settings(max_examples=60)
@pytest.mark.parametrize("method", METHODS)
def test_the_best_of_an_order_is_the_argmax(method, values):
    """The earliest of equals, as argmax has it."""
    found = method(Scorer(np.array(values) / 4), len(values))
    assert found.order[0] == int(np.argmax(values)) and sorted(found.order) == list(range(len(values)))
    assert found.cycles == () and found.unjudged == ()


@given(st.lists(st.floats(-3, 3), min_size=2, max_size=12, unique=True), st.randoms(use_true_random=False))
@settings(max_examples=40)
@pytest.mark.parametrize("method", METHODS)
def test_utilities_do_not_depend_on_how_answers_are_numbered(method, values, random):
    """Without misfit, every connected set of comparisons gives the true utilities, whoever comes first."""
    places = random.sample(range(len(values)), len(values))
    found = method(Scorer([values[k] for k in places]), len(values))
    wanted = np.array(values) - np.mean(values)
    assert np.allclose(found.utilities, wanted[places], atol=1e-5)
    assert abs(sum(found.utilities)) < 1e-9


@pytest.mark.parametrize("n", [4, 8, 13, 32, 100, 256])
@pytest.mark.parametrize("error", [0.0, 0.5])
def test_counts(n, error):
    bracket, every, some = (Scorer(drawn(n, n), error, n) for _ in METHODS)
    assert tournament(bracket, n).comparisons == len(bracket.asked) == n - 1
    assert len(bracket.batches) == math.ceil(math.log2(n))
    assert round_robin(every, n).comparisons == len(every.asked) == n * (n - 1) // 2 and len(every.batches) == 1
    found = active(some, n)
    limit = min(math.ceil(n * math.log2(n)), n * (n - 1) // 2)
    assert n - 1 <= found.comparisons == len(some.asked) <= limit
    for scorer in (bracket, every, some):
        assert len(set(scorer.asked)) == len(scorer.asked)
    if not error:
        assert found.order == tuple(np.argsort(-some.utilities, kind="stable"))
    elif n >= 32:  # a fraction of the comparisons, nearly the order of them all, and more of it than n - 1 give
        full = Scorer(drawn(n, n), error, n)
        everything, fewest = round_robin(full, n).utilities, tournament(full, n).utilities
        close = kendalltau(found.utilities, everything)[0]
        assert close > 0.85 and close > kendalltau(fewest, everything)[0]


def test_active_stops_where_the_order_is_decided():
    """The better a scorer keeps to Bradley-Terry, and the further answers are apart, the less is asked."""
    apart, exact, rough = (
        active(Scorer(utilities, error), 64).comparisons
        for utilities, error in ((np.linspace(-90, 90, 64), 0.0), (drawn(64), 0.0), (drawn(64), 0.8))
    )
    assert 63 <= apart < exact < rough <= 64 * 6
    assert active(Scorer(drawn(64), 0.8), 64, budget=100).comparisons == 100
    assert active(Scorer(drawn(64), 0.2), 64, 0.6).comparisons < active(Scorer(drawn(64), 0.2), 64, 0.99).comparisons


def circle(pairs):
    """Rock, paper, scissors, and an answer (3) that loses to all."""
    return [0.1 if i == 3 else 0.9 if j == 3 else 0.7 if (j - i) % 3 == 1 else 0.3 for i, j in pairs]


@pytest.mark.parametrize("method", [round_robin, active])
def test_a_circle_ends_and_is_reported(method):
    found = method(circle, 4)
    assert found.cycles == ((0, 1, 2),) and found.order[3] == 3
    assert max(np.abs(np.diff(found.utilities[:3]))) < 1e-6


def test_a_tournament_of_a_circle_ends_with_who_lost_to_nobody_it_met():
    found = tournament(circle, 3)
    assert found.comparisons == 2 and found.cycles == ()  # two comparisons cannot show it
    assert found.order[0] == 2  # 0 beats 1, 2 beats 0


def golden(judged, n):
    """Independent: scipy's minimiser on the cross-entropy of choix's model, with soft labels."""

    def loss(free):
        u = np.append(free, 0.0)
        return sum(np.logaddexp(0, -(u[i] - u[j])) * p + np.logaddexp(0, u[i] - u[j]) * (1 - p) for i, j, p in judged)

    u = np.append(minimize(loss, np.zeros(n - 1), method="BFGS", options={"gtol": 1e-9}).x, 0.0)
    return u - u.mean()


@pytest.mark.parametrize("n", [2, 3, 5, 9])
@pytest.mark.parametrize("kept", [1.0, 0.6])
def test_bradley_terry_against_scipy(n, kept):
    rng = np.random.default_rng(n)
    pairs = [pair for k, pair in enumerate(combinations(range(n), 2)) if pair[0] == 0 or rng.random() < kept]
    judged = [(i, j, float(rng.uniform(0.02, 0.98))) for i, j in pairs]
    assert np.allclose(bradley_terry(judged, n), golden(judged, n), atol=1e-5)


def test_bradley_terry_by_hand():
    assert np.allclose(bradley_terry([(0, 1, 0.9)], 2), [math.log(9) / 2, -math.log(9) / 2], atol=1e-12)
    sure = bradley_terry([(0, 1, 1.0)], 2)
    assert sure[0] - sure[1] == pytest.approx(math.log((1 - 1e-6) / 1e-6), abs=1e-9)
    # A saturated chain that ends in a contradiction stays finite.
    found = bradley_terry([(0, 1, 1.0), (1, 2, 1.0), (2, 3, 1.0), (3, 0, 1.0), (0, 2, 0.5)], 4)
    assert np.allclose(found, 0, atol=1e-6)
    assert bradley_terry([], 1) == (0.0,) and bradley_terry([], 2) == (None, None) and bradley_terry([], 0) == ()


@given(st.integers(2, 7), st.integers(0, 99))
@settings(max_examples=40)
def test_after_all_comparisons_the_order_is_bordas(n, seed):
    """The sums of a row are Bradley-Terry's sufficient statistics."""
    rng = np.random.default_rng(seed)
    judged = [(i, j, float(rng.uniform(0.01, 0.99))) for i, j in combinations(range(n), 2)]
    assert np.array_equal(np.argsort(bradley_terry(judged, n)), np.argsort(borda(judged, n)))
    turned = [(j, i, 1 - p) for i, j, p in judged]
    assert np.allclose(bradley_terry(turned, n), bradley_terry(judged, n), atol=1e-9)
    assert np.allclose(
        bradley_terry(judged, n)[::-1], bradley_terry([(n - 1 - i, n - 1 - j, p) for i, j, p in judged], n)
    )


def test_parts_that_are_not_connected_are_not_compared():
    judged = [(0, 1, 0.8), (2, 3, 0.9), (3, 4, 0.9)]
    found = bradley_terry(judged, 6)
    assert found[:2] == (None, None) and found[5] is None and found[2] > found[3] > found[4]
    assert borda(judged, 6) == (0.8, pytest.approx(0.2), 0.9, 0.5, pytest.approx(0.1), None)


def test_cycles():
    ring = [(k, (k + 1) % 5, 0.6) for k in range(5)]
    assert cycles(ring) == ((0, 1, 2, 3, 4),)
    assert cycles([(i, j, 0.5) for i, j, _ in ring]) == () == cycles([])
    two = [(0, 1, 0.9), (1, 2, 0.9), (0, 2, 0.1), (5, 4, 0.1), (5, 6, 0.9), (4, 6, 0.2), (2, 5, 1.0)]
    assert cycles(two) == ((0, 1, 2), (4, 5, 6))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("n", [6, 33])
def test_an_answer_that_cannot_be_judged_is_last_and_has_no_utility(method, n):
    scorer = Scorer(drawn(n), unjudged=lambda i, j: 1 in (i, j))
    found = method(scorer, n)
    rest = np.delete(np.arange(n), 1)
    assert found.utilities[1] is None and found.order[-1] == 1
    assert found.order[0] == rest[np.argmax(scorer.utilities[rest])]
    assert found.unjudged and all(1 in pair for pair in found.unjudged)
    assert method is round_robin or len(found.unjudged) <= 3  # it is not tried with everyone


@pytest.mark.parametrize("method", METHODS)
def test_nothing_or_little_can_be_judged(method):
    none = method(Scorer(drawn(20), unjudged=lambda i, j: True), 20)
    assert none.utilities == (None,) * 20 and none.order == tuple(range(20)) and none.cycles == ()
    assert none.comparisons <= (190 if method is round_robin else 30)
    single, empty = method(Scorer([0.0]), 1), method(Scorer([]), 0)
    assert single.order == (0,) and single.utilities == (0.0,) and single.comparisons == 0
    assert empty.order == () and empty.comparisons == 0


def test_pairs_that_are_too_long_together_cost_a_tournament_a_few_comparisons():
    """Half of the answers cannot meet each other: every other pair is still judged, and the end is near."""
    scorer = Scorer(drawn(64), unjudged=lambda i, j: i % 2 == j % 2 == 0)
    found = tournament(scorer, 64)
    assert found.comparisons < 4 * 64 and None not in (found.utilities[found.order[0]],)


def test_what_a_comparer_must_not_give():
    with pytest.raises(BadInput, match="probability lies in"):
        tournament(lambda pairs: [1.2] * len(pairs), 3)
    with pytest.raises(BadInput, match="return None"):
        tournament(lambda pairs: [math.nan] * len(pairs), 3)
    with pytest.raises(BadInput, match="1 numbers for 3 pairs"):
        round_robin(lambda pairs: [0.5], 3)
    with pytest.raises(BadInput, match="confidence is 1"):
        active(circle, 3, confidence=1)
    with pytest.raises(BadInput, match="at least 3 comparisons"):
        active(circle, 4, budget=2)
    with pytest.raises(BadInput, match="n is -1"):
        tournament(circle, -1)
