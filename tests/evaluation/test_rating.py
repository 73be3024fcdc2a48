"""Ratings: figures against SciPy and scikit-learn, what a constant and a perfect scorer get, and what is refused."""

import importlib
import json
import math

import numpy as np
import pytest
from test_evaluation import by_table, constant, example, number, pair

from karat.evaluation import _nulls
from karat.evaluation._charts import charts
from karat.evaluation._report import Report, html, verdict
from karat.evaluation.base import LEAD, beats_null, evaluate, summary
from karat.types import BadInput, Labelled, Reward, Unscored

stats = importlib.import_module("scipy.stats")
sklearn_metrics = importlib.import_module("sklearn.metrics")


def rated(size, seed, noise=1.0):
    """Answers that end with a prediction, two to a prompt, and their rating; lengths vary, ties occur."""
    rng = np.random.default_rng(seed)
    said = rng.integers(1, 6, size) + 0.0
    label = np.round(said + rng.normal(0, noise, size), 1)
    words = ["x" * int(n) for n in rng.integers(1, 30, size)]
    rows = zip(words, said, label, strict=True)
    return [Labelled(example(f"p{i // 2}", f"{w} {s:g}"), float(y)) for i, (w, s, y) in enumerate(rows)]


def ratings(scorer, items, *training, **more):
    return evaluate(scorer, items, *training, output="rating", **more)


def arrays(items):
    return [np.array(v) for v in zip(*((float(i.example.response.split()[-1]), i.label) for i in items), strict=True)]


# ------------------------------------------------------------------------------------------ figures


def test_golden():
    items = rated(60, 0)
    said, label = arrays(items)
    length = np.array([len(i.example.response) for i in items])
    result = ratings(number, items)
    value = {f.name: f.value for f in result.figures}
    assert result.name == "rating" and result.headline == "Spearman correlation"
    assert value["Spearman correlation"] == pytest.approx(stats.spearmanr(said, label).statistic)
    assert value["Pearson correlation"] == pytest.approx(stats.pearsonr(said, label).statistic)
    assert value["R²"] == pytest.approx(sklearn_metrics.r2_score(label, said))
    assert value["RMSE"] == pytest.approx(sklearn_metrics.root_mean_squared_error(label, said))
    assert value["RMSE of a constant guess"] == pytest.approx(label.std())
    assert value["reward and length, Spearman"] == pytest.approx(stats.spearmanr(said, length).statistic)
    longer = stats.spearmanr(length, label).statistic
    nulls = {f.name: f.value for f in result.nulls_of("Spearman correlation")}
    expected = {"longer wins": longer, "random": 0.0, "shorter wins": -longer}
    assert nulls == {name: pytest.approx(value) for name, value in expected.items()}
    assert value[LEAD] == pytest.approx(value["Spearman correlation"] - abs(longer))
    for name in ("Spearman correlation", "Pearson correlation", "R²", "RMSE", LEAD):
        figure = result.figure(name)
        assert figure.low < figure.value < figure.high


def test_weights_are_rows_given_twice():
    items = rated(20, 1)
    said, label = arrays(items)
    heavy = [Labelled(item.example, item.label, weight=1.0 + i % 3) for i, item in enumerate(items)]
    times = np.array([1 + i % 3 for i in range(20)])
    said, label = np.repeat(said, times), np.repeat(label, times)
    result = ratings(number, heavy)
    assert result.figure("Spearman correlation").value == pytest.approx(stats.spearmanr(said, label).statistic)
    assert result.figure("Pearson correlation").value == pytest.approx(stats.pearsonr(said, label).statistic)
    assert result.figure("R²").value == pytest.approx(sklearn_metrics.r2_score(label, said))


def test_the_interval_resamples_whole_prompts():
    """Twenty copies of five answers to one prompt each say no more than the five do."""
    few = rated(10, 2)
    many = [item for item in few for _ in range(20)]
    width = [f.high - f.low for f in (ratings(number, i).figure("Spearman correlation") for i in (few, many))]
    assert width[1] == pytest.approx(width[0], rel=0.2)


def test_a_perfect_scorer_gets_1_without_certainty():
    result = ratings(number, rated(60, 3, noise=0.0))
    for name in ("Spearman correlation", "Pearson correlation", "R²"):
        assert result.figure(name).value == pytest.approx(1.0)
    assert result.figure("RMSE").value == 0.0 and result.figure("RMSE").low is None
    own = result.figure("Spearman correlation")
    assert 0.7 < own.low < 0.9 and own.high == pytest.approx(1.0) and own.note == "Wilson interval"
    assert beats_null(result) is True and result.mistakes == ()


def test_one_prompt_proves_nothing():
    items = [Labelled(example("same", f"a {i}"), float(i)) for i in range(20)]
    result = ratings(number, items)
    assert all(figure.low is None for figure in (*result.figures, *result.nulls))
    assert beats_null(result) is None and "no claim can be made" in verdict(result)


