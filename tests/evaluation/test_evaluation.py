"""Evaluations: what is counted, what is left out, and what the nulls get."""

import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from karat.evaluation import _nulls
from karat.evaluation._charts import charts
from karat.evaluation._report import Report, html, verdict
from karat.evaluation.base import LEAD, beats_null, evaluate, find, names, summary
from karat.metrics import wilson_interval
from karat.types import Attributed, BadInput, Example, Labelled, Message, Pair, Ranking, Reward, Stepped, Unscored


def example(prompt, response, **context):
    return Example((Message("user", prompt),), response, context)


def pair(prompt, chosen, rejected, **more):
    return Pair(example(prompt, chosen), example(prompt, rejected), **more)


def by_table(table):
    """A scorer that reads the reward of each answer's text; a text stands for why there is none."""

    def score(examples):
        found = [table[e.response] for e in examples]
        return [Unscored(f) if isinstance(f, str) else Reward(f) for f in found]

    return score


def constant(examples):
    return [Reward(0.0)] * len(examples)


def number(examples):
    """Scores an answer by the number it ends with."""
    return [Reward(float(e.response.split()[-1])) for e in examples]


PAIRS = [pair("a", "w 2", "x 1"), pair("a", "y 1", "z 1"), pair("b", "aa 0", "b 3")]


# ------------------------------------------------------------------------------------------ the contract


def test_members_are_the_files():
    general = {"attributes", "kwise", "outcome", "preference", "process", "rating"}
    pairs, choices = {"hhh", "judgebench", "llmbar", "ppe", "rewardbench"}, {"rewardbench2", "rm_bench", "truthfulqa"}
    named = tuple(sorted({"mistake", "prmbench", "processbench"} | pairs | choices))
    assert set(names()) == general | set(named)
    assert {find(name).ITEM for name in names()} == {Attributed, Pair, Labelled, Ranking, Stepped}
    assert tuple(name for name in names() if find(name).BY_NAME) == named
    with pytest.raises(BadInput, match="known are attributes, hhh, judgebench, kwise, llmbar, mistake"):
        find("elo")


@pytest.mark.parametrize("items", [[], [PAIRS[0], Labelled(PAIRS[0].chosen, 1.0)]])
def test_items_of_no_or_of_several_kinds_are_refused(items):
    with pytest.raises(BadInput):
        evaluate(constant, items)


def test_a_scorer_that_loses_an_answer_is_refused():
    with pytest.raises(BadInput, match="5 results for 6 answers"):
        evaluate(lambda examples: constant(examples)[1:], PAIRS)


def test_a_reward_that_is_not_finite_is_refused():
    with pytest.raises(BadInput, match="not finite"):
        evaluate(lambda examples: [Reward(float("nan")) for _ in examples], PAIRS)


def test_nothing_judged_is_an_error_and_no_number():
    with pytest.raises(BadInput, match="too long"):
        evaluate(lambda examples: [Unscored("too long")] * len(examples), PAIRS)


def test_importing_loads_neither_scikit_learn_nor_altair():
    loads = "import sys, karat.evaluation._report, karat.evaluation.outcome as _; print(sorted(sys.modules))"
    found = subprocess.run([sys.executable, "-c", loads], capture_output=True, text=True, check=True).stdout
    assert not any(f"'{name}'" in found for name in ("sklearn", "altair", "vl_convert", "torch", "jinja2", "scipy"))


# ------------------------------------------------------------------------------------------ pairs


def test_preference_golden():
    result = evaluate(number, PAIRS)
    assert result.figure("accuracy").value == pytest.approx(1 / 3)
    assert result.figure("accuracy, ties half").value == pytest.approx(0.5)
    nulls = {f.name: f.value for f in result.nulls_of("accuracy")}
    assert nulls == {"longer wins": pytest.approx(2 / 3), "random": 0.5, "shorter wins": pytest.approx(1 / 3)}
    assert result.figure(LEAD).value == pytest.approx(1 / 3 - 2 / 3)
    assert result.figure("reward, highest").value == 3 and result.figure("reward, highest").n == 6
    assert any("no n-gram null" in note for note in result.notes)
    assert [(m.better, m.worse, m.margin) for m in result.mistakes] == [("aa 0", "b 3", -3.0)]


