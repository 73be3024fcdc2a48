"""Runs written and read again, and what a comparison says of them."""

import json
import math
from dataclasses import replace

import pytest
from test_evaluation import PAIRS, by_table, number
from test_pair_benchmarks import README, pair, reader

from karat.evaluation import _compare, _runs
from karat.evaluation._compare import compare, plain, sign_test
from karat.evaluation._compare_report import html, verdict
from karat.evaluation._files import write_run
from karat.evaluation.base import evaluate, find
from karat.formats._reading import read_rows
from karat.formats._writing import write_rows
from karat.types import Attributed, BadInput, Example, Labelled, Pair, Ranking, Reward, Stepped, Unscored


def run(folder, scorer, items, name=None, model="m", **more):
    """A run without its page, which takes longer than all else."""
    folder.mkdir(parents=True)
    _runs.write(folder, "t", [evaluate(scorer, items, name=name, **more)], {"model": model})
    return _runs.read(str(folder))


def flipped(*numbers):
    """A reader that turns some questions round."""
    turned = {f"q{n}" for n in numbers}
    return lambda es: [
        Reward(r.value * (-1 if e.prompt[0].content in turned else 1)) for e, r in zip(es, reader(es), strict=True)
    ]


ITEMS = [pair(i, ("Natural", "Manual")[i % 2]) for i in range(12)]


# ------------------------------------------------------------------------------------------ the folder


def test_a_run_reads_back(tmp_path):
    found = run(tmp_path / "a", flipped(3), ITEMS, "llmbar", model="org/rm")
    assert (found.name, found.model) == ("a", "org/rm")
    (one,) = found.evaluations
    assert one.name == "llmbar" and one.summary["figures"]["accuracy"]["value"] == pytest.approx(11 / 12)
    assert [item.credit for item in one.items] == [1, 1, 1, 0, *[1] * 8]
    assert one.items[4].rewards == (2.0, 1.0) and one.items[4].part == "Natural"
    assert one.items[4].prompt == "q4" and one.items[4].responses == tuple(
        e.response for e in (ITEMS[4].chosen, ITEMS[4].rejected)
    )


def test_every_class_of_items_is_kept_with_its_credit(tmp_path):
    ask = Example.of_steps("q", ["a 0.9", "b 0.1"], {"first_error": 1, "final_answer_correct": False})
    other = Example.of_steps("p", ["a 0.9"], {"first_error": -1})
    cases = {
        "pair": ([*PAIRS, Pair(PAIRS[0].chosen, PAIRS[0].rejected, 0.5)], number, {}, [1, 0, 0, None]),
        "ranking": ([Ranking(tuple(Example((), f"a {v}") for v in (3, 1, 2)), (1, 2, 3))], number, {}, [2 / 3]),
        "labelled": (
            [Labelled(Example((), f"a {v}"), y) for v, y in ((1, 1), (-1, 1), (0, 0), (3, 0.5))],
            number,
            {},
            [1, 0, 0, None],
        ),
        "attributed": (
            [Attributed(Example((), f"a {v}"), {"x": v}) for v in (1.0, 2.0, 3.0)],
            attributes,
            {"output": "rating"},
            [None] * 3,
        ),
        "stepped": (
            [Stepped((ask,), ((1.0, 0.0),)), Stepped((other,), ((1.0,),))],
            steps,
            {"output": "probability"},
            [1, 1],
        ),
    }
    for kind, (items, scorer, more, credits) in cases.items():
        found = run(tmp_path / kind, scorer, items, **more)
        rows = [row for _, row in read_rows(str(tmp_path / kind / "items.parquet"))]
        assert {row["kind"] for row in rows} == {kind}
        assert [item.credit for item in found.evaluations[0].items] == pytest.approx(credits), kind


def attributes(examples):
    return [Reward(float(e.response.split()[1]), objectives={"x": float(e.response.split()[1])}) for e in examples]


def steps(examples):
    found = [tuple(float(step.split()[1]) for step in e.steps) for e in examples]
    return [Reward(min(s), s) for s in found]


