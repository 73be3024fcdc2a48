"""The built-in data, checked by an evaluator of its own that reads the texts."""

import json
import re
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression

from karat import arithmetic
from karat.types import BadInput

STEP = re.compile(r"(\d+) ([-+*]) (\d+) = (\d+) [a-z]+")
SIGN = {"buys": "+", "finds": "+", "sells": "-", "loses": "-"}


def evaluate(left, sign, right):
    return {"+": left + right, "-": left - right, "*": left * right}[sign]


def read_question(text):
    """The first number and the moves, read from the question alone."""
    moves = [(SIGN[verb], int(by)) for verb, by in re.findall(r"(buys|finds|sells|loses) (\d+)", text)]
    if found := re.search(r"(\d+) red and (\d+) blue", text):
        return int(found[1]), [("+", int(found[2])), *moves]
    if found := re.search(r"(\d+) boxes of (\d+)", text):
        return int(found[1]), [("*", int(found[2])), *moves]
    return int(re.search(r"has (\d+)", text)[1]), moves


def read_steps(steps):
    """(left, sign, right, result) of each step."""
    found = [STEP.search(step) for step in steps]
    return [(int(f[1]), f[2], int(f[3]), int(f[4])) for f in found]


def judge(question, steps):
    """Math-Shepherd's hard labels, by following question and steps side by side."""
    total, moves = read_question(question)
    labels, sound = [], True
    for (left, sign, right, result), move in zip(read_steps(steps), moves, strict=True):
        sound = sound and left == total and (sign, right) == move and result == evaluate(left, sign, right)
        labels.append(sound)
        total = result
    return tuple(labels)


def solve(question):
    total, moves = read_question(question)
    for sign, by in moves:
        total = evaluate(total, sign, by)
    return total


@pytest.fixture(scope="module", params=["train", "test"])
def drawn(request):
    return arithmetic.pool(150, 6, seed=5, split=request.param)


@pytest.fixture(scope="module")
def contrasts():
    return {split: arithmetic.pair_rows(n, 11, split) for split, n in (("train", 1200), ("test", 800))}


def test_problems_are_right(drawn):
    for problem, _ in drawn:
        assert 2 <= len(problem.steps) <= 5
        assert problem.answer == solve(problem.question) == read_steps(problem.steps)[-1][3]
        assert all(judge(problem.question, problem.steps))


def test_labels_agree_with_an_independent_reading(drawn):
    for problem, found in drawn:
        for c in found:
            labels = judge(problem.question, c.steps)
            assert c.labels == labels
            assert c.first_error == (-1 if all(labels) else labels.index(False))
            assert c.answer == read_steps(c.steps)[-1][3] == int(c.response.splitlines()[-1].split(": ")[1])


def test_wrong_is_wrong_and_right_is_right(drawn):
    for problem, found in drawn:
        for c in found:
            assert c.right == (c.answer == solve(problem.question)) == (c.first_error == -1) == (not c.slip)


def test_one_slip_only(drawn):
    for problem, found in drawn:
        truth = read_question(problem.question)[1]
        for c in found:
            lines = read_steps(c.steps)
            changed = [i for i, line in enumerate(lines) if (line[1], line[2]) != truth[i]]
            off = [i for i, (left, sign, right, result) in enumerate(lines) if evaluate(left, sign, right) != result]
            assert changed + off == ([c.first_error] if c.slip else [])


def test_every_slip_occurs():
    count = Counter(c.slip for _, found in arithmetic.pool(100, 16, 0) for c in found)
    assert set(count) == {"", *arithmetic.SLIPS}
    assert min(count.values()) > 15


def test_attributes(drawn):
    for _, found in drawn:
        for c in found:
            assert tuple(c.attributes) == arithmetic.ATTRIBUTES
            assert all(isinstance(v, float) and 0 <= v <= 1 for v in c.attributes.values())
            assert c.attributes["correctness"] == sum(c.labels) / len(c.labels)
            assert c.attributes["format"] == sum(s.startswith("Step") for s in c.steps) / len(c.steps)


def test_style_and_length_do_not_depend_on_correctness():
    found = [c for _, cs in arithmetic.pool(400, 8, 3, "train") for c in cs]
    right = np.array([c.right for c in found])
    for values in (
        [c.attributes["brevity"] for c in found],
        [c.attributes["format"] for c in found],
        [len(c.response) for c in found],
        [len(c.steps) for c in found],
    ):
        assert abs(np.corrcoef(values, right)[0, 1]) < 0.06  # 3200 candidates: three standard errors


def test_splits_share_neither_phrasing_nor_held_out_operands():
    train, test = arithmetic.problems(400, 1, "train"), arithmetic.problems(400, 1, "test")
    assert not {p.phrasing for p in train} & {p.phrasing for p in test}
    assert not {frame(p.question) for p in train} & {frame(p.question) for p in test}
    seen = {
        (left, right)
        for p in train
        for steps in (p.steps, *(c.steps for c in arithmetic.policy(p, 6)))
        for left, _, right, _ in read_steps(steps)
    }
    kept = {read_steps(p.steps)[0][::2][:2] for p in test}
    assert kept
    assert not seen & kept


