"""Benchmarks of answers in steps: their means and thresholds, PRMScore, pages, and oracles from real data."""

import gzip
import json
from types import SimpleNamespace

import pytest
from test_process import answer, constant, labelled, losing, perfect, process, reader

from karat import metrics
from karat.evaluation._files import evaluate_files
from karat.evaluation._first_error import PLAIN
from karat.evaluation._report import Report, html, verdict
from karat.evaluation.base import LEAD, beats_null, choose, find, summary
from karat.types import BadInput, Example, Pair, Reward, Stepped

# ------------------------------------------------------------------------------------------ subsets


def test_means_over_subsets_and_the_tuned_threshold():
    """gsm8k is told apart at 0.3, where math is too; its own 0.5 flags every step of gsm8k."""

    def made(name, size, good):
        rows = [(i % 2 - 1, [0.2 if i % 2 else good, good]) for i in range(size)]
        return [answer(f"{name}{i}", labelled(k, 2), r, subset=name, first_error=k) for i, (k, r) in enumerate(rows)]

    low, high = made("gsm8k", 8, 0.4), made("math", 4, 0.9)
    for name in (None, "processbench"):
        result = process(reader, low + high, name=name)
        value = {f.name: f.value for f in result.figures}
        assert value["F1 [gsm8k]"] == 0.0 and value["F1 [math]"] == 1.0
        assert value["F1, plain mean over subsets"] == 0.5
        assert value["F1, size-weighted mean over subsets"] == pytest.approx(1 / 3)
        assert value["F1"] == pytest.approx(metrics.harmonic_mean(1.0, 1 / 3))
        assert value["F1, threshold tuned on gsm8k"] == value["F1, threshold tuned on gsm8k [math]"] == 1.0
        assert result.headline == ("F1" if name is None else "F1, plain mean over subsets")
        assert result.figure(LEAD).value == pytest.approx(
            value[result.headline] - result.nulls_of(result.headline)[0].value
        )
    assert process(reader, low).figure("F1 [gsm8k]") is None


def test_a_subset_of_one_class_is_in_no_mean():
    items = [*perfect(subset="a"), *perfect(subset="b")]
    items += [answer(f"c{i}", [1.0], [0.9], subset="c") for i in range(5)]
    result = process(reader, items)
    assert result.figure("F1 [c]") is None
    assert result.figure("F1, plain mean over subsets").note.startswith("over 2 subsets")


def test_generators_are_parts_where_there_are_no_subsets():
    items = [*perfect(generator="one"), *perfect(generator="two")]
    assert process(reader, items).figure("F1 [two]").value == 1.0


# ------------------------------------------------------------------------------------------ benchmarks


def planted(idx, name, labels, rewards, original=False):
    return answer(f"q{idx}", labels, rewards, classification=name, idx=idx, original=original)


PLANTED = [
    planted("1", "circular", [1, 0, 0, 1], [0.9, 0.9, 0.1, 0.9]),
    planted("1", "circular", [1, 1, 1, 1], [0.9] * 4, original=True),
    planted("2", "multi_solutions", [1, 1], [0.9, 0.1]),
    planted("2", "multi_solutions", [1, 1], [0.9, 0.1], original=True),
]


def test_prmbench_worked_example():
    result = process(reader, PLANTED, name="prmbench")
    value = {f.name: f.value for f in result.figures}
    assert value["PRMScore [circular]"] == pytest.approx(11 / 15)
    assert value["F1 [multi_solutions]"] == pytest.approx(2 / 3) and "PRMScore [multi_solutions]" not in value
    pooled = metrics.prm_score([1, 1, 0, 1, 1, 0], [1, 0, 0, 1, 1, 1])
    assert (result.headline, value["PRMScore"]) == ("PRMScore", pytest.approx(pooled.score))
    assert value["first-error step accuracy"] == 0.0 and value["similarity"] == pytest.approx((0.25 + 0) / 2)
    assert result.n == 2 and "2 originals are in the similarity alone" in result.notes