def test_what_is_unscored_is_kept_with_its_reason(tmp_path):
    scorer = by_table({"w 2": 2.0, "x 1": "too long", "y 1": 1.0, "z 1": 0.5, "aa 0": 0.0, "b 3": 3.0})
    found = run(tmp_path / "a", scorer, PAIRS)
    rows = [row for _, row in read_rows(str(tmp_path / "a" / "items.parquet"))]
    assert rows[0]["reasons"] == ["", "too long"] and rows[0]["rewards"] == [2.0, None]
    assert [item.credit for item in found.evaluations[0].items] == [None, 1.0, 0.0]


def frozen(folder, **changes):
    """A folder as version 1 wrote it, by hand: what every later version has to go on reading."""
    folder.mkdir()
    figures = {"accuracy": {"value": 0.5, "low": 0.1, "high": 0.9, "n": 2, "note": ""}}
    one = {"evaluation": "preference", "headline": "accuracy", "figures": figures, "n": 2, "judged": 2, "unscored": {}}
    one |= {
        "nulls_of": {"accuracy": {"random": 0.5}},
        "lead": 0.0,
        "lead_ci": [-0.4, 0.4],
        "unit": "pairs",
        "curves": {},
    }
    run = {"format": "karat run", "version": 1, "karat": "0.1.0", "title": "t", "settings": {"model": "m"}}
    (folder / "run.json").write_text(json.dumps(run | {"evaluations": [one]} | changes))
    rows = [
        {
            "evaluation": 0,
            "key": f"k{i}",
            "id": "",
            "origin": "x:1",
            "kind": "pair",
            "prompt": json.dumps([{"role": "user", "content": f"q{i}"}]),
        }
        | {
            "responses": ["a", "b"],
            "labels": [1.0, 0.0],
            "rewards": [1.0, 2.0 - i],
            "steps": "[null, null]",
            "reasons": ["", ""],
        }
        | {"weight": 1.0, "part": "", "credit": float(i)}
        for i in range(2)
    ]
    write_rows(rows, str(folder / "items.parquet"))
    return folder


def test_version_1_is_read(tmp_path):
    found = _runs.read(str(frozen(tmp_path / "old")))
    (one,) = found.evaluations
    assert found.model == "m" and [item.credit for item in one.items] == [0.0, 1.0]
    assert one.items[1] == _runs.Item("k1", "", "", "q1", ("a", "b"), (1.0, 0.0), (1.0, 1.0), 1.0)


def damaged(**changes):
    return {"evaluations": [{"evaluation": "x", "headline": "accuracy", "figures": {}} | changes]}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"version": 2}, r"is of version 2, and this karat reads up to 1; install a newer one"),
        ({"format": "other"}, r"run\.json is not of a run"),
        ({"version": None}, r"run\.json is not of a run"),
        ({"evaluations": None}, r"run\.json lacks .*; evaluate the model again"),
        ({"settings": None}, r"run\.json lacks .*; evaluate the model again"),
        ({"evaluations": [{"evaluation": "x"}]}, r"run\.json is damaged: headline: field required.*again"),
        (damaged(figures={"accuracy": 0.5}), r"run\.json is damaged: figures\.accuracy: .*evaluate the model again"),
        (damaged(lead_ci=[0.5]), r"run\.json is damaged: lead_ci: .*evaluate the model again"),
        (damaged(curves={"n": [1], "reward": [0.5]}), r"run\.json is damaged: curves\.reward\.0: .*model again"),
    ],
)
def test_a_run_that_cannot_be_read_is_refused(tmp_path, changes, said):
    with pytest.raises(BadInput, match=said):
        _runs.read(str(frozen(tmp_path / "run", **changes)))


def test_other_folders_and_files_are_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.json").write_text("{")
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "other.json").write_text('{"model": "m"}')
    said = {"none": "there is no run", "empty": "holds no run.json", "text.json": "cannot be read as JSON"}
    said |= {"list.json": "is no JSON object", "other.json": "holds no subset of RewardBench"}
    for name, words in said.items():
        with pytest.raises(BadInput, match=words):
            _runs.read(str(tmp_path / name))


