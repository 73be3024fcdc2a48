"""Self-training: which labels are kept and turned, what leaks, when it stops, and a run that goes on."""

import json
import math

import kit
import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.special import expit, logit

import karat
import toys
from karat import arithmetic
from karat.formats import base as formats
from karat.rewards.base import kind
from karat.training import _selftraining_rows as rows
from karat.training import _selftraining_run as selftraining_run
from karat.training import run, selftraining
from karat.training._selftraining_report import Labels
from karat.training._selftraining_rows import Data, candidate
from karat.training._selftraining_run import leads_of, pseudo, selftrain
from karat.training.config import TrainConfig
from karat.training.selftraining import Exhausted, HeldOut, Plan, Threshold
from karat.types import BadInput, Example, Message, Pair, Reward, Unscored

ORACLE = [0.95, 0.85, 0.80, 0.6, 0.1, 0.5]
MADE = kind("bradley_terry")


def pair(prompt, a, b, **more):
    asked = (Message("user", prompt),)
    return Pair(Example(asked, a), Example(asked, b), **more)


def turned(one):
    return Pair(one.rejected, one.chosen, 1 - one.preference, -one.margin, one.weight, one.origin)


def held_out(leads, labels=None, weights=None, prompts=None):
    leads = np.asarray(leads, dtype=float)
    labels = np.ones(leads.size) if labels is None else np.asarray(labels, dtype=float)
    weights = np.ones(leads.size) if weights is None else np.asarray(weights, dtype=float)
    return HeldOut(leads, labels, weights, prompts or [str(i) for i in range(leads.size)])


class Planted:
    """A model whose reward, or side of a comparison, is a function of the answer's text."""

    output, at_steps = "logit", False

    def __init__(self, reward, compares=False):
        self.reward, self.compares = reward, compares

    def score_many(self, examples, *, strict=False):
        for example in examples:
            value = self.reward(example.response)
            yield Unscored("no reward") if value is None else Reward(value)

    def compare_many(self, examples, *, strict=False):
        for example in examples:
            yield Reward(float(expit(self.reward(example.response) - self.reward(example.other))))


def labels_of(pairs, model, threshold, temperature=1.0):
    pool = [candidate(one) for one in pairs]
    leads, unscored = leads_of(model, [one.pair for one in pool])
    made = Labels(temperature, Threshold(threshold, None, None, 0), np.array(leads), unscored)
    return list(pseudo(Data([], [], pool, {}), made, 1))


# ------------------------------------------------------------------------------------------ what is kept


def rlhflow(prob, threshold):
    """RLHFlow's conf_threshold.py: the probability filters, and the data's own order stays."""
    return [(i, False) for i, p in enumerate(prob) if max(p, 1 - p) > threshold]


def ours(prob, threshold):
    return [(i, prob[i] < 0.5) for i in np.flatnonzero(selftraining.keep(prob, threshold))]


def test_the_oracle_and_rlhflows_bug():
    """Rows 0, 1 and 4 are kept, and row 4 is turned; RLHFlow keeps it as it stands, against its own label."""
    assert ours(ORACLE, 0.8) == [(0, False), (1, False), (4, True)]
    assert rlhflow(ORACLE, 0.8) == [(0, False), (1, False), (4, False)]


@pytest.mark.parametrize(("threshold", "kept"), [(0.0, 5), (0.499, 5), (0.5, 5), (0.95, 0), (1.0, 0), (7.0, 0)])
def test_thresholds_at_the_ends(threshold, kept):
    assert selftraining.keep(ORACLE, threshold).sum() == kept
    assert not selftraining.keep([0.5, math.nan], 0.0).any()


@given(st.floats(-50, 50), st.floats(0.05, 20))
def test_a_turned_pair_is_as_sure(lead, temperature):
    prob = selftraining.probabilities(np.array([lead, -lead]), temperature)
    assert prob.sum() == 1 and prob[0] == pytest.approx(expit(lead / temperature))
    sure = selftraining.confidence(prob)
    assert sure[0] == sure[1]


@given(st.floats(-50, 50), st.floats(0.05, 20), st.floats(0.5, 0.999))
def test_the_rule_in_rewards(lead, temperature, threshold):
    bound = temperature * math.log(threshold / (1 - threshold))
    if abs(abs(lead) - bound) > 1e-6 * max(1, bound):
        kept = selftraining.keep(selftraining.probabilities(np.array([lead]), temperature), threshold)
        assert kept.item() == (abs(lead) > bound)
    assert math.isclose(math.log(0.8 / 0.2), 1.386294, rel_tol=1e-6)


