"""Plans: the sign test against enumeration, the paired formula against simulation, and pools that are not whole."""

import json
import math

import numpy as np
import pytest
from scipy.stats import binomtest

from karat.search import _plan
from karat.search._plan import Wanted
from karat.search._scored import read_scored
from karat.types import BadInput


def slow_power(problems, disagree, difference, level):
    """Over every number of problems won, lost and neither, with scipy's own test."""
    win, lose = (disagree + difference) / 2, (disagree - difference) / 2
    found = 0.0
    for w in range(problems + 1):
        for b in range(problems - w + 1):
            ways = math.comb(problems, w) * math.comb(problems - w, b)
            chance = ways * win**w * lose**b * (1 - disagree) ** (problems - w - b)
            if w + b and binomtest(w, w + b).pvalue <= 1 - level:
                found += chance
    return found


@pytest.mark.parametrize(("problems", "disagree", "difference"), [(12, 0.8, 0.6), (20, 0.5, 0.3), (9, 1.0, 1.0)])
def test_the_power_of_the_sign_test_is_exact(problems, disagree, difference):
    wanted = Wanted(difference)
    found = _plan.sign_power(problems, disagree, wanted)
    assert found == pytest.approx(slow_power(problems, disagree, difference, 0.95), abs=1e-9)


def test_the_fewest_problems():
    """Near the normal approximation, and one fewer is too few."""
    for disagree, difference in ((0.2, 0.05), (0.1, 0.1)):
        wanted = Wanted(difference)
        found = _plan.problems_by_sign(disagree, wanted)
        assert _plan.sign_power(found, disagree, wanted) >= 0.8 > _plan.sign_power(found - 1, disagree, wanted)
        rough = (1.96 + 0.8416) ** 2 * (disagree - difference**2) / difference**2
        assert rough < found < 1.15 * rough + 15


def made(rng, problems, samples, lead):
    """A pool whose rewards lead by so much where an answer is right."""
    chance = rng.beta(2, 2, (problems, 1))
    correct = (rng.random((problems, samples)) < chance).astype(float)
    answers = np.where(correct > 0, 0, rng.integers(1, 4, correct.shape)).tolist()
    return _plan.Pool(lead * correct + rng.standard_normal(correct.shape), correct, answers, {})


def test_what_a_plan_promises_is_kept():
    """On fresh pools of the size that it asks for, the paired test sees the difference about as often as wanted."""
    rng = np.random.default_rng(0)
    pilot = made(rng, 800, 8, 1.0)
    true = np.mean([difference(made(rng, 800, 8, 1.0), 4).mean() for _ in range(8)])
    found = _plan.needed(pilot, 4, _plan.RANDOM, Wanted(float(true)))
    assert [one.samples for one in found] == [4, 8] and found[0].problems > found[1].problems
    for one in found:
        seen = 0
        for _ in range(60):
            own = difference(made(rng, one.problems, one.samples, 1.0), 4)
            seen += abs(own.mean()) > 1.96 * own.std(ddof=1) / math.sqrt(own.size)
        assert 0.6 < seen / 60 < 0.95


def difference(pool, n):
    return (_plan.curve(pool, _plan.BEST, [n]) - _plan.curve(pool, _plan.RANDOM, [n]))[:, 0]


def rows(problems, samples, **changes):
    rng = np.random.default_rng(1)
    found = []
    for p in range(problems):
        for k in range(samples):
            right = k == 0 or bool(rng.integers(2))
            text = f"Answer: {p if right else p + 1 + k % 2}"
            found.append({"prompt": f"{p}?", "response": text, "reward": float(rng.normal() + right), "label": right})
    return [{**row, **changes} for row in found]


def written(tmp_path, found):
    path = tmp_path / "scored.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in found))
    return path


def test_a_plan_of_a_file(tmp_path):
    found = rows(20, 4)
    for row in found[:4]:  # no right answer anywhere
        row["label"] = False
    found[5]["reward"], found[8]["label"] = None, None
    found += [{"prompt": "odd?", "response": "1", "reward": 1.0, "label": 1}]
    told = _plan.plan(str(written(tmp_path, found)), Wanted(0.05))
    assert told["problems"] == 18 and told["samples"] == 4 and told["without_a_right_answer"] == 1
    assert sorted(told["left"].values()) == [1, 1, 1] and told["n"] == 2
    first, *_, last = told["curve"]
    shares = [first[name] for name in ("best-of-n", "weighted vote", "majority vote", "random", "pass@n")]
    assert shares == pytest.approx([shares[0]] * 5) and first["lead"] == 0 and last["pass@n"] == pytest.approx(17 / 18)
    assert last["ci"]["lead"][0] <= last["lead"] <= last["ci"]["lead"][1]
    assert [one["samples"] for one in told["needed"]] == [2, 4]


