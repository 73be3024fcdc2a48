"""Answers in steps: worked examples, what cheap tricks get on real data, and what is left out, and said to be."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from karat import metrics
from karat.evaluation._report import Report, html, verdict
from karat.evaluation.base import LEAD, beats_null, evaluate, summary
from karat.types import BadInput, Example, Reward, Stepped, Unscored


def answer(prompt, labels, rewards, **context):
    """An answer of one branch; each step's text ends with the reward it is to get."""
    size = context.pop("size", 1)
    texts = [f"{'word ' * (1 + (size * i) % 3)}{reward}" for i, reward in enumerate(rewards)]
    return Stepped((Example.of_steps(prompt, texts, context),), (tuple(labels),))


def reader(examples):
    """Scores a step by the number it ends with; an answer by its lowest step."""
    read = [tuple(float(step.split()[-1]) for step in e.steps) for e in examples]
    return [Reward(min(steps), steps) for steps in read]


def constant(examples, value=0.7):
    return [Reward(value, (value,) * len(e.steps)) for e in examples]


def losing(prompts):
    """A scorer that gives no reward for these prompts."""
    return lambda es: [
        Unscored("too long") if e.prompt[0].content in prompts else r for e, r in zip(es, reader(es), strict=True)
    ]


def process(scorer, items, *training, output="probability", **more):
    return evaluate(scorer, items, *training, output=output, **more)


def labelled(first, size):
    """Labels of ProcessBench's form: nothing is said of the steps behind the first error."""
    right = size if first < 0 else first
    return ([1.0] * right + [0.0] + [None] * size)[:size]