TEXTS = st.text("abcd", max_size=5)


@given(st.lists(st.tuples(TEXTS, TEXTS, st.booleans()), min_size=1, max_size=8), st.booleans(), st.floats(0, 0.99))
@settings(max_examples=150)
def test_swapping_the_answers_of_a_row_changes_nothing_in_what_is_kept(drawn, compares, threshold):
    def reward(text):
        return sum(map(ord, text)) / 100 * (-1) ** len(text)

    plain = [pair(f"Q{i}", a, b) for i, (a, b, _) in enumerate(drawn) if a != b]
    swapped = [
        turned(one) if swap else one for one, swap in zip(plain, [swap for a, b, swap in drawn if a != b], strict=True)
    ]
    model = Planted(reward, compares)
    found = labels_of(plain, model, threshold)
    assert found == labels_of(swapped, model, threshold)
    assert all(reward(one.chosen.response) > reward(one.rejected.response) for one in found)
    assert all(one.preference == 1 and one.margin == 0 for one in found)


def test_rlhflows_rule_changes_where_answers_are_swapped():
    """The model prefers bad, surely. RLHFlow's rows are the file's order whatever it is, so a swap turns them."""
    reward = {"good": 0.0, "bad": 3.0}.get

    def theirs(a, b):
        return [(a, b) for _ in rlhflow([expit(reward(a) - reward(b))], 0.8)]

    def mine(a, b):
        return [
            (one.chosen.response, one.rejected.response) for one in labels_of([pair("Q", a, b)], Planted(reward), 0.8)
        ]

    assert theirs("good", "bad") != theirs("bad", "good")
    assert theirs("good", "bad") == [("good", "bad")]  # against the model, as only the file's label would have it
    assert mine("good", "bad") == mine("bad", "good") == [("bad", "good")]


def test_kept_rows_are_an_ordinary_file_of_pairs(tmp_path):
    model = Planted(lambda text: float(len(text)))
    found = labels_of([pair("Q", "a", "aaaa", preference=0.2, margin=2.0, weight=3.0)], model, 0.8, temperature=1.5)
    assert formats.write(found, tmp_path / "p.jsonl", "preference") == 1
    loaded = formats.load(tmp_path / "p.jsonl")
    assert loaded.format == "preference" and loaded.items == found
    (one,) = loaded.items
    assert one.chosen.response == "aaaa" and (one.preference, one.margin, one.weight) == (1.0, 0.0, 3.0)
    assert one.chosen.context == {"prob": pytest.approx(expit(2.0)), "round": 1}


def test_leads():
    pairs = [pair("Q", "aa", "b"), pair("Q", "", "b")]
    rewards = {"aa": 2.5, "b": 1.0, "": None}
    leads, unscored = leads_of(Planted(rewards.get), pairs)
    assert leads[0] == 1.5 and math.isnan(leads[1]) and unscored == {"no reward": 1}
    certain = Planted({"aa": 90.0, "b": 1.0}.get, compares=True)
    assert leads_of(certain, pairs[:1])[0] == [pytest.approx(float(logit(1 - 1e-6)))]


# ------------------------------------------------------------------------------------------ calibration


def drawn(n=400, seed=0, temperature=2.5):
    rng = np.random.default_rng(seed)
    leads = rng.normal(size=n) * 4
    return held_out(leads, rng.random(n) < expit(leads / temperature))


def test_the_temperature_is_that_of_least_negative_log_likelihood():
    found = drawn()

    def loss(t):
        return -np.log(expit(np.where(found.labels == 1, 1, -1) * found.leads / t)).mean()

    best = minimize_scalar(loss, bounds=(0.1, 20), method="bounded", options={"xatol": 1e-9})
    assert selftraining.temperature(found) == pytest.approx(best.x, rel=1e-6)
    assert selftraining.nats(found, best.x).mean() == pytest.approx(best.fun)


def test_unscored_and_weightless_rows_say_nothing():
    found = drawn(50)
    more = held_out([*found.leads, math.nan, 9.0], [*found.labels, 1, 0], [*found.weights, 1, 0])
    assert selftraining.temperature(more) == pytest.approx(selftraining.temperature(found), rel=1e-9)
    assert selftraining.accuracy(more, 0).value == selftraining.accuracy(found, 0).value
    with pytest.raises(BadInput, match="scores no held-out pair"):
        selftraining.temperature(held_out([math.nan]))