@pytest.mark.parametrize(
    ("found", "options", "said"),
    [
        (rows(3, 2, reward=None), {}, "a sample has no reward"),
        (rows(3, 2, label=None), {}, "a sample has no label"),
        (rows(3, 1), {}, "one sample each"),
        (rows(3, 4), {"n": 5}, "from 2 to 4"),
        (rows(3, 4), {"against": "majority"}, "did you mean 'majority vote'"),
    ],
)
def test_pools_that_say_nothing(tmp_path, found, options, said):
    with pytest.raises(BadInput, match=said):
        _plan.plan(str(written(tmp_path, found)), Wanted(0.1), **options)


def test_wishes_that_are_none():
    for wanted in (Wanted(0), Wanted(0.1, power=1), Wanted(0.1, level=95)):
        with pytest.raises(BadInput, match="lies between 0 and 1"):
            wanted.check()
    with pytest.raises(BadInput, match="disagree on at least that share"):
        _plan.sign_power(10, 0.1, Wanted(0.2))
    with pytest.raises(BadInput, match="more than 10000000"):
        _plan.problems_by_sign(1.0, Wanted(1e-5))


def test_a_pilot_without_variation_says_so(tmp_path):
    with pytest.raises(BadInput, match="at least two"):
        _plan.plan(str(written(tmp_path, rows(1, 4))), Wanted(0.1))
    told = _plan.plan(str(written(tmp_path, rows(6, 4, label=True))), Wanted(0.1))
    assert {one["problems"] for one in told["needed"]} == {None}


def test_problems_without_candidates_are_counted(tmp_path):
    candidates = [{"response": f"Answer: {i}", "reward": i, "correct": bool(i)} for i in range(2)]
    found = [{"prompt": f"{p}?", "candidates": candidates} for p in range(2)]
    found += [{"prompt": f"n{p}?", "candidates": [], "unsolved": "no candidate could be had"} for p in range(2)]
    found += [{"prompt": "m?", "candidates": []}]
    told = _plan.plan(str(written(tmp_path, found)), Wanted(0.1))
    assert told["problems"] == 2 and sorted(told["left"].values()) == [1, 2]


def test_recorded_final_answers_stay(tmp_path):
    """`null` says that there is none; only without the key the text is read."""
    row = {"prompt": "q", "response": "Answer: 7", "reward": 1.0}
    lists = {"prompt": "r", "responses": ["Answer: 7", "8"], "rewards": [1, 2], "final_answers": [None, "9"]}
    searched = {"prompt": "s", "candidates": [{"response": "7", "reward": 1.0, "final_answer": None}]}
    path = written(tmp_path, [row, {**row, "final_answer": None}, {**row, "final_answer": 5}, lists, searched])
    assert [[one.final for one in own] for own in read_scored(str(path)).groups] == [
        ["7", None, "5"],
        [None, "9"],
        [None],
    ]


def test_answers_under_a_floor_are_not_the_best(tmp_path):
    found = [
        {"prompt": f"{p}?", "response": f"Answer: {k}", "reward": float(k), "label": k == 0, "flags": flags}
        for p in range(3)
        for k, flags in enumerate(([], ["below_safety"]))
    ]
    for changes, right in (({}, 1.0), ({"flags": []}, 0.0)):
        told = _plan.plan(str(written(tmp_path, [{**row, **changes} for row in found])), Wanted(0.1))
        assert told["curve"][-1]["best-of-n"] == right


def test_equal_rewards_are_chance_at_every_n(tmp_path):
    told = _plan.plan(str(written(tmp_path, rows(6, 4, reward=0.5))), Wanted(0.1), against=_plan.RANDOM)
    assert all(row["best-of-n"] == pytest.approx(row["random"]) and row["lead"] == 0 for row in told["curve"])


def test_the_verb(tmp_path, karat):
    path = written(tmp_path, rows(20, 4))
    code, out, err = karat("search", "plan", path, "--difference", "0.05", "--n", "2")
    assert code == 0 and "samples each" in out and "pass@n" in out and "lead of best-of-n over majority vote" in out, (
        err
    )
    assert sum(line.strip()[:1].isdigit() for line in out.splitlines()) == 4 + 2 + 2, "a row is one line of 80 columns"
    code, out, _ = karat("search", "plan", path, "--difference", "0.05", "--against", "random", "--json")
    assert code == 0 and json.loads(out)["against"] == "random"
    code, out, _ = karat("search", "plan", "--difference", "0.05", "--disagree", "0.2")
    assert code == 0 and out.startswith("658 problems show a difference of 5.0%")
    code, out, _ = karat("search", "plan", "--difference", "0.05", "--disagree", "0.2", "--level", "0.9", "--json")
    assert code == 0 and (json.loads(out)["power"], json.loads(out)["level"]) == (0.8, 0.9)
    for words in (
        ["plan"],
        ["plan", "--difference", "5%", "--disagree", "0.2"],
        ["plan", "--difference"],
        ["plan", path, "--difference", "0.05", "--n", "2.0"],
        ["plan", "--difference", "0.1"],
        ["plan", path, "--difference", "0.1", "--disagree", "0.3"],
    ):
        assert karat("search", *words)[0] == 2
    assert karat("search", "best_of_n", path)[0] == 2
