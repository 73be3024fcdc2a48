"""Calibrations against SciPy and scikit-learn, and planted faults that have to be found."""

import numpy as np
import pytest
from scipy import optimize
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from karat import metrics
from karat.rewards._calibration import METHODS, Isotonic, Length, Platt, Rows, Temperature
from karat.rewards._calibration_figures import changes, verdict
from karat.types import BadInput


def pairs_of(leads, labels, weights=None, lengths=None):
    leads = np.asarray(leads, dtype=float)
    rewards = np.stack([leads / 2, -leads / 2], axis=1)
    weights = np.ones(leads.size) if weights is None else weights
    lengths = np.ones_like(rewards) if lengths is None else lengths
    return Rows(rewards, lengths, np.asarray(labels, dtype=float), weights, [str(i) for i in range(leads.size)])


def answers_of(rewards, labels, weights=None):
    rewards = np.asarray(rewards, dtype=float)
    weights = np.ones(rewards.size) if weights is None else weights
    prompts = [str(i // 2) for i in range(rewards.size)]
    return Rows(rewards[:, None], np.ones((rewards.size, 1)), np.asarray(labels, dtype=float), weights, prompts)


def apply(how, rewards, characters=None):
    rewards = np.asarray(rewards, dtype=float)
    return how.apply(rewards, np.ones_like(rewards) if characters is None else characters)


# ---------------------------------------------------------------------------------------------- temperature


def preferences(n, scale=1.0, seed=0):
    rng = np.random.default_rng(seed)
    lead = rng.normal(0, 1.5, n)
    return scale * lead, (rng.random(n) < expit(lead)).astype(float)


@pytest.mark.parametrize("soft", [False, True])
def test_temperature_is_the_maximum_of_the_likelihood(soft):
    lead, label = preferences(400, 2.5)
    rng = np.random.default_rng(1)
    label = np.clip(label, 0.2, 0.9) if soft else label
    weight = rng.integers(1, 4, 400).astype(float)

    def loss(t):
        return weight @ (label * np.logaddexp(0, -lead / t) + (1 - label) * np.logaddexp(0, lead / t))

    wanted = optimize.minimize_scalar(loss, bounds=(0.1, 50), method="bounded", options={"xatol": 1e-9}).x
    assert Temperature.fit(pairs_of(lead, label, weight)).temperature == pytest.approx(wanted, rel=1e-5)


def test_rewards_that_are_three_times_too_large_have_the_temperature_3():
    lead, label = preferences(20_000, 3.0)
    found = Temperature.fit(pairs_of(lead, label)).temperature
    share = expit(lead / found)
    error = found**2 / np.sqrt((lead**2 * share * (1 - share)).sum())
    assert error < 0.1 and abs(found - 3) < 3 * error


def test_temperature_helps_on_fresh_pairs():
    how = Temperature.fit(pairs_of(*preferences(4000, 3.0)))
    lead, label = preferences(4000, 3.0, seed=9)
    nll, ece = changes(how, pairs_of(lead, label), "logit", 0)
    for value, interval, logits in [
        (nll.before, nll.before_interval, lead),
        (nll.after, nll.after_interval, lead / how.temperature),
    ]:
        wanted = -np.mean(label * np.log(expit(logits)) + (1 - label) * np.log(expit(-logits)))
        assert value == pytest.approx(wanted) and interval.low < wanted < interval.high
    favoured = np.where(lead > 0, label, 1 - label)
    assert ece.before == pytest.approx(metrics.expected_calibration_error(expit(np.abs(lead)), favoured, 20))
    assert nll.after_interval.high < nll.before_interval.low and ece.after < 0.03 < ece.before


@pytest.mark.parametrize(
    ("lead", "label", "said"),
    [
        ([1.0, 2.0], [1.0, 1.0], "any temperature down to 0"),
        ([1.0, -2.0], [1.0, 0.0], "any temperature down to 0"),
        ([-1.0, -2.0], [1.0, 1.0], "lower rewards, which no temperature mends"),
        ([-2.0, -2.0, 1.0], [1.0, 1.0, 1.0], "lower rewards, which no temperature mends"),
        ([0.0, 0.0], [1.0, 1.0], "the same reward"),
    ],
)
def test_pairs_without_a_temperature(lead, label, said):
    with pytest.raises(BadInput, match=said):
        Temperature.fit(pairs_of(lead, label))


# ---------------------------------------------------------------------------------------------- platt, isotonic


def outcomes(n, seed=0, slope=0.4, at=3.0):
    rng = np.random.default_rng(seed)
    reward = rng.normal(at, 2, n)
    return reward, (rng.random(n) < expit(slope * (reward - at) + 0.3)).astype(float)


@pytest.mark.parametrize("soft", [False, True])
def test_platt_is_a_logistic_regression(soft):
    reward, label = outcomes(500)
    label = np.clip(label, 0.1, 0.8) if soft else label
    weight = np.random.default_rng(1).integers(1, 4, 500).astype(float)
    both = np.concatenate([weight * label, weight * (1 - label)])
    other = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000)
    other.fit(np.tile(reward, 2)[:, None], np.repeat([1, 0], 500), sample_weight=both)
    found = Platt.fit(answers_of(reward, label, weight))
    assert found.slope == pytest.approx(other.coef_[0, 0], rel=1e-4)
    assert found.intercept == pytest.approx(other.intercept_[0], rel=1e-4)
    assert apply(found, reward) == pytest.approx(other.predict_proba(reward[:, None])[:, 1], abs=1e-5)


def test_isotonic_is_the_rising_curve_nearest_to_the_labels():
    reward, label = outcomes(300)
    weight = np.random.default_rng(1).integers(1, 4, 300).astype(float)
    order = np.argsort(reward)
    wanted = optimize.isotonic_regression(label[order], weights=weight[order]).x.clip(1 / 302, 301 / 302)
    found = Isotonic.fit(answers_of(reward, label, weight))
    assert apply(found, reward[order]) == pytest.approx(wanted)
    low, high = apply(found, [-1e9, 1e9])
    assert low == found.probabilities[0] >= 1 / 302 and high == found.probabilities[-1] <= 301 / 302


@pytest.mark.parametrize("method", ["platt", "isotonic"])
def test_probabilities_of_fresh_answers_are_calibrated(method):
    how = METHODS[method].fit(answers_of(*outcomes(6000)))
    reward, label = outcomes(2500, seed=5)
    nll, ece = changes(how, answers_of(reward, label), "logit", 0)
    prob = apply(how, reward)
    assert nll.after == pytest.approx(-np.mean(label * np.log(prob) + (1 - label) * np.log1p(-prob)))
    assert ece.after == pytest.approx(metrics.expected_calibration_error(prob, label)) and ece.after < 0.06
    assert nll.after_interval.high < nll.before_interval.low and ece.before > 0.15
    assert changes(how, answers_of(reward, label), "rating", 0)[0].before is None
    shares = changes(how, answers_of(expit(reward), label), "probability", 0)
    assert shares[0].before == pytest.approx(nll.before)


@pytest.mark.parametrize("method", [Platt, Isotonic])
@pytest.mark.parametrize(
    ("reward", "label", "said"),
    [
        ([1.0, 2.0, 3.0], [1.0, 1.0, 1.0], "every label is 1"),
        ([3.0, 2.0, 1.0], [0.0, 0.0, 1.0], "the wrong answers have the higher rewards"),
        ([4.0, 3.0, 2.0, 1.0], [0.0, 0.0, 1.0, 0.6], "the wrong answers have the higher rewards"),
        ([1.0, 1.0], [0.0, 1.0], "every answer the reward 1"),
    ],
)
def test_outcomes_without_a_curve(method, reward, label, said):
    with pytest.raises(BadInput, match=said):
        method.fit(answers_of(reward, label))


def test_separated_outcomes_have_an_isotonic_curve_and_no_slope():
    rows = answers_of([1.0, 2.0, 3.0, 4.0], [0.0, 0.0, 1.0, 1.0])
    with pytest.raises(BadInput, match="any steep curve fits"):
        Platt.fit(rows)
    assert Isotonic.fit(rows).probabilities == pytest.approx((1 / 6, 1 / 6, 5 / 6, 5 / 6))


# ---------------------------------------------------------------------------------------------- length


def biased(n, bias, seed, spread=1.0):
    """Pairs whose leads are merit plus a bias; lengths have nothing to do with merit. Levels go with the lengths."""
    rng = np.random.default_rng(seed)
    usual = rng.uniform(4, 6, n)  # of the prompt
    lengths = np.exp(usual[:, None] + rng.normal(0, 0.5, (n, 2))).round()
    merit = rng.normal(0, spread, (n, 2))
    label = (rng.random(n) < expit(2 * (merit[:, 0] - merit[:, 1]))).astype(float)
    rewards = merit + bias(lengths)
    return Rows(rewards, lengths, label, np.ones(n), [str(i) for i in range(n)])


BIASES = {
    "log": np.log1p,
    "per character": lambda length: 0.004 * length,
    "saturating": lambda length: 3 * np.tanh(length / 150),
    "shorter": lambda length: -0.8 * np.log1p(length),
    "up and down": lambda length: 2 * np.sin(np.log1p(length)),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in ("log", "up and down") else pytest.mark.full) for name in BIASES]
)
def test_a_planted_length_bias_is_removed(name):
    how = Length.fit(biased(8000, BIASES[name], 0))
    fresh = biased(12_000, BIASES[name], 1)
    within, over, accuracy = changes(how, fresh, "logit", 0)
    assert abs(within.before) > 0.1 and abs(within.after) < 0.03 and abs(over.after) < 0.03
    assert accuracy.after > accuracy.before
    wanted = np.corrcoef(fresh.rewards_BK.ravel(), np.log1p(fresh.characters_BK).ravel())[0, 1]
    assert over.before == pytest.approx(wanted) and over.before_interval.low < wanted < over.before_interval.high
    lead, longer = fresh.leads, np.log1p(fresh.characters_BK) @ [1, -1]
    symmetric = np.corrcoef(np.r_[lead, -lead], np.r_[longer, -longer])[0, 1]
    assert within.before == pytest.approx(symmetric)
    assert apply(how, fresh.rewards_BK, fresh.characters_BK).mean() == pytest.approx(fresh.rewards_BK.mean(), abs=0.03)