def test_prmbench_of_a_constant_scorer_is_a_null():
    result = process(constant, PLANTED, name="prmbench")
    nulls = {f.name: f.value for f in result.nulls_of("PRMScore")}
    assert result.figure("PRMScore").value == nulls["majority class"] == pytest.approx(0.4)
    assert result.figure("similarity").value == 0.0 and beats_null(result) is False


def test_prmbench_counts_what_is_unscored():
    result = process(losing({"q2"}), PLANTED, name="prmbench")
    assert result.unscored == {"too long": 1} and result.judged == 1
    assert "2 originals are in the similarity alone, but for 1 without a reward" in result.notes
    assert result.figure("similarity").n == 1
    with pytest.raises(BadInput, match="3 results for 4 answers"):
        process(lambda es: reader(es)[1:], PLANTED, name="prmbench")


def test_prmbench_needs_classes_and_modified_solutions():
    with pytest.raises(BadInput, match="needs the classification"):
        process(reader, perfect(), name="prmbench")
    with pytest.raises(BadInput, match="every item is an original"):
        process(reader, [item for item in PLANTED if item.branches[0].context["original"]], name="prmbench")


def test_mistake_is_judged_by_location():
    items = [answer(f"p{i}", labelled(k, 3), [0.9, 0.1, 0.9], first_error=k) for i, k in enumerate([1, 1, -1, 2])]
    result = process(reader, items, name="mistake")
    assert (result.headline, result.figure("location accuracy").value) == ("location accuracy", 0.5)
    assert {f.name for f in result.nulls_of("location accuracy")} >= {
        "random",
        "no error",
        "perfect ORM + step index 1",
    }


def test_items_pick_the_general_evaluation_and_a_name_a_benchmark():
    assert choose(PLANTED, "probability") is find("process")
    assert choose(PLANTED, "probability", "prmbench") is find("prmbench")
    pairs = [Pair(Example.of_steps("q", ["a"]), Example.of_steps("q", ["b"]))]
    with pytest.raises(BadInput, match="processbench needs answers in steps, and these are pairs; leave") as caught:
        choose(pairs, "logit", "processbench")
    assert "use one of hhh, judgebench, llmbar" in str(caught.value) and "mistake" not in str(caught.value)
    with pytest.raises(BadInput, match="no evaluation takes answers in steps with rewards that are ratings"):
        choose(PLANTED, "rating")


def test_a_named_benchmark_in_several_files_is_one_evaluation(tmp_path):
    for subset in ("gsm8k", "math"):
        rows = [
            {"id": f"{subset}-{i}", "problem": f"{subset} {i}", "steps": ["x 0.9", f"y {0.1 if i % 2 else 0.9}"]}
            | {"label": 1 if i % 2 else -1, "final_answer_correct": i % 2 == 0}
            for i in range(6)
        ]
        (tmp_path / f"{subset}.json").write_text(json.dumps(rows), encoding="utf-8")
    model = SimpleNamespace(score_many=reader, output="probability", compares=False)
    paths = [str(path) for path in sorted(tmp_path.iterdir())]
    each, one = evaluate_files(model, paths), evaluate_files(model, paths, name="processbench")
    assert [r.name for r in each] == ["process", "process"] and [r.n for r in each] == [6, 6]
    assert [r.n for r in one] == [12] and one[0].headline == "F1, plain mean over subsets"
    assert one[0].figure("F1, threshold tuned on gsm8k [math]").value == 1.0


# ------------------------------------------------------------------------------------------ pages and real data


def test_a_page_shows_steps():
    items = [answer(f"p{i}", labelled(i % 3 - 1, 3), [0.9, 0.3 if i % 2 else 0.8, 0.7]) for i in range(12)]
    page = html(Report("t", [process(reader, items), process(reader, PLANTED, name="prmbench")]))
    for words in ("Reward by step", "Reliability", "characters of the step", "that judge no step", "all steps:"):
        assert words in page
    assert "knows nothing of quality" not in page