def perfect(size=40, **context):
    """Answers whose rewards are right, errors in every other one, at places 0 to 2."""
    firsts = [-1 if i % 2 else (i // 2) % 3 for i in range(size)]
    rewards = [[0.1 if k == first else 0.9 for k in range(4)] for first in firsts]
    rows = zip(firsts, rewards, strict=True)
    return [answer(f"p{i}", labelled(k, 4), r, size=i // 6, **context) for i, (k, r) in enumerate(rows)]


# ------------------------------------------------------------------------------------------ figures


def test_golden():
    """The worked example as rewards: first errors 1, -1, 2, -1, of which 1, -1, 1, 0 are found."""
    items = [
        answer("a", labelled(1, 3), [0.9, 0.2, 0.9]),
        answer("b", labelled(-1, 2), [0.9, 0.6]),
        answer("c", labelled(2, 3), [0.9, 0.5, 0.1]),
        answer("d", labelled(-1, 2), [0.4, 0.9]),
    ]
    result = process(reader, items)
    value = {f.name: f.value for f in result.figures}
    assert result.headline == "F1" and (result.n, result.judged, result.tied) == (4, 4, 0)
    assert value["F1"] == value["error accuracy"] == value["correct accuracy"] == value["location accuracy"] == 0.5
    assert value["step accuracy"] == pytest.approx(7 / 9)  # the step at exactly 0.5 is on neither side
    right, wrong = [0.9, 0.9, 0.6, 0.9, 0.5, 0.4, 0.9], [0.2, 0.1]
    assert value["step AUC"] == metrics.auc(right + wrong, [1] * 7 + [0] * 2) == 1.0
    assert value["Brier score"] == pytest.approx(np.mean([(1 - p) ** 2 for p in right] + [p**2 for p in wrong]))
    assert value["F1, best threshold (upper bound)"] == 1.0
    assert value["solution AUC"] == metrics.auc([0.2, 0.6, 0.1, 0.4], [0, 1, 0, 1]) == 1.0
    assert result.figure("F1").low is not None and result.figure(LEAD).note.startswith("over perfect ORM")
    worst = result.mistakes[0]
    assert worst.better.startswith("step 0 (from 0) is right, but its reward is 0.4:\nword 0.4\n\nall steps:\n[0] word")
    assert worst.margin == pytest.approx(-0.1) and len(result.mistakes) == 1


def test_logits_are_cut_at_0():
    logit = lambda es: [Reward(0.0, tuple(math.log(s / (1 - s)) for s in r.steps)) for r in reader(es)]  # noqa: E731
    items = perfect()
    as_logit, as_prob = process(logit, items, output="logit"), process(reader, items)
    for name in ("F1", "step accuracy", "step AUC", "Brier score", "calibration error (ECE)"):
        assert as_logit.figure(name).value == pytest.approx(as_prob.figure(name).value)
    with pytest.raises(BadInput, match="output='logit'"):
        process(logit, items)


def test_a_perfect_scorer_gets_1_without_certainty():
    result = process(reader, perfect())
    for name in ("F1", "step accuracy", "step AUC", "solution AUC", "error accuracy", "correct accuracy"):
        figure = result.figure(name)
        assert figure.value == figure.high == 1.0 and figure.low < 1.0, name
    assert beats_null(result) is True and result.mistakes == ()
    assert "it beats its null" in verdict(result) and "judges no step" in verdict(result)


@pytest.mark.parametrize("value", [0.7, 0.2, 0.5])
def test_a_constant_scorer_gets_its_chance(value):
    result = process(lambda es: constant(es, value), perfect(36))
    assert result.figure("F1").value == 0.0 and result.figure("F1, best threshold (upper bound)").value == 0.0
    assert result.figure("step AUC").value == result.figure("solution AUC").value == 0.5
    right = sum(x == 1 for item in perfect(36) for x in item.labels[0])
    wrong = sum(x == 0 for item in perfect(36) for x in item.labels[0])
    shares = {0.7: right, 0.2: wrong, 0.5: 0}
    assert result.figure("step accuracy").value == pytest.approx(shares[value] / (right + wrong))
    assert beats_null(result) is False


@pytest.mark.full
def test_a_random_scorer_gets_what_its_null_is_expected_to():
    rng = np.random.default_rng(0)
    items = perfect(1000)
    wrong = np.mean([x == 0 for item in items for x in item.labels[0] if x is not None])
    flags = lambda es: [Reward(0, tuple((rng.random(len(e.steps)) > wrong).astype(float))) for e in es]  # noqa: E731
    result = process(flags, items)
    random = next(f for f in result.nulls_of("F1") if f.name == "random")
    assert result.figure("F1").value == pytest.approx(random.value, abs=0.04)


def test_the_order_of_items_changes_no_value():
    rng = np.random.default_rng(1)
    items = [
        answer(f"p{i}", labelled(int(rng.integers(-1, 3)), 3), rng.random(3).round(3).tolist(), size=i)
        for i in range(60)
    ]
    plain, turned = process(reader, items), process(reader, items[::-1])
    for a, b in ((plain.figures, turned.figures), (plain.nulls, turned.nulls)):
        assert {(f.name, f.against): f.value for f in a} == pytest.approx({(f.name, f.against): f.value for f in b})


def test_weights_count_as_items_given_twice():
    items = [answer(f"p{i}", labelled(i % 3 - 1, 3), [0.9, 0.3 if i % 2 else 0.8, 0.7]) for i in range(12)]
    heavy = [Stepped(x.branches, x.labels, weight=1.0 + i % 2) for i, x in enumerate(items)]
    twice = [x for i, x in enumerate(items) for _ in range(1 + i % 2)]
    found, expected = process(reader, heavy), process(reader, twice)
    for name in ("F1", "step accuracy", "step AUC", "Brier score", "solution AUC"):
        assert found.figure(name).value == pytest.approx(expected.figure(name).value)


# ------------------------------------------------------------------------------------------ what labels say


def test_soft_labels_and_silence():
    items = [
        answer("a", [0.8, 0.5, None, 0.2], [0.9, 0.1, 0.1, 0.1]),
        answer("b", [0.9, 0.7, 0.2], [0.9, 0.9, 0.1]),
        answer("c", [None, 0.5], [0.1, 0.1]),
        answer("d", [0.9, 0.9], [0.9, 0.9]),
    ]
    result = process(reader, items)
    assert result.figure("step accuracy").n == 7 and result.figure("step accuracy").value == 1.0
    assert result.figure("F1").n == 2 and result.figure("F1").value == 1.0  # of a and c nobody knows the first error
    assert (result.n, result.judged, result.tied) == (4, 3, 1)
    assert "4 of 11 steps have no label, or 0.5, and are in no figure of single steps" in result.notes
    assert "of 2 of 4 answers the labels do not tell the first error" in result.notes


def test_neutral_steps_count_as_right():
    items = [answer("a", [1, 0, -1], [0.9, 0.9, 0.1]), answer("b", [1, 0, 0], [0.9, 0.9, 0.9])]
    result = process(reader, items)
    assert result.figure("step accuracy").value == result.figure("F1").value == 1.0
    assert any("0 (neutral) count as right" in note for note in result.notes)
    binary = process(reader, [items[1], answer("c", [1, 1], [0.9, 0.9])])
    assert binary.figure("step accuracy").value == pytest.approx(3 / 5)
    with pytest.raises(BadInput, match=r"label is 0\.3, but others are below 0"):
        process(reader, [*items, answer("d", [0.3], [0.9])])


def test_the_context_tells_a_first_error_that_labels_do_not():
    items = [
        answer("a", [None] * 3, [0.9, 0.1, 0.9], first_error=1),
        answer("b", [None] * 2, [0.9, 0.9], first_error=-1),
    ]
    result = process(reader, items)
    assert (result.headline, result.figure("F1").value) == ("F1", 1.0)
    assert result.figure("step accuracy") is None and summary(result)["accuracy"] is None
    assert "F1" in html(Report("t", [result]))
    with pytest.raises(BadInput, match="first_error is 3, but there are 3 steps"):
        process(reader, [answer("a", [1, 1, 1], [0.9] * 3, first_error=3)])


def test_a_tree_has_steps_and_no_first_error():
    """Two branches share their first step, which is labelled once."""
    tree = lambda i: Stepped(  # noqa: E731
        (Example.of_steps(f"p{i}", ["x 0.9", "y 0.8"]), Example.of_steps(f"p{i}", ["x 0.9", "z 0.2"])),
        ((1.0, 1.0), (None, 0.0)),
    )
    result = process(reader, [tree(i) for i in range(4)])
    assert result.headline == "step AUC" and result.figure("F1") is None
    assert result.figure("step accuracy").n == 12 and result.figure("step accuracy").value == 1.0
    with pytest.raises(BadInput, match="needs one answer with its first_error"):
        process(reader, [tree(0)], name="processbench")


# ------------------------------------------------------------------------------------------ what is left out


def test_unscored_answers_are_counted_and_wrong_in_f1_alone():
    items = perfect()
    result, whole = process(losing({"p0", "p1"}), items), process(reader, items)
    assert result.unscored == {"too long": 2} and (result.n, result.judged) == (40, 38)
    assert any(note.startswith("2 solutions without a reward count as wrong") for note in result.notes)
    assert result.figure("error accuracy").value == result.figure("correct accuracy").value == 19 / 20
    assert result.figure("F1").value == pytest.approx(19 / 20)
    assert result.figure("step accuracy").value == 1.0
    assert result.figure("step accuracy").n == whole.figure("step accuracy").n - 5
    assert result.nulls_of("F1")[0].value == pytest.approx(whole.nulls_of("F1")[0].value, abs=0.02)


def test_nothing_to_judge_is_an_error_and_no_number():
    with pytest.raises(BadInput, match="no step has a label that says right or wrong"):
        process(reader, [answer("a", [None, 0.5], [0.9, 0.9])])
    with pytest.raises(BadInput, match="at least one"):
        process(reader, [])
    with pytest.raises(BadInput, match="too long"):
        process(losing({f"p{i}" for i in range(40)}), perfect())
    with pytest.raises(BadInput, match="no step has a label"):
        process(losing({"a"}), [answer("a", [1.0], [0.9]), answer("b", [None], [0.9])])
    with pytest.raises(BadInput, match="weight 0"):
        process(reader, [Stepped(x.branches, x.labels, weight=0) for x in perfect()])


@pytest.mark.parametrize(
    ("reward", "words"),
    [
        (Reward(1.0), "0 step rewards for 4 steps: evaluate a process reward model"),
        (Reward(1.0, (0.5,) * 3), "3 step rewards for 4 steps"),
        (Reward(1.0, (0.5, 0.5, math.nan, 0.5)), "not finite"),
        (Reward(math.inf, (0.5,) * 4), "not finite"),
    ],
)
def test_a_scorer_that_is_no_process_reward_model_is_refused(reward, words):
    with pytest.raises(BadInput, match=words):
        process(lambda es: [reward] * len(es), perfect())


@pytest.mark.parametrize(("labels", "headline"), [([1.0, 1.0], "step accuracy"), ([1.0, 0.0], "step AUC")])
def test_one_class_has_no_f1(labels, headline):
    result = process(reader, [answer(f"p{i}", labels, [0.9, 0.2]) for i in range(6)])
    assert result.figure("F1") is None and result.headline == headline
    assert result.figure("F1, best threshold (upper bound)") is None
    json.dumps(summary(result), allow_nan=False)


row = st.tuples(
    st.sampled_from("abc"),
    st.lists(
        st.tuples(st.sampled_from([None, 0.0, 0.5, 1.0]), st.sampled_from([0.0, 0.3, 0.5, 1.0])), min_size=0, max_size=3
    ),
    st.sampled_from([None, "gsm8k", "math"]),
    st.sampled_from([None, True, False]),
    st.sampled_from([0.0, 1.0, 2.0]),
)


@settings(max_examples=25)
@given(st.lists(row, min_size=1, max_size=8), st.sets(st.sampled_from("abc"), max_size=2))
def test_no_figure_is_ever_nan(rows, lost):
    items = [
        Stepped(
            (Example.of_steps(p, [f"x {r}" for _, r in steps], {"subset": subset, "final_answer_correct": final}),),
            (tuple(label for label, _ in steps),),
            weight,
        )
        for p, steps, subset, final, weight in rows
    ]
    scorer = lambda es: [  # noqa: E731
        Unscored("lost") if e.prompt[0].content in lost else Reward(0.5, tuple(float(s.split()[-1]) for s in e.steps))
        for e in es
    ]
    try:
        result = process(scorer, items)
    except BadInput:
        return
    numbers = [x for f in (*result.figures, *result.nulls) for x in (f.value, f.low, f.high) if x is not None]
    assert all(math.isfinite(x) for x in numbers)
    assert all(f.low is None or (f.low <= f.value + 1e-9 and f.value <= f.high + 1e-9) for f in result.nulls)
    assert result.n == result.judged + result.tied + sum(result.unscored.values())
    json.dumps(summary(result), allow_nan=False)


# ------------------------------------------------------------------------------------------ nulls


def test_the_ngram_null_reads_steps():
    """A word tells wrong steps from right ones; the null learns it from the training items alone."""
    rng = np.random.default_rng(0)

    def made(size, start):
        firsts = rng.integers(-1, 3, size).tolist()
        word = [[" wrongly" if k == first else " rightly" for k in range(3)] for first in firsts]
        texts = [[f"so we sum the parts{end}" for end in row] for row in word]
        rows = zip(texts, firsts, strict=True)
        return [
            Stepped((Example.of_steps(f"p{start + i}", t),), (tuple(labelled(k, 3)),)) for i, (t, k) in enumerate(rows)
        ]

    items, training = made(60, 0), made(100, 1000)
    result = process(constant, items, training)
    for name in ("F1", "step accuracy", "step AUC", "solution AUC", "F1, best threshold (upper bound)"):
        assert result.nulls_of(name)[0].name in ("n-gram", "perfect ORM + n-gram"), name
        assert {f.name: f.value for f in result.nulls_of(name)}["n-gram"] > 0.9
    assert "n-gram" not in {f.name for f in process(constant, items).nulls}
    assert any("steps of training answers" in note for note in result.notes)
    assert any("60 of 60 evaluated items are in the training data" in n for n in process(constant, items, items).notes)


def test_length_and_position_are_seen():
    size = [3, 9, 5, 30]
    texts = [[f"{'x' * n} 0.5" for n in size[: 2 + i % 3]] for i in range(30)]
    items = [
        Stepped((Example.of_steps(f"p{i}", t),), (tuple(labelled(3 if len(t) == 4 else -1, len(t))),))
        for i, t in enumerate(texts)
    ]
    nulls = {f.name: f.value for f in process(constant, items).nulls_of("F1")}
    assert nulls["perfect ORM + longest step"] == nulls["perfect ORM + last step"] == 1.0
    best = {f.name: f.value for f in process(constant, items).nulls_of("F1, best threshold (upper bound)")}
    assert best["shorter wins"] == best["earlier wins"] == 1.0 and best["longer wins"] < 0.5
    assert {f.name: f.value for f in process(constant, items).nulls_of("solution AUC")}["fewer steps win"] == 1.0