def test_a_constant_scorer_gets_0_strict_and_half_half():
    result = evaluate(constant, PAIRS * 5)
    assert (result.figure("accuracy").value, result.figure("accuracy, ties half").value) == (0.0, 0.5)
    assert result.figure("reward and length, Pearson") is None
    assert beats_null(result) is False


def test_certainty_is_not_claimed_where_all_are_right():
    own = evaluate(number, [pair(str(i), "a 1", "b 0") for i in range(10)]).figure("accuracy")
    assert (own.value, own.high) == (1.0, 1.0) and own.low == pytest.approx(0.7225, abs=1e-4)
    assert beats_null(evaluate(number, [pair(str(i), "a 1", "b 0") for i in range(2)])) is False


def test_a_lead_over_a_constant_null_stays_where_a_lead_can_be():
    """Ten of ten right where chance has a half: at best 50 points ahead, and that is where it is."""
    right = [pair(str(i), "a 1", "b 0") for i in range(10)]
    lead = evaluate(number, right).figure(LEAD)
    assert (lead.value, lead.high) == (0.5, 0.5) and lead.low == pytest.approx(0.2225, abs=1e-4)
    assert beats_null(evaluate(number, right)) is True
    wrong = evaluate(number, [Pair(p.rejected, p.chosen) for p in right]).figure(LEAD)
    assert (wrong.value, wrong.low) == (-0.5, -0.5) and wrong.high == pytest.approx(-0.2225, abs=1e-4)


def test_a_model_that_is_its_null_leads_by_0_and_not_for_certain():
    items = [pair(str(i), "a" * (1 + i % 3), "bb") for i in range(0, 30) if i % 3 != 1]
    lead = evaluate(lambda es: [Reward(float(len(e.response))) for e in es], [*items, pair("z", "ccc", "b")]).figure(
        LEAD
    )
    assert lead.value == 0 and lead.low == -lead.high and 0.1 < lead.high < 0.2


@pytest.mark.parametrize(("right", "wrong"), [(3, 50), (50, 3), (10, 10)])
def test_auc_and_its_lead_over_chance_are_one_statement(right, wrong):
    labels = [1.0] * right + [0.0] * wrong
    items = [Labelled(example(str(i), f"x {y:.0f}"), y) for i, y in enumerate(labels)]
    items += [Labelled(example("0", "x 1"), labels[0])] * 5  # more answers to one prompt are no more trials
    items += [Labelled(example(f"w{i}", f"x {y}"), float(y), weight=0) for i in range(9) for y in (0, 1)]
    result = evaluate(number, items)
    own, lead = result.figure("AUC"), result.figure(LEAD)
    assert (own.value, own.high, lead.value, lead.high) == pytest.approx((1.0, 1.0, 0.5, 0.5))
    trials = min(right, wrong)
    assert own.low == pytest.approx(wilson_interval(trials, trials).low) and lead.low == pytest.approx(own.low - 0.5)
    assert beats_null(result) is (own.low > 0.5)


@pytest.mark.parametrize("output", ["logit", "rating"])
def test_rows_that_all_weigh_nothing_are_no_figure(output):
    labelled = [Labelled(example(str(i), f"a {i}"), float(i % 2), weight=0) for i in range(6)]
    ranked = [Ranking((example("a", "x 2"), example("a", "y 1")), (1, 2), weight=0)] * 3
    for items in (labelled, ranked, [pair(str(i), "a 1", "b 0", weight=0) for i in range(3)]):
        with pytest.raises(BadInput, match="every row to judge has the weight 0; give some a weight above 0"):
            evaluate(number, items, output=output)


def test_judged_rows_that_all_weigh_nothing_are_no_figure():
    items = [pair("a", "good", "bad", weight=0), pair("b", "lost", "bad")]
    with pytest.raises(BadInput, match="weight 0"):
        evaluate(by_table({"good": 1.0, "bad": 0.0, "lost": "too long"}), items)


