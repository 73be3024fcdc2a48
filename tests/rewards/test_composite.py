"""Composite rewards against their formulas, on every way to ask, and what makes none."""

import json
import math

import pytest

import karat
import toys
from karat.rewards import composite
from karat.rewards._wrapped import save_spec
from karat.rewards.composite import Rule
from karat.types import BadInput, CheckpointError, Refused, Reward, Unscored

ROWS = [
    {"prompt": "2+2?", "response": text, "context": {"answer": "so\n#### 4"}}
    for text in ("Answer: 4", "It is 4.0", "Answer: 14", "no idea", "")
]
RIGHT = [1.0, 1.0, 0.0, 0.0, 0.0]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("home")
    for seed, name in enumerate(("a", "b")):
        toys.save(folder / name, toys.reward_model(seed=seed))
    toys.save(folder / "check", toys.reward_model(seed=2))
    return folder


def made(home, tmp_path, names, rule, **options):
    models = {str(home / name): karat.load(str(home / name), **options) for name in names}
    save_spec(composite.make(models, tmp_path / "c", rule, options), tmp_path / "c")
    return karat.load(str(tmp_path / "c")), [[r.value for r in m.score_many(ROWS)] for m in models.values()]


def values(model, rows=ROWS):
    return [r.value for r in model.score_many(rows, strict=True)]


def test_a_product_of_check_and_model(home, tmp_path):
    model, (own,) = made(home, tmp_path, "a", Rule("product", "answer"), activation="sigmoid")
    assert values(model) == pytest.approx([c * p for c, p in zip(RIGHT, own, strict=True)], abs=1e-6)
    found = list(model.score_many(ROWS))
    assert [r.objectives["check"] for r in found] == RIGHT and model.output == "probability"
    assert [("no_answer" in r.flags) for r in found] == [False, False, False, True, True]


def test_steps_of_process_models_alone_are_combined_step_by_step(tmp_path):
    """A check or a gate judges the whole answer, so steps have no reward there, which is refused in words."""
    paths = [str(toys.save(tmp_path / f"prm{seed}", toys.step_model(seed=seed))) for seed in (0, 1)]
    models = {path: karat.load(path, kind="process") for path in paths}
    steps, spec = ["2+2 is", "4"], composite.make(models, tmp_path / "c", Rule("product"), {"kind": "process"})
    found = composite.Composite(spec, list(models.values())).score_steps("2+2?", steps)
    first, second = (model.score_steps("2+2?", steps) for model in models.values())
    assert found.steps == pytest.approx([a * b for a, b in zip(first.steps, second.steps, strict=True)], abs=1e-6)
    assert found.value == pytest.approx(first.value * second.value, abs=1e-6)
    assert not composite.loses_steps(spec, list(models.values()))
    checked = spec.model_copy(update={"check": composite.Check(key="answer")})
    assert composite.loses_steps(checked, list(models.values()))
    with pytest.raises(Refused, match="one reward for a whole answer; use score, or combine process models alone"):
        composite.Composite(checked, list(models.values())).score_steps("2+2?", steps)


def test_a_weighted_sum(home, tmp_path):
    model, (a, b) = made(home, tmp_path, "ab", Rule("sum", "answer", {"a": 0.5, "check": 3.0}))
    wanted = [0.5 * x + y + 3 * c for x, y, c in zip(a, b, RIGHT, strict=True)]
    assert values(model) == pytest.approx(wanted, abs=1e-6)
    for found in model.score_many(ROWS):
        assert sum(found.contributions.values()) == pytest.approx(found.value)


def test_gates(home, tmp_path):
    _, (a, b) = made(home, tmp_path / "x", "ab", Rule("sum"))
    floor = sorted(b)[2]
    rule = Rule("gated", "answer", {"a": 2.0}, {"b": floor}, -9.0)
    model, _ = made(home, tmp_path, "ab", rule)
    passed = [c == 1 and y >= floor for c, y in zip(RIGHT, b, strict=True)]
    assert values(model) == pytest.approx([2 * x if p else -9 for x, p in zip(a, passed, strict=True)], abs=1e-6)


def test_a_check_alone_is_a_reward_model(tmp_path, karat):
    code, _, err = karat("composite", "--check", "answer", "--combine", "sum", "--output", tmp_path / "c")
    model = __import__("karat").load(str(tmp_path / "c"))
    assert code == 0 and values(model) == RIGHT, err
    assert model.compare_many([{**ROWS[0], "other": "Answer: 5"}]).__next__().value == 1.0