@given(
    st.lists(st.tuples(st.integers(-6, 6), st.booleans()), min_size=1, max_size=12), st.sampled_from([0.6, 0.8, 1.0])
)
def test_the_threshold_is_the_smallest_that_reaches_the_precision(rows, precision):
    leads, labels = np.array([lead for lead, _ in rows]) / 2, [float(right) for _, right in rows]
    prob, sure = expit(leads), expit(np.abs(leads))

    def reached(threshold):
        above = [(p > 0.5) == bool(y) for p, y, c in zip(prob, labels, sure, strict=True) if c > threshold and p != 0.5]
        return bool(above) and np.mean(above) >= precision - 1e-9

    wanted = [t for t in sorted({0.5, *sure}) if reached(t)]
    found = held_out(leads, labels)
    if not wanted:
        with pytest.raises(Exhausted, match="lower precision, or give more labelled pairs"):
            selftraining.threshold_for(found, 1.0, precision)
        return
    told = selftraining.threshold_for(found, 1.0, precision)
    assert told.value == pytest.approx(wanted[0]) and told.precision >= precision - 1e-9
    assert told.interval.low <= told.precision <= told.interval.high and told.held_out >= 1


def test_worse_is_a_paired_difference_with_an_error_over_prompts():
    now, best = held_out([1.0, -1.0, 2.0, math.nan]), held_out([2.0, 1.0, 2.0, 5.0])
    by, error = selftraining.worse(now, 1.0, best, 1.0)
    gap = np.log1p(np.exp(-np.array([1.0, -1.0, 2.0]))) - np.log1p(np.exp(-np.array([2.0, 1.0, 2.0])))
    assert by == pytest.approx(gap.mean()) and error == pytest.approx(gap.std(ddof=1) / math.sqrt(3))
    twice = [held_out([*one.leads, *one.leads], prompts=list("abcdabcd")) for one in (now, best)]
    assert selftraining.worse(twice[0], 1.0, twice[1], 1.0) == pytest.approx((by, error))
    assert selftraining.worse(best, 1.0, best, 1.0) == (0.0, 0.0)


def test_figures():
    lengths, prob = np.array([[3, 1], [1, 3], [2, 2], [5, 1]]), np.array([0.9, 0.9, 0.9, math.nan])
    every = np.full(4, True)
    assert selftraining.longer_preferred(lengths, prob, every) == 0.5
    assert selftraining.longer_preferred(lengths[2:3], prob[2:3], every[2:3]) is None
    truth = np.array([1.0, 0.0, math.nan, 1.0])
    told = selftraining.label_accuracy(prob, truth, np.isfinite(prob))
    assert told.value == 0.5 and told.interval.low < 0.5 < told.interval.high
    assert selftraining.label_accuracy(prob, np.full(4, math.nan), every).value is None
    assert selftraining.accuracy(held_out([1.0, 0.0, -1.0]), 0).value == pytest.approx(1 / 3)
    assert selftraining.accuracy(held_out([1.0, 1.0]), 0, held_out([1.0, -1.0])).value == 0.5


# ------------------------------------------------------------------------------------------ rows


def read(tmp_path, unlabelled, eval="0.25", labelled=None, made=MADE):
    data = kit.write(tmp_path / "l.jsonl", labelled or arithmetic.pair_rows(16, 0))
    fields = {"kind": "bradley_terry", "model": "m", "data": (data,), "eval": eval, "output": tmp_path / "o"}
    config = TrainConfig.make(**fields)
    return rows.read(config, kit.write(tmp_path / "u.jsonl", unlabelled), made)


def test_unlabelled_rows_of_held_out_prompts_are_left_out_and_counted(tmp_path, capsys):
    every = arithmetic.pair_rows(16, 0)
    found = read(tmp_path, [*every, *arithmetic.pair_rows(5, 7)])
    held = {formats.prompt_key(one) for one in found.held_out}
    assert len(held) == 4 and held.isdisjoint({formats.prompt_key(one) for one in found.labelled})
    assert held.isdisjoint({formats.prompt_key(one.pair) for one in found.pool})
    assert len(found.pool) == 17 and found.left_out == {"its prompt is held out": 4}
    assert "unlabelled rows left out 4: its prompt is held out" in capsys.readouterr().err