def test_one_prompt_gives_no_interval_and_no_claim():
    right = [Labelled(example("same", f"a {i}"), float(i > 4)) for i in range(10)]
    unweighted = [pair("same", "a 1", "b 0"), pair("other", "a 1", "b 0", weight=0)]
    for items in ([pair("same", "a 1", "b 0")] * 10, [ranking("same", [2, 1], [1, 2])] * 10, right, unweighted):
        result = evaluate(number, items)
        assert all(f.low is None and f.high is None for f in (*result.figures, *result.nulls))
        assert beats_null(result) is None and "no claim can be made" in verdict(result)
        found = json.loads(json.dumps(summary(result), allow_nan=False))
        assert (found["accuracy_ci"], found["lead_ci"], found["beats_null"]) == (None, None, None)
        json.dumps([chart.spec for chart in charts(result)], allow_nan=False)
    assert "curve_n" in evaluate(number, right).arrays


def test_soft_labels_turn_round_and_ties_stay_out():
    items = [pair("a", "x 0", "y 1", preference=0.1), pair("b", "x 5", "y 1", preference=0.5), *PAIRS]
    result = evaluate(number, items)
    assert (result.n, result.judged, result.tied) == (5, 4, 1)
    assert result.figure("accuracy").value == pytest.approx(2 / 4)
    assert result.arrays["margin"].tolist() == [1, 1, 0, -3]


def test_all_ties_is_an_error():
    with pytest.raises(BadInput, match="tie"):
        evaluate(number, [pair("a", "x 0", "y 1", preference=0.5)])


def test_unscored_rows_are_counted_and_change_no_figure():
    table = {"good": 1.0, "bad": 0.0, "long": "over 512 tokens", "odd": "empty_answer"}
    kept = [pair("a", "good", "bad"), pair("b", "bad", "good")]
    lost = [pair("c", "long", "bad"), pair("d", "good", "long"), pair("e", "odd", "long")]
    result, without = evaluate(by_table(table), kept + lost), evaluate(by_table(table), kept)
    assert result.unscored == {"over 512 tokens": 2, "empty_answer": 1}
    assert result.n == result.judged + result.tied + sum(result.unscored.values()) == 5
    assert result.figures == without.figures and result.nulls == without.nulls


@settings(max_examples=20)
@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=1, max_size=12), st.integers(-50, 50))
def test_a_shift_of_all_rewards_changes_no_comparison(rows, shift):
    items = [pair(str(i), f"c {a}", f"r {b}") for i, (a, b) in enumerate(rows)]
    plain, shifted = evaluate(number, items), evaluate(lambda es: [Reward(r.value + shift) for r in number(es)], items)
    for name in ("accuracy", "accuracy, ties half", LEAD, "calibration error (ECE)"):
        assert plain.figure(name) == shifted.figure(name)


def test_turning_a_pair_and_its_label_changes_nothing():
    turned = [Pair(p.rejected, p.chosen, 1 - p.preference) for p in PAIRS]
    assert evaluate(number, PAIRS).figures == evaluate(number, turned).figures


def test_weights_count():
    result = evaluate(number, [pair("a", "x 1", "y 0", weight=3), pair("b", "x 0", "y 1", weight=1)])
    assert result.figure("accuracy").value == 0.75


def test_calibration_of_calibrated_rewards_is_small():
    rng = np.random.default_rng(0)
    gaps = rng.normal(scale=2, size=3000)
    right = rng.random(3000) < 1 / (1 + np.exp(-gaps))
    items = [pair(str(i), f"c {g if r else -g}", "r 0") for i, (g, r) in enumerate(zip(gaps, right, strict=True))]
    assert evaluate(number, items).figure("calibration error (ECE)").value < 0.04
    overdone = evaluate(lambda es: [Reward(4 * r.value) for r in number(es)], items)
    assert overdone.figure("calibration error (ECE)").value > 0.1


@pytest.mark.parametrize(("output", "scale"), [("rating", "in the unit of the ratings"), ("probability", "in prob")])
def test_a_margin_that_is_no_logit_is_not_calibrated(output, scale):
    result = evaluate(number, PAIRS, output=output)
    assert result.figure("calibration error (ECE)") is None and "reliability" not in result.arrays
    assert any(note.startswith("no calibration: ") and scale in note for note in result.notes)
    assert result.scale.startswith(scale) and "logits" not in html(Report("t", [result])).partition("<script>")[0]
    assert result.figure("accuracy") == evaluate(number, PAIRS).figure("accuracy")


