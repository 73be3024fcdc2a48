"""Correlations of many weightings at once are scipy's of the rows written out, and so are their intervals."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import pearsonr, spearmanr

from karat import metrics
from karat.evaluation._correlation import pearsons, spearmans

PAIRS = ((spearmans, spearmanr), (pearsons, pearsonr))


def written_out(scipys, label, score, times):
    a, b = np.repeat(label, times), np.repeat(score, times)
    return np.nan if a.size < 2 or np.ptp(a) == 0 or np.ptp(b) == 0 else scipys(a, b).statistic


@pytest.mark.parametrize(("ours", "scipys"), PAIRS)
@given(st.lists(st.tuples(*[st.integers(-4, 4)] * 2, *[st.integers(0, 3)] * 2), min_size=1, max_size=12))
def test_a_weight_is_so_many_rows(ours, scipys, rows):
    label, score, *times = np.array(rows).T
    found = ours(label.astype(float), score.astype(float), np.array(times, float))
    wanted = [written_out(scipys, label, score, each) for each in times]
    np.testing.assert_allclose(found, wanted, atol=1e-12)


@pytest.mark.parametrize(("ours", "scipys"), PAIRS)
def test_the_interval_is_that_of_drawn_rows(ours, scipys):
    rng = np.random.default_rng(0)
    label, groups = rng.integers(0, 5, 60).astype(float), np.arange(60) // 2
    score = label + rng.normal(size=60)
    found = metrics.bootstrap_of_weights(np.ones(60), lambda w: ours(label, score, w), groups=groups, n=50, seed=3)
    columns, drawn = np.c_[label, score], metrics.bootstrap_interval
    wanted = drawn(columns, lambda rows: scipys(*rows.T).statistic, groups=groups, n=50, seed=3)
    assert found == pytest.approx(wanted)


def test_nothing_overflows():
    label, huge = np.array([1.0, 2.0, 3.0]), np.array([1e200, 2e200, 3e200])
    assert pearsons(label, huge, np.full((1, 3), 1e200)) == pytest.approx(1.0)