def test_unlabelled_rows_that_cannot_be_used_are_counted(tmp_path):
    good = {"prompt": "a", "responses": ["x", "y"]}
    bad = [{"prompt": "b", "responses": ["x"]}, {"prompt": "b", "responses": ["x", "x"]}, {"prompt": "b"}]
    found = read(tmp_path, [good, *bad, {"prompt": "c", "responses": ["x", "y", "z"]}])
    assert len(found.pool) == 1 and math.isnan(found.pool[0].truth)
    assert sum(found.left_out.values()) == 4 and "its two answers are the same" in found.left_out
    assert any("not two" in reason for reason in found.left_out)


@pytest.mark.parametrize(
    ("row", "truth"),
    [
        ({"chosen": "x", "rejected": "y"}, 1.0),
        ({"chosen": "y", "rejected": "x"}, 0.0),
        ({"chosen": "y", "rejected": "x", "preference": 0.3}, 0.7),
        ({"responses": ["y", "x"], "ranks": [1, 2]}, 0.0),
        ({"responses": ["y", "x"], "scores": [1, 1]}, math.nan),
        ({"responses": ["x", "y"]}, math.nan),
    ],
)
def test_formats_of_unlabelled_rows(tmp_path, row, truth):
    (one,) = read(tmp_path, [{"prompt": "q", **row}]).pool
    assert (one.pair.chosen.response, one.pair.rejected.response) == ("x", "y") and one.pair.preference == 1.0
    assert one.truth == pytest.approx(truth, nan_ok=True)


def test_the_digest_does_not_know_the_preferences(tmp_path):
    plain = [{"prompt": "q", "chosen": "x", "rejected": "y"}]
    other = [{"prompt": "q", "chosen": "y", "rejected": "x", "preference": 0.9}]
    assert read(tmp_path, plain).digest == read(tmp_path, other).digest
    assert read(tmp_path, plain).digest != read(tmp_path, [{**plain[0], "chosen": "z"}]).digest


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"eval": "0"}, "labelled pairs of 0 prompts are held out"),
        ({"eval": "0.01"}, "labelled pairs of 1 prompts are held out"),
        ({"unlabelled": [{"prompt": "q", "chosen": "x", "rejected": "x"}]}, "its two answers are the same"),
        ({"unlabelled": [{"prompt": "q", "response": "x", "label": 1}]}, "it has 1 answer, not two"),
        ({"labelled": kit.labelled_rows(8)}, "holds other rows than pairs"),
    ],
)
def test_rows_that_make_no_run(tmp_path, change, message):
    given = {"unlabelled": arithmetic.pair_rows(2, 7), **change}
    with pytest.raises(BadInput, match=message) as error:
        read(tmp_path, given.pop("unlabelled"), **given)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rounds": 0}, "at least 1"),
        ({"confidence": 1.0}, "no label is kept at 1 or above"),
        ({"confidence": -0.1}, "from 0 to below 1"),
        ({"confidence": 0.9, "precision": 0.9}, "leave one out"),
        ({"precision": 0.5}, "above 0.5"),
        ({"restart": "bas"}, "did you mean 'base'"),
    ],
)
def test_plans_that_cannot_be(settings, message):
    with pytest.raises(BadInput, match=message):
        Plan(**settings)


@pytest.mark.parametrize(("name", "unusable"), [("bradley_terry", 0), ("pairwise", 5)])
def test_real_pairs(data_folder, tmp_path, name, unusable):
    """HH's harmless test set: five of its pairs have two prompts, which a model that reads both cannot take."""
    path = data_folder / "hh_rlhf_harmless" / "test.jsonl.gz"
    if not path.is_file():
        pytest.skip(f"there is no {path}")
    config = TrainConfig.make(kind=name, model="m", data=(f"{path}[:400]",), eval="0.2", output=tmp_path / "o")
    found = rows.read(config, f"{path}[300:]", kind(name))
    left = found.left_out
    assert len(found.pool) + sum(left.values()) == 2012 and left["its prompt is held out"] > 0
    assert sum(count for reason, count in left.items() if "different prompts" in reason) <= unusable
    assert set(found.truth) == {0.0, 1.0} and 0.4 < found.truth.mean() < 0.6  # the order of texts says nothing
    assert (found.truth == 1 - found.turned).all()
    leads = np.array([float(len(one.pair.chosen.response) - len(one.pair.rejected.response)) for one in found.pool])
    labels = Labels(50.0, Threshold(0.8, None, None, 0), leads, {})
    kept = list(pseudo(found, labels, 1))
    assert formats.write(kept, tmp_path / "p.jsonl", "preference") == labels.kept.sum() > 100
    assert formats.load(tmp_path / "p.jsonl", "preference").items == kept
    assert all(len(one.chosen.response) > len(one.rejected.response) for one in kept)