def test_summary_is_json_with_the_best_null():
    found = json.loads(json.dumps(summary(evaluate(number, PAIRS))))
    assert found["accuracy"] == pytest.approx(1 / 3) and len(found["accuracy_ci"]) == 2
    assert (found["null_accuracy"], found["best_null"]) == (pytest.approx(2 / 3), "longer wins")
    assert found["beats_null"] is False and found["unscored"] == {}


# ------------------------------------------------------------------------------------------ n-gram


def worded(size, seed):
    """Preferred answers thank more often than others: words alone tell three in four pairs apart."""
    rng = np.random.default_rng(seed)
    words = np.array(["sum", "of", "two", "numbers", "is", "then", "carried", "over", "the", "line"])
    text = lambda last: " ".join(rng.permutation(words)) + last  # noqa: E731
    ends = [(" merci 1", " sorry 0") if rng.random() < 0.75 else (" sorry 1", " merci 0") for _ in range(size)]
    return [pair(str(i), text(good), text(bad)) for i, (good, bad) in enumerate(ends)]


def words_only(items):
    cut = lambda e: example(e.prompt[0].content, e.response[:-2])  # noqa: E731
    return [Pair(cut(p.chosen), cut(p.rejected)) for p in items]


def test_the_ngram_null_finds_words_and_learns_from_training_items_only():
    train, test = words_only(worded(600, 1)), words_only(worded(200, 2))
    plain = evaluate(constant, test, train).nulls_of("accuracy")
    assert plain[0].name == "n-gram" and 0.65 < plain[0].value < 0.85
    misled = evaluate(constant, test, [Pair(p.rejected, p.chosen) for p in train])
    assert {f.name: f.value for f in misled.nulls}["n-gram"] < 0.35


def test_a_model_that_reads_words_does_not_beat_its_null():
    train, test = words_only(worded(600, 1)), words_only(worded(200, 2))
    words = lambda es: [Reward(float("merci" in e.response)) for e in es]  # noqa: E731
    assert beats_null(evaluate(words, test, train)) is False
    assert beats_null(evaluate(number, worded(200, 2), worded(0, 1))) is True


def test_trained_answers_among_the_evaluated_are_told():
    notes = evaluate(number, PAIRS, PAIRS[:2]).notes
    assert any("2 of 3 evaluated items are in the training data" in note for note in notes)


@pytest.mark.parametrize(
    ("training", "note"),
    [
        ([], "no training data"),
        ([pair("a", "x", "y", preference=0.5)], "prefer no answer"),
        ([Labelled(example("a", "x"), 1.0)], "one class"),
    ],
)
def test_without_use_of_training_data_there_is_a_note(training, note):
    model, said = _nulls.fit_ngram(training, 0)
    assert model is None and note in said


# ------------------------------------------------------------------------------------------ outcomes


def outcomes(prompts, size, seed):
    rng = np.random.default_rng(seed)
    made = [(p, rng.normal()) for p in range(prompts) for _ in range(size)]
    return [
        Labelled(example(f"p{p}", f"answer {v:.4f}", final_answer="42" if v > 0 else f"{v:.0f}"), float(v > 0))
        for p, v in made
    ]


def test_outcome_golden():
    items = [
        Labelled(example(str(i), f"a {v}"), y) for i, (v, y) in enumerate([(2, 1), (-1, 1), (1, 0), (-3, 0), (0, 0)])
    ]
    result = evaluate(number, items)
    assert result.figure("AUC").value == pytest.approx(4 / 6)
    assert result.figure("accuracy").value == pytest.approx(2 / 5)
    assert {f.name: f.value for f in result.nulls_of("accuracy")}["majority class"] == pytest.approx(3 / 5)
    sigmoid = 1 / (1 + np.exp(-np.array([2, -1, 1, -3, 0.0])))
    assert result.figure("Brier score").value == pytest.approx(np.mean((sigmoid - [1, 1, 0, 0, 0]) ** 2))
    assert result.headline == "AUC" and result.figure("best-of-1") is None


def test_one_class_has_no_auc():
    result = evaluate(number, [Labelled(example(str(i), f"a {i}"), 1.0) for i in range(4)])
    assert result.figure("AUC") is None and result.headline == "accuracy"
    assert result.nulls_of("accuracy")[0].name == "majority class" and beats_null(result) is False