def test_items_that_lack_a_column_are_refused(tmp_path):
    folder = frozen(tmp_path / "run")
    write_rows([{"evaluation": 0, "key": "k"}], str(folder / "items.parquet"))
    with pytest.raises(BadInput, match=r"items\.parquet:1 lacks or spoils a column"):
        _runs.read(str(folder))


# ------------------------------------------------------------------------------------------ comparing


@pytest.mark.parametrize(
    ("wins", "losses", "p"),
    [(0, 0, 1.0), (1, 0, 1.0), (5, 0, 0.0625), (8, 1, 0.0390625), (3, 3, 1.0), (10, 2, 0.03857421875)],
)
def test_the_sign_test_is_exact(wins, losses, p):
    assert sign_test(wins, losses) == sign_test(losses, wins) == pytest.approx(p)


@pytest.mark.full
def test_the_sign_test_agrees_with_scipy():
    from scipy.stats import binomtest

    for wins, losses in ((30, 12), (600, 500), (5000, 4800), (40, 4000)):
        assert sign_test(wins, losses) == pytest.approx(binomtest(wins, wins + losses).pvalue, rel=1e-9, abs=1e-300)


def three(tmp_path):
    """A better and a worse run, and one that could not score two items."""
    good = run(tmp_path / "good", flipped(0), ITEMS, "llmbar", model="g")
    bad = run(tmp_path / "bad", flipped(*range(1, 9)), ITEMS[::-1], "llmbar", model="b")

    def some(examples):
        lost = ("q10", "q11")
        return [Unscored("too long") if e.prompt[0].content in lost else Reward(0.0) for e in examples]

    return good, bad, run(tmp_path / "flat", some, ITEMS, "llmbar", model="f")


def test_runs_meet_on_the_items_that_both_judged(tmp_path):
    (found,) = compare(three(tmp_path))
    assert [place.run for place in found.places] == ["good", "bad", "flat"]
    paired = {(p.first, p.second): p for p in found.paired}
    one = paired["good", "bad"]
    assert (one.shared, one.first_only, one.second_only) == (12, 8, 1) and one.p == 0.0390625
    assert one.difference == pytest.approx(7 / 12) and one.low < 7 / 12 < one.high
    assert one.agreement == pytest.approx(3 / 12) and paired["good", "flat"].shared == 10
    assert one.adjusted == pytest.approx(2 * 0.0390625), "Holm: the second smallest of three"
    assert found.parts["accuracy [Natural]"] == {"good": pytest.approx(5 / 6), "bad": pytest.approx(2 / 6), "flat": 0.0}
    assert [place.unscored for place in found.places] == [0, 0, 2]


def test_holm_never_falls_and_never_exceeds_1(tmp_path):
    pairs = compare(three(tmp_path))[0].paired
    ordered = sorted(pairs, key=lambda p: p.p)
    assert [p.adjusted for p in ordered] == sorted(p.adjusted for p in pairs)
    assert all(p.p <= p.adjusted <= 1 for p in pairs)


def test_a_run_beside_itself_differs_nowhere(tmp_path):
    one = run(tmp_path / "a", flipped(2), ITEMS, "llmbar")
    (found,) = compare([one, one])
    assert [place.run for place in found.places] == ["a", "a (2)"]
    (pair_,) = found.paired
    assert (pair_.agreement, pair_.p, pair_.difference) == (1.0, 1.0, 0.0) and not found.disagreements
    assert "a and a (2) are equal" in verdict(found) and "on none of 12 shared pairs" in verdict(found)


def test_where_runs_disagree_their_texts_stand_side_by_side(tmp_path):
    (found,) = compare(three(tmp_path)[:2])
    assert len(found.disagreements) == 9
    first = found.disagreements[0]
    assert set(first.credits.values()) == {0.0, 1.0} and first.labels == (1.0, 0.0)
    assert {len(own) for own in first.rewards.values()} == {2}