# ------------------------------------------------------------------------------------------ whole runs


def separable(n, seed):
    """Pairs that a tiny model learns from few: the preferred answer has more of one letter, but in one of eight."""
    rng = np.random.default_rng(seed)
    found = []
    for i in rng.permutation(2 * n)[:n] * 2 + seed:  # prompts of one look, so that none tells the files apart
        good, bad = ("".join(rng.choice(list(letters), 6)) for letters in ("aaab", "abbb"))
        sides = (bad, good) if rng.random() < 0.125 else (good, bad)
        found.append({"prompt": f"q{i}", "chosen": sides[0], "rejected": sides[1]})
    return [row for row in found if row["chosen"] != row["rejected"]]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    kit.write(folder / "l.jsonl", separable(100, 0))
    kit.write(folder / "u.jsonl", separable(100, 1))
    swapped = [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in separable(100, 1)]
    kit.write(folder / "swapped.jsonl", swapped)
    return folder


def config(data, output, model, **more):
    fields = {"kind": "bradley_terry", "model": str(model), "data": (str(data / "l.jsonl"),), "output": output}
    return TrainConfig.make(
        **{
            **fields,
            "eval": "0.4",
            "learning_rate": 3e-3,
            "batch_size": 8,
            "epochs": 2,
            "spec": {"layout": "concat"},
            **more,
        }
    )


def same_kept(first, second, number=1):
    places = [one / "rounds" / str(number) / "pseudo.jsonl" for one in (first, second)]
    return places[0].read_bytes() == places[1].read_bytes()


@pytest.mark.full
def test_a_run_of_two_rounds(data, model_folder, tmp_path):
    made = config(data, tmp_path / "o", model_folder)
    told = selftrain(made, str(data / "u.jsonl"), Plan(rounds=2, confidence=0.6)).summary
    assert told == json.loads((tmp_path / "o" / "selftrain.json").read_text())
    assert (told["labelled"], told["held_out"], told["unlabelled"]) == (60, 40, 100)
    first, second = told["rounds"][:2]
    assert first["gain"] is None and "kept" not in first and 0.5 < first["accuracy"] <= 1
    assert 0 < second["kept"] <= told["unlabelled"] and second["label_accuracy"] > 0.6
    assert second["first_preferred"] == pytest.approx(second["label_accuracy"])  # the file has the preferred one first
    best = tmp_path / "o" / "rounds" / str(told["best"]) / "model"
    answers = karat.load(tmp_path / "o").score("q", ["aaaa", "bbbb"])
    assert answers == karat.load(best).score("q", ["aaaa", "bbbb"]) and answers[0].value > answers[1].value
    assert told["best"] == min(told["rounds"], key=lambda one: one["nats"])["round"]
    trained = kit.lines(tmp_path / "o" / "rounds" / "1" / "pseudo.jsonl")
    assert len(trained) == second["kept"] and all(row["context"]["prob"] > 0.6 for row in trained)
    with pytest.raises(BadInput, match="already there"):
        selftrain(made, str(data / "u.jsonl"), Plan(rounds=2, confidence=0.6))

    # The same with every unlabelled row the other way round: the same rows are kept, byte for byte.
    other = config(data, tmp_path / "p", model_folder)
    swapped = selftrain(other, str(data / "swapped.jsonl"), Plan(rounds=1, confidence=0.6)).summary
    assert same_kept(tmp_path / "o", tmp_path / "p")
    assert swapped["rounds"][1]["label_accuracy"] == pytest.approx(1 - second["label_accuracy"])
    assert swapped["rounds"][1]["accuracy"] == second["accuracy"]