def processbench(path, subset):
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as file:
        rows = json.load(file)
    made = []
    for r in rows:
        context = {"first_error": r["label"], "final_answer_correct": r["final_answer_correct"], "subset": subset}
        branch = Example.of_steps(r["problem"], r["steps"], context)
        made.append(Stepped((branch,), (tuple(labelled(r["label"], len(r["steps"]))),)))
    return made


@pytest.fixture(scope="module")
def real(data_folder):
    paths = {"gsm8k": data_folder / "processbench/gsm8k.json", "math": data_folder / "processbench/math.json.gz"}
    if not all(path.exists() for path in paths.values()):
        pytest.skip("KARAT_DATA has no processbench")
    return [item for name, path in paths.items() for item in processbench(path, name)]


@pytest.mark.full
def test_what_outcome_models_get_on_processbench(real):
    """The oracle: a perfect outcome model that always blames one step. A process reward model below adds nothing."""
    result = process(constant, real, name="processbench")
    got = {
        name: {f.name: round(100 * f.value, 1) for f in result.nulls_of(f"F1 [{name}]")} for name in ("gsm8k", "math")
    }
    index = [[got[name][f"perfect ORM + step index {k}"] for name in got] for k in (1, 0)]
    assert index == [[44.4, 35.9], [27.5, 27.1]]
    longest = [got[name]["perfect ORM + longest step"] for name in got]
    assert longest == [54.7, 40.3]
    assert result.figure("error accuracy").n == 207 + 594 and result.figure("correct accuracy").n == 193 + 406
    assert result.figure("F1, plain mean over subsets").value == 0.0 and beats_null(result) is False


def test_a_perfect_scorer_gets_1_on_processbench(real):
    def known(examples):
        firsts = [e.context["first_error"] for e in examples]
        steps = [tuple(float(i != k) for i in range(len(e.steps))) for e, k in zip(examples, firsts, strict=True)]
        return [Reward(min(s), s) for s in steps]

    result = process(known, real, name="processbench")
    for name in ("F1", "F1 [gsm8k]", "F1 [math]", "F1, plain mean over subsets", "step AUC", "solution AUC"):
        assert result.figure(name).value == 1.0
    assert result.figure("F1, threshold tuned on gsm8k").value == 1.0 and beats_null(result) is True


@pytest.mark.parametrize(("first", "word"), [(0, "each"), (-1, "none")])
def test_a_headline_that_is_not_f1_says_why(first, word):
    items = [answer(f"q{i}", labelled(first, 2), [0.4, 0.7], first_error=first) for i in range(4)]
    found = process(reader, items, name="processbench")
    assert not found.headline.startswith("F1") and f"{word} of the 4 solutions has a wrong step" in verdict(found)
    assert summary(found)["notes"][0] == found.instead and found.headline in found.instead
    assert process(reader, perfect()).instead == ""


def of_subsets(**firsts):
    """Solutions of two steps; of each subset, their first errors."""
    return [
        answer(f"{name} {i}", labelled(first, 2), [0.4, 0.7], first_error=first, subset=name)
        for name, own in firsts.items()
        for i, first in enumerate(own)
    ]


def test_processbench_says_why_its_headline_is_no_mean_over_subsets():
    found = process(reader, of_subsets(gsm8k=(0, -1, 1), math=(-1, -1)), name="processbench")
    assert found.headline == "F1" and found.instead == (
        "no mean over subsets, which needs two with an F1: math, whose solutions all have a wrong step, or all have"
        " none; the headline is F1"
    )
    assert found.instead in verdict(found) and summary(found)["notes"][0] == found.instead
    alone = process(reader, of_subsets(gsm8k=(0, -1)), name="processbench").instead
    assert alone == "no mean over subsets, which needs two, and there is one; the headline is F1"
    three = process(reader, of_subsets(gsm8k=(0, -1), math=(-1, 1), olympiad=(0, 1)), name="processbench")
    assert three.headline == PLAIN and three.instead == ""
    assert three.figure(PLAIN).note.startswith("over 2 subsets, without olympiad, whose solutions")