def test_accuracy_does_not_fall_where_lengths_are_balanced():
    how = Length.fit(biased(8000, BIASES["log"], 0))
    fresh = biased(5000, BIASES["log"], 1)
    same = np.repeat(fresh.characters_BK[:, :1], 2, axis=1)
    equal = fresh._replace(rewards_BK=fresh.rewards_BK - np.log1p(fresh.characters_BK) + np.log1p(same))
    accuracy = changes(how, equal._replace(characters_BK=same), "logit", 0)[-1]
    assert accuracy.after == pytest.approx(accuracy.before, abs=1e-12)


def test_prompts_that_ask_for_long_answers_are_no_bias():
    """Rewards that go with the prompt's usual length, and not with an answer's: a pooled regression takes them off."""
    rows = biased(8000, lambda length: np.log1p(length).mean(axis=1, keepdims=True), 0)
    how = Length.fit(rows)
    assert np.ptp(how.rewards[1:-1]) < 0.3
    pooled = np.polyfit(np.log1p(rows.characters_BK).ravel(), rows.rewards_BK.ravel(), 1)[0]
    assert pooled > 0.4  # the negative control


def test_a_few_pairs_get_a_straight_line_and_equal_lengths_none():
    how = Length.fit(biased(40, BIASES["log"], 0, spread=0.01))
    assert len(how.lengths) == 2 and how.rewards[1] - how.rewards[0] == pytest.approx(
        how.lengths[1] - how.lengths[0], rel=0.02
    )
    rows = pairs_of([1.0, 2.0], [1.0, 1.0], lengths=np.full((2, 2), 7.0))
    with pytest.raises(BadInput, match="equally long"):
        Length.fit(rows)