def test_a_stopped_run_goes_on_and_trains_no_round_twice(data, model_folder, tmp_path, monkeypatch):
    made, plan = config(data, tmp_path / "o", model_folder), Plan(rounds=1, confidence=0.6)
    real, outputs = run.run, []

    def stopping(one):
        outputs.append(one.output.parent.name)
        if len(outputs) == 2:
            raise run.Interrupted("stopped")
        return real(one)

    monkeypatch.setattr(selftraining_run.run, "run", stopping)
    with pytest.raises(run.Interrupted):
        selftrain(made, str(data / "u.jsonl"), plan)
    with pytest.raises(BadInput, match="holds an unfinished run on other rows"):
        selftrain(made, str(data / "l.jsonl"), plan)
    with pytest.raises(BadInput, match="was trained with another batch_size; give the same"):
        selftrain(made.model_copy(update={"batch_size": 4}), str(data / "u.jsonl"), plan)
    with pytest.raises(BadInput, match="another confidence or precision"):
        selftrain(made, str(data / "u.jsonl"), Plan(rounds=1, confidence=0.7))
    told = selftrain(made, str(data / "u.jsonl"), plan).summary
    assert outputs == ["0", "1", "1"] and len(told["rounds"]) == 2


@pytest.mark.full
def test_nothing_is_sure_enough(data, model_folder, tmp_path):
    made = config(data, tmp_path / "o", model_folder)
    with pytest.raises(BadInput, match=r"no label of the unlabelled pairs is surer than 0\.999999"):
        selftrain(made, str(data / "u.jsonl"), Plan(rounds=1, confidence=0.999999))
    assert not (tmp_path / "o" / "reward_spec.json").exists()
    told = selftrain(made, str(data / "u.jsonl"), Plan(rounds=1, confidence=0.6)).summary  # goes on from round 0
    assert len(told["rounds"]) == 2


@pytest.mark.full
def test_drift_stops_and_the_best_round_is_kept(data, model_folder, tmp_path, monkeypatch):
    """Labels that are turned make the next round worse, which the held-out pairs say."""
    real = selftraining_run.pseudo

    def poisoned(found, labels, number):
        return [turned(one) for one in real(found, labels, number)] * 4

    monkeypatch.setattr(
        selftraining_run, "pseudo", lambda *given: [Pair(one.chosen, one.rejected) for one in poisoned(*given)]
    )
    made = config(data, tmp_path / "o", model_folder)
    told = selftrain(made, str(data / "u.jsonl"), Plan(rounds=3, confidence=0.5)).summary
    assert told["best"] == 0 and ("drifted" in told["stopped"] or "cannot be calibrated" in told["stopped"])


@pytest.mark.parametrize(
    ("name", "more", "restart"),
    [
        ("odin", {}, "previous"),
        ("bradley_terry", {"method": "lora"}, "base"),
        ("bradley_terry", {"method": "frozen"}, "previous"),
        ("pairwise", {"method": "full", "spec": {}}, "previous"),
    ],
)
@pytest.mark.full
def test_other_ways_to_train(data, model_folder, tmp_path, name, more, restart):
    model = toys.save(tmp_path / "causal", toys.causal_model()) if name == "pairwise" else model_folder
    made = config(data, tmp_path / "o", model, kind=name, **more)
    told = selftrain(made, str(data / "u.jsonl"), Plan(rounds=1, confidence=0.5, restart=restart)).summary
    assert told["rounds"][0]["accuracy"] > 0.5
    trained = yaml.safe_load((tmp_path / "o" / "rounds" / "1" / "model" / "run.yaml").read_text())
    started = tmp_path / "o" / "rounds" / "0" / "model" if restart == "previous" else model
    assert trained["model"] == str(started) and len(trained["data"]) == 2
    loaded = karat.load(tmp_path / "o")
    assert (loaded.compare("q1", "aaaa", "bbbb") > 0.5) and loaded.compares == (name == "pairwise")


def test_an_adapter_is_no_start(data, model_folder, tmp_path):
    made = config(data, tmp_path / "o", model_folder, method="lora")
    with pytest.raises(BadInput, match="restart=previous needs method=full"):
        selftrain(made, str(data / "u.jsonl"), Plan(restart="previous"))
    assert not (tmp_path / "o").exists()


def test_kinds_that_learn_no_preferences(data, model_folder, tmp_path):
    with pytest.raises(BadInput, match="use one of bradley_terry, implicit, odin, pairwise"):
        selftrain(config(data, tmp_path / "o", model_folder, kind="outcome", spec={}), str(data / "u.jsonl"), Plan())