@pytest.mark.full
def test_a_check_by_algebra(tmp_path, karat):
    """In a process of its own, which ends with the model."""
    karat("composite", "--check", "answer", "--combine", "sum", "--output", tmp_path / "c")
    model = __import__("karat").load(str(tmp_path / "c"))
    formulas = [{**ROWS[0], "response": rf"\boxed{{{text}}}", "context": {"answer": "2x+3"}} for text in ("3+2x", "3x")]
    assert values(model, formulas) == [1.0, 0.0]


def test_what_a_part_cannot_judge_has_no_reward(home, tmp_path):
    model, _ = made(home, tmp_path, "a", Rule("sum", "answer"))
    (bare,) = model.score("2+2?", ["4"])
    assert isinstance(bare, Unscored) and "'answer'" in bare.reason
    with pytest.raises(Refused, match="no context"):
        model.score_text("2+2? 4")
    long = {**ROWS[0], "response": "4" * 600}
    short, cut = model.score_many([ROWS[0], long])
    assert isinstance(short, Reward) and isinstance(cut, Unscored) and cut.reason.startswith("a: ") and cut.over_length


@pytest.mark.parametrize("reference", ["", "  ", float("nan"), True, {"a": 1}, ["4"]])
def test_what_is_no_reference_gives_no_reward(reference):
    spec = composite.CompositeSpec(combine="sum", check=composite.Check(key="answer"))
    (found,) = composite.Composite(spec, []).score_many([{**ROWS[0], "context": {"answer": reference}}])
    assert isinstance(found, Unscored) and "no answer to compare with" in found.reason


@pytest.mark.parametrize(
    ("paths", "rule", "said"),
    [
        ([], Rule("sum"), "a model or a check"),
        (["a"], Rule("sum"), "one model by itself is no composite"),
        (["a"], Rule("product"), "one model by itself is no composite"),
        (["a"], Rule("som", "answer"), "did you mean 'sum'"),
        (["a", "a"], Rule("sum"), "given twice"),
        (["a"], Rule("sum", "answer", {"d": 1.0}), "no part called 'd'"),
        (["a"], Rule("product", "answer", {"a": 2.0}), "no weights"),
        (["a"], Rule("sum", "answer", at_least={"a": 2.0}), "no gates"),
        (["a"], Rule("gated", otherwise=0.0), "needs a gate"),
        (["a"], Rule("gated", at_least={"a": 0.0}, otherwise=0.0), "a model that is no gate"),
        (["a"], Rule("gated", "answer"), "needs otherwise"),
        (["a"], Rule("gated", "answer", {"check": 1.0}, otherwise=0.0), "a gate has no weight"),
        (["check"], Rule("sum", "answer"), "rename the folder"),
        (["a"], Rule("sum", "answer", {"check": math.nan}), "weight of check is nan"),
        (["a"], Rule("gated", "answer", otherwise=math.nan), "otherwise is nan"),
    ],
)
def test_what_makes_no_composite(paths, rule, said):
    with pytest.raises(BadInput, match=said):
        composite.check(paths, rule)


def test_a_product_with_rewards_below_0_is_refused(home, tmp_path):
    """Negative control: a wrong answer's 0 would be above a right answer's reward of -1."""
    with pytest.raises(Refused, match="sigmoid"):
        made(home, tmp_path, "a", Rule("product", "answer"))


def test_a_folder_that_lacks_its_gate_value_is_no_composite(tmp_path):
    folder = tmp_path / "c"
    folder.mkdir()
    (folder / "reward_spec.json").write_text(
        json.dumps({"kind": "composite", "combine": "gated", "check": {"key": "a"}})
    )
    with pytest.raises(CheckpointError, match="otherwise"):
        karat.load(str(folder))


def test_the_verb(home, tmp_path, karat):
    said = ["composite", home / "a", "--check", "answer", "--output", tmp_path / "c"]
    code, _, err = karat(*said, "--combine", "gated", "--otherwise", "-5", "--json")
    assert code == 0, err
    assert karat(*said, "--weight", "a")[0] == 2  # no number
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    code, out, _ = karat("score", tmp_path / "c", rows)
    assert code == 0 and [json.loads(line)["reward"] == -5 for line in out.splitlines()] == [c == 0 for c in RIGHT]