def test_the_verdict_says_what_got_worse():
    rows = pairs_of(*preferences(400))
    for temperature, word in ((0.2, "worse"), (1.0, "no clear change")):
        how = Temperature(temperature=temperature)
        found = verdict(how, rows, "logit", 0, changes(how, rows, "logit", 0))
        assert found.word == word and found.interval.low <= found.by <= found.interval.high
        before, after = found.change.before, found.change.after
        assert found.by == pytest.approx(after - before) and f"from {before:.4f} to {after:.4f}" in str(found)
        assert ("leave the model as it was" in str(found)) and (word == "worse") == (found.by > 0)
    large = pairs_of(*preferences(400, 5.0))
    how = Temperature(temperature=5.0)
    assert str(verdict(how, large, "logit", 0, changes(how, large, "logit", 0))).startswith("better: negative log")


def test_the_verdict_on_length_is_how_far_the_correlation_is_from_none():
    rng = np.random.default_rng(0)
    lead, label = preferences(300)
    lengths = np.exp(rng.normal(5, 1, (300, 2)))
    rows = pairs_of(lead + np.log(lengths[:, 0] / lengths[:, 1]), label, lengths=lengths)
    how = Length.fit(rows)
    found = verdict(how, rows, "logit", 0, changes(how, rows, "logit", 0))
    assert found.word == "better" and found.by == pytest.approx(abs(found.change.after) - abs(found.change.before))