def frame(question):
    """The wording without names, numbers and events."""
    text = re.sub(r"(, )?(buys|finds|sells|loses) \d+", "", question)
    text = re.sub(r"\b(Tom|Ann|Sam|Mia|Leo|Eva|Max|Zoe)\b", "N", text)
    return re.sub(r"\d+ (boxes of|red and) \d+( blue)?|\d+", "#", text)


def test_same_seed_same_data_in_another_process():
    code = (
        "import json; from karat import arithmetic as a;"
        "print(json.dumps([a.candidate_rows(4, 4, 7), a.rows(a.pool(3, 5, 7)), a.pair_rows(4, 7, 'test')]))"
    )
    environment = {"PYTHONHASHSEED": "12345", "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    here = [
        arithmetic.candidate_rows(4, 4, 7),
        arithmetic.rows(arithmetic.pool(3, 5, 7)),
        arithmetic.pair_rows(4, 7, "test"),
    ]
    assert json.loads(done.stdout) == json.loads(json.dumps(here))


def test_seeds_differ_and_more_rows_keep_the_first():
    assert arithmetic.pair_rows(20, 0) != arithmetic.pair_rows(20, 1)
    assert arithmetic.pair_rows(5, 0) == arithmetic.pair_rows(20, 0)[:5]
    problem = arithmetic.problems(1)[0]
    assert {arithmetic.candidates(problem, 1, seed)[0].right for seed in range(20)} == {True, False}
    assert all(len({c.right for c in arithmetic.candidates(problem, 2, seed)}) == 2 for seed in range(20))


def test_right_and_wrong_solutions_use_the_same_operations():
    rows = arithmetic.pair_rows(2000, 4)
    for sign in "+-*":
        lead = np.array([r["chosen"].count(sign) - r["rejected"].count(sign) for r in rows])
        assert abs(lead.mean()) < 4 * lead.std() / len(lead) ** 0.5


def test_items():
    pairs = arithmetic.pairs(20, 2, "test")
    assert all(p.chosen.prompt == p.rejected.prompt for p in pairs)
    assert [p.chosen.response for p in pairs] == [r["chosen"] for r in arithmetic.pair_rows(20, 2, "test")]
    labels = Counter(x.label for x in arithmetic.labelled(400, 2))
    assert set(labels) == {0.0, 1.0}
    assert 160 < labels[1.0] < 240
    for ranking in arithmetic.rankings(20, 4, 2):
        assert len(ranking.candidates) == 4
        assert min(ranking.ranks) == 1
        assert max(ranking.ranks) > 1


def test_policy_makes_majorities_that_are_wrong():
    drawn = arithmetic.pool(200, 16, 1)
    share = np.mean([c.right for _, found in drawn for c in found])
    majority = np.mean([Counter(c.answer for c in f).most_common(1)[0][0] == p.answer for p, f in drawn])
    assert 0.4 < share < 0.6
    assert 0.5 < majority < 0.9


def test_bad_input_is_refused():
    with pytest.raises(BadInput, match="split"):
        arithmetic.problems(1, split="dev")
    with pytest.raises(BadInput, match="n is -1"):
        arithmetic.pairs(-1)


def test_a_length_ruler_does_not_tell(contrasts):
    longer = [len(r["chosen"]) - len(r["rejected"]) for r in contrasts["test"]]
    assert 0.45 < np.mean([0.5 + 0.5 * np.sign(d) for d in longer]) < 0.55


@pytest.mark.parametrize(
    "ngrams",
    [
        {"analyzer": "char", "ngram_range": (1, 5)},
        {"analyzer": "word", "ngram_range": (1, 3), "token_pattern": r"\d+|\w+|[^\w\s]"},
    ],
)
def test_ngrams_do_not_tell(contrasts, ngrams):
    vectorizer = CountVectorizer(min_df=3, dtype=np.float64, **ngrams)
    vectorizer.fit([r[side] for r in contrasts["train"] for side in ("chosen", "rejected")])

    def lead(rows):
        chosen, rejected = (vectorizer.transform([r[side] for r in rows]) for side in ("chosen", "rejected"))
        return chosen - rejected

    sign = np.where(np.arange(len(contrasts["train"])) % 2, 1.0, -1.0)
    features = lead(contrasts["train"]).multiply(sign[:, None]).tocsr()
    model = LogisticRegression(C=0.1, fit_intercept=False, solver="liblinear").fit(features, sign)
    scores = model.decision_function(lead(contrasts["test"]))
    assert np.mean(0.5 + 0.5 * np.sign(scores)) <= 0.58