def test_runs_without_a_common_benchmark_are_refused(tmp_path):
    runs = [run(tmp_path / "a", reader, ITEMS, "llmbar"), run(tmp_path / "b", reader, ITEMS)]
    with pytest.raises(BadInput, match="share no evaluation: a has llmbar; b has preference"):
        compare(runs)
    with pytest.raises(BadInput, match="at least two runs"):
        compare(runs[:1])


def test_ratings_have_no_paired_test(tmp_path):
    items = [Attributed(Example((), f"a {v}"), {"x": v}) for v in (1.0, 2.0, 3.0)]
    runs = [run(tmp_path / name, attributes, items, output="rating") for name in "ab"]
    (found,) = compare(runs)
    assert found.paired == () and "so no paired test is possible" in verdict(found)
    assert "no items" in verdict(found)


def test_equal_items_are_met_in_order(tmp_path):
    items = [pair(0, "Natural"), replace(pair(0, "Natural"), preference=0.0), pair(1, "Manual")]
    runs = [run(tmp_path / name, reader, rows, "llmbar") for name, rows in (("a", items), ("b", items[::-1]))]
    (found,) = compare(runs)
    assert found.paired[0].shared == 3 and any("1 items are there more than once" in note for note in found.notes)
    assert found.paired[0].agreement == 1.0, "in the order of their labels, not of the file"