def test_probabilities_are_not_logits():
    items = [Labelled(example(str(i), f"a {v}"), y) for i, (v, y) in enumerate([(0.9, 1), (0.2, 0)])]
    assert evaluate(number, items).figure("accuracy").value == 0.5
    result = evaluate(number, items, output="probability")
    assert result.figure("accuracy").value == 1.0 and result.figure("accuracy").note.startswith("at a probability")
    assert result.figure("Brier score").value == pytest.approx((0.1**2 + 0.2**2) / 2)
    with pytest.raises(BadInput, match="output='logit'"):
        evaluate(number, [Labelled(example("a", "x 3"), 1.0)], output="probability")


def test_ratings_are_refused_with_their_place():
    with pytest.raises(BadInput, match=r"d\.jsonl:3: label is 4"):
        evaluate(number, [Labelled(example("a", "x 1"), 4.0, origin="d.jsonl:3")])


def test_best_of_n_of_a_perfect_scorer_is_the_ceiling():
    result = evaluate(number, outcomes(12, 4, 0), outcomes(8, 4, 1))
    assert result.figure("best-of-4").value == result.figure("pass@4").value
    assert result.arrays["curve_n"].tolist() == [1, 2, 3, 4]
    start = [result.arrays[f"curve_{name}"][0, 0] for name in ("reward", "random", "majority vote", "oracle")]
    assert start == pytest.approx([start[0]] * 4)
    assert {f.name for f in result.nulls_of("best-of-4")} == {"random", "majority vote", "longer wins", "shorter wins"}


def test_best_of_n_leaves_out_prompts_that_are_not_whole():
    items = outcomes(6, 4, 0)
    broken = items[5].example.response
    score = lambda es: [Unscored("lost") if e.response == broken else number([e])[0] for e in es]  # noqa: E731
    result = evaluate(score, items)
    assert result.figure("best-of-4").n == 5 and any("1 of 6 prompts" in note for note in result.notes)
    assert evaluate(number, items[:-1]).figure("best-of-4") is None


def test_the_final_answer_can_be_read_by_a_function():
    items = [Labelled(example(i.example.prompt[0].content, i.example.response), i.label) for i in outcomes(5, 4, 0)]
    assert "curve_majority vote" not in evaluate(number, items).arrays
    read = evaluate(number, items, answer_of=lambda e: e.response)
    assert "curve_majority vote" in read.arrays


# ------------------------------------------------------------------------------------------ rankings


def ranking(prompt, rewards, ranks):
    return Ranking(tuple(example(prompt, f"{'x' * i} {r}") for i, r in enumerate(rewards)), tuple(ranks))


def test_kwise_golden():
    result = evaluate(number, [ranking("a", [3, 2, 1], [1, 2, 3]), ranking("b", [1, 5, 5], [1, 1, 2])])
    assert result.figure("pair accuracy").value == pytest.approx(3 / 5)
    assert result.figure("pair accuracy, ties half").value == pytest.approx(3.5 / 5)
    assert result.figure("top-1 accuracy").value == pytest.approx((1 + 0.5) / 2)
    assert result.figure("Kendall tau").value == pytest.approx((1 - 0.5) / 2)
    assert {f.name: f.value for f in result.nulls_of("top-1 accuracy")}["random"] == pytest.approx((1 / 3 + 2 / 3) / 2)


def test_kwise_of_a_constant_scorer():
    result = evaluate(constant, [ranking(str(i), [3, 2, 1], [1, 2, 3]) for i in range(6)])
    found = [result.figure(n).value for n in ("pair accuracy", "pair accuracy, ties half", "Kendall tau")]
    assert found == [0.0, 0.5, 0.0] and result.figure("top-1 accuracy").value == pytest.approx(1 / 3)


def test_a_ranking_without_an_order_is_tied():
    result = evaluate(number, [ranking("a", [1, 2], [1, 1]), ranking("b", [2, 1], [1, 2])])
    assert (result.judged, result.tied) == (1, 1)
    assert "1 of 2 rankings give all their answers one rank, which leaves nothing to judge" in result.notes
    with pytest.raises(BadInput, match="every ranking to judge is one tie"):
        evaluate(number, [ranking("a", [1, 2], [1, 1])])