def test_a_constant_scorer_gets_0_and_a_note():
    items = rated(40, 4)
    result = ratings(constant, items)
    own = result.figure("Spearman correlation")
    assert (own.value, own.low, own.high) == (0.0, None, None) and "undefined for a constant score" in own.note
    assert result.figure("Pearson correlation").value == 0.0 and beats_null(result) is False
    assert all(math.isfinite(f.value) for f in (*result.figures, *result.nulls))
    mean = float(np.mean([i.label for i in items]))
    flat = ratings(lambda examples: [Reward(mean)] * len(examples), items)
    assert flat.figure("R²").value == pytest.approx(0.0, abs=1e-9)
    assert flat.figure("RMSE").value == pytest.approx(flat.figure("RMSE of a constant guess").value)


def test_an_order_turned_round_does_worse_than_its_null():
    result = ratings(lambda es: [Reward(-r.value) for r in number(es)], rated(60, 5))
    assert result.figure("Spearman correlation").value < -0.5 and beats_null(result) is False
    assert "does worse than its null" in verdict(result)
    scale = charts(result)[0].spec["layer"][1]["encoding"]["x"]["scale"]
    assert scale["domain"][0] < result.figure("Spearman correlation").low


def test_a_length_scorer_does_not_beat_its_null():
    """Negative control: a rating that is the length is found by the null as well."""
    items = [Labelled(example(str(i), "x" * (i + 1)), float(i)) for i in range(30)]
    result = ratings(lambda es: [Reward(float(len(e.response))) for e in es], items)
    assert result.figure(LEAD).value == 0 and beats_null(result) is False


def test_mistakes_are_the_farthest_off():
    items = [Labelled(example("a", "x 1"), 1.0), Labelled(example("b", "y 2"), 9.0), Labelled(example("c", "z 3"), 4.0)]
    assert [(m.better, m.margin) for m in ratings(number, items).mistakes] == [("y 2", -7.0), ("z 3", -1.0)]


# ------------------------------------------------------------------------------------------ the n-gram null


def graded(size, seed, start=0):
    """The rating is the number of good words."""
    rng = np.random.default_rng(seed)
    rows = [rng.choice(["good", "poor"], 5).tolist() for _ in range(size)]
    return [Labelled(example(f"q{start + i}", " ".join(r)), 10.0 * r.count("good")) for i, r in enumerate(rows)]


def test_the_ngram_null_is_a_ridge_on_training_items_only():
    training, items = graded(80, 0), graded(30, 1, start=80)
    result = ratings(lambda es: [Reward(float(e.response.count("good"))) for e in es], items, training)
    best = result.nulls_of("Spearman correlation")[0]
    assert best.name == "n-gram" and best.value > 0.9
    assert any("trained on 80 training answers" in note for note in result.notes)
    score = _nulls.fit_rating_ngram(training, 0)[0].score
    features = _nulls._both([i.example for i in training + items]).toarray()
    used = np.flatnonzero(features.any(axis=0))
    ridge = importlib.import_module("sklearn.linear_model").Ridge(alpha=1.0, solver="cholesky")
    ridge.fit(features[:80][:, used], [i.label for i in training])
    expected = ridge.predict(features[80:][:, used])
    assert score([i.example for i in items]) == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize(
    ("training", "note"),
    [([], "no training data"), ([pair("a", "b", "c")], "no two different"), (graded(1, 0) * 9, "no two different")],
)
def test_without_ratings_to_learn_from_there_is_a_note(training, note):
    model, said = _nulls.fit_rating_ngram(training, 0)
    assert model is None and note in said


# ------------------------------------------------------------------------------------------ in and out


@pytest.mark.parametrize(
    ("labels", "message"),
    [([1, 2], "2 answers could be judged, but ratings need at least 3"), ([4, 4, 4], "has the label 4")],
)
def test_too_little_is_refused(labels, message):
    items = [Labelled(example(str(i), f"a {i}"), float(label)) for i, label in enumerate(labels)]
    with pytest.raises(BadInput, match=message):
        ratings(number, items)


def test_unscored_answers_stay_out():
    items = rated(20, 6)
    lost = Labelled(example("z", "long"), 3.0)
    table = {i.example.response: number([i.example])[0].value for i in items} | {"long": "over 512 tokens"}
    result = ratings(by_table(table), [*items, lost])
    assert result.unscored == {"over 512 tokens": 1} and (result.n, result.judged) == (21, 20)
    assert result.figures == ratings(number, items).figures
    assert not any(isinstance(r, Unscored) for r in number([i.example for i in items]))


@pytest.mark.parametrize("scorer", [constant, number])
def test_summary_and_page(scorer):
    result = ratings(scorer, rated(30, 7))
    found = json.loads(json.dumps(summary(result), allow_nan=False))
    assert found["accuracy"] is None and found["null_accuracy"] is None and found["best_null"] is None
    assert found["headline"] in found["figures"] and len(found["nulls_of"][found["headline"]]) == 3
    page = html(Report("t", [result]))
    assert "the Spearman correlation is" in page and "Ties are wrong" not in page
    assert "in the unit of the ratings" in page and "logits" not in page.partition("<script>")[0]


def test_labels_from_0_to_1_may_be_ratings_too():
    items = [Labelled(example(str(i), f"a {i}"), i / 10) for i in range(10)]
    assert ratings(number, items).name == "rating" and evaluate(number, items).name == "outcome"
    assert ratings(number, [pair("a", "x 1", "y 0")]).name == "preference"