def test_the_order_of_a_file_does_not_matter_where_a_prompt_is_empty(tmp_path):
    items = [Pair(Example((), "2"), Example((), "1")), *(pair(i, "Natural", i // 5, 0.5) for i in range(9))]
    runs = [run(tmp_path / name, reader, rows) for name, rows in (("a", items), ("b", items[::-1]))]
    (pair_,) = compare(runs)[0].paired
    assert (pair_.shared, pair_.agreement) == (10, 1.0)


def test_the_verdict_says_where_items_and_headline_disagree():
    """A headline weighted by sections favours one run, and the items the other."""
    places = [
        _compare.Place(name, "m", value, *[None] * 2, 40, 0, "", *[None] * 4)
        for name, value in (("a", 0.7), ("b", 0.6))
    ]
    for first, second, counts in (("a", "b", (3, 12)), ("b", "a", (12, 3))):
        gap = (counts[0] - counts[1]) / 40
        pair_ = _compare.Paired(first, second, 40, *counts, gap, None, None, p := sign_test(*counts), p)
        found = _compare.Compared("x", "score", "pairs", tuple(places), (pair_,), {}, (), {}, ())
        assert verdict(found) == (
            "a leads in score with 0.700, before b with 0.600: but by items b is ahead, with more credit on 12 and "
            "less on 3 of 40 shared pairs (p = 0.035), more than chance explains."
        )


@pytest.mark.parametrize(
    ("values", "counts", "said"),
    [
        ((0.6331, 0.6331), (0, 0), "a and b are equal in score with 0.633: on none of 40 shared pairs the two differ."),
        (
            (0.6331, 0.6331),
            (2, 2),
            "a and b are equal in score with 0.633: on 4 of 40 shared pairs the two differ (p = 1.000), which chance"
            " alone could explain.",
        ),
        (
            (0.6334, 0.6331),
            (0, 0),
            "a and b are equal in score but for digits behind 0.633: on none of 40 shared pairs the two differ.",
        ),
    ],
)
def test_runs_that_are_equal_are_said_to_be(values, counts, said):
    places = [
        _compare.Place(name, "m", value, *[None] * 2, 40, 0, "", *[None] * 4)
        for name, value in zip("ab", values, strict=True)
    ]
    pair_ = _compare.Paired("a", "b", 40, *counts, 0.0, None, None, p := sign_test(*counts), p)
    assert verdict(_compare.Compared("x", "score", "pairs", tuple(places), (pair_,), {}, (), {}, ())) == said


def test_rewardbenchs_result_files_stand_beside_a_run(tmp_path):
    items = [pair(i, "alpacaeval-easy", id=i) for i in range(6)]
    mine = run(tmp_path / "mine", flipped(1, 2), items, "rewardbench", model="org/rm")
    theirs = evaluate(flipped(5), items, name="rewardbench")
    find("rewardbench").export(theirs, tmp_path / "hub", {"model": "org/other"})
    scores = _runs.read(str(tmp_path / "hub" / "eval-set-scores" / "org" / "other.json"))
    (found,) = compare([mine, scores])
    assert [(place.model, round(place.value, 4)) for place in found.places] == [
        ("org/other", 0.8333),
        ("org/rm", 0.6667),
    ]
    assert (found.paired[0].shared, found.paired[0].first_only + found.paired[0].second_only) == (6, 3)
    alone = _runs.read(str(tmp_path / "hub" / "eval-set" / "org" / "other.json"))
    (found,) = compare([mine, alone])
    assert found.paired == () and any("no single items are known of other" in note for note in found.notes)


@pytest.mark.full
def test_a_run_of_rewardbench_holds_its_submission(tmp_path):
    found = evaluate(reader, [pair(i, "alpacaeval-easy", id=i) for i in range(6)], name="rewardbench")
    write_run(tmp_path / "mine", "t", [found], {"model": "org/rm"})
    assert (tmp_path / "mine" / "rewardbench" / "eval-set" / "org" / "rm.json").is_file()


def test_the_file_of_the_readme_gets_its_score(tmp_path):
    known = {
        "model": "PKU-Alignment/beaver-7b-v1.0-cost",
        "model_type": "Seq. Classifier",
        "chat_template": "tokenizer",
    }
    (tmp_path / "b.json").write_text(json.dumps(README | known))
    (one,) = _runs.read(str(tmp_path / "b.json")).evaluations
    assert one.summary["figures"]["RewardBench score"]["value"] == pytest.approx(0.5617196, abs=5e-8)


# ------------------------------------------------------------------------------------------ the page


def test_the_page_escapes_texts_and_loads_nothing(tmp_path):
    bad = "<script>alert(1)</script>"
    items = [Pair(Example((), f"{bad} 2"), Example((), "1")), Pair(Example((), f"{bad} 3"), Example((), "1"))]
    runs = [
        run(tmp_path / name, s, items)
        for name, s in (("<b>x</b>", number), ("y", lambda es: [Reward(-r.value) for r in number(es)]))
    ]
    page = html(bad, compare(runs))
    assert "<script" not in page and "&lt;script&gt;alert(1)" in page and "<b>x</b>" not in page
    assert "http://" not in page.replace("http://www.w3.org", "") and "https://" not in page and "src=" not in page
    for words in ("Paired tests", "Disagreement", "Where they disagree most", "McNemar", "best null"):
        assert words in page


@pytest.mark.full
def test_best_of_n_bands_are_drawn_where_they_are(tmp_path):
    items = [Labelled(Example.of_steps(f"p{p}", [f"{p + k}"]), float((p + k) % 2)) for p in range(6) for k in range(4)]
    runs = [run(tmp_path / name, lambda es: [Reward(float(e.response)) for e in es], items) for name in "ab"]
    (found,) = compare(runs)
    page = html("t", [found])
    assert "<svg" in page and "answers per prompt, n" in page
    assert set(found.curves) == {"a", "b"} and len(found.curves["a"]["n"]) == 4


def test_plain_values_are_json(tmp_path):
    (one,) = json.loads(json.dumps(plain(compare(three(tmp_path))), allow_nan=False))
    assert one["leaderboard"][0]["run"] == "good" and one["paired"][0]["agreement"] == pytest.approx(0.25)
    assert one["disagreements"] == 10 and math.isfinite(one["paired"][0]["p"])


def test_runs_of_one_name_are_numbered():
    runs = [_runs.Run("a", "m", ()), _runs.Run("a", "n", ())]
    assert list(_compare._named(runs)) == ["a", "a (2)"]
