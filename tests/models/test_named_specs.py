"""Specs by name and in files: what they say, what wins over them, and what is refused."""

import json
import re
from pathlib import Path

import pytest

import karat
import toys
from karat.models import _named
from karat.spec import RewardSpec
from karat.types import BadInput

STEPS = ("2 + 2 = 4", "so 4")
DOCS = Path(__file__).parents[2] / "docs" / "families.md"


@pytest.fixture(scope="module")
def language_model(tmp_path_factory):
    return str(toys.save(tmp_path_factory.mktemp("lm") / "m", toys.causal_model()))


def by_hand(folder, **more):
    options = {"kind": "process", "step_token": "ки", "step_join": "text", "step_template": "Step {n}: {step} "}
    options |= {"between_steps": "\n", "prompt_end": " ", "head": "lm_logits:+,-", "output": 0}
    return karat.load(folder, **options, **more).score_steps("2+2?", STEPS)


def test_a_name_is_the_options_that_the_page_gives(language_model):
    named = karat.load(language_model, spec="math-shepherd")
    assert named.score_steps("2+2?", STEPS) == by_hand(language_model)


def test_an_option_wins_over_the_spec(language_model):
    found = karat.load(language_model, spec="math-shepherd", aggregate="prod", step_template="{step} ")
    assert found.spec.aggregate == "prod" and found.spec.render.step_template == "{step} "
    assert found.spec.render.step_token == "ки"


def test_a_file_of_one_s_own(language_model, tmp_path):
    path = tmp_path / "mine.json"
    path.write_text('{"kind": "bradley_terry", "head": {"type": "lm_logits", "tokens": ["y", "n"]}, "output": [1, -1]}')
    found = karat.load(language_model, spec=str(path)).score("2+2?", ["4"])
    assert found == karat.load(language_model, head="lm_logits:y,n", output=(1, -1)).score("2+2?", ["4"])


def test_a_shipped_file_beside_the_weights_says_the_same_for_good(tmp_path):
    folder = toys.save(tmp_path / "m", toys.causal_model())
    wanted = karat.load(str(folder), spec="math-shepherd").score_steps("2+2?", STEPS)
    source = Path(_named.__file__).parent / "families" / "specs" / "math-shepherd.json"
    (folder / "reward_spec.json").write_bytes(source.read_bytes())
    assert karat.load(str(folder)).score_steps("2+2?", STEPS) == wanted


def test_a_name_that_is_none_is_told_those_that_there_are(language_model, tmp_path):
    with pytest.raises(BadInput, match="spec='math-sheperd' is no file") as caught:
        karat.load(language_model, spec="math-sheperd")
    assert all(name in str(caught.value) for name in _named.names()) and "\n" not in str(caught.value)
    with pytest.raises(BadInput, match="is no file, and none of the names"):
        karat.load(language_model, spec=str(tmp_path))


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("{", "not a valid reward spec"),
        ('{"kind": "process", "steptoken": "x"}', "steptoken"),
        ('{"kind": "process", "tokenizer_sha256": "ab"}', "says tokenizer_sha256, which is a checkpoint's own"),
        ('{"kind": "process", "head": {"type": "linear", "sha256": "ab"}}', "says sha256"),
        ('{"kind": "bradley_terry", "head": {"gate_act": "relu"}}', "says gate_act"),
    ],
)
def test_a_file_that_cannot_be_taken(said, reason, language_model, tmp_path):
    (tmp_path / "s.json").write_text(said)
    with pytest.raises(BadInput, match=re.escape(reason)) as caught:
        karat.load(language_model, spec=str(tmp_path / "s.json"))
    assert "\n" not in str(caught.value)


def test_every_shipped_spec_is_whole_and_has_a_row_in_the_page():
    page = DOCS.read_text()
    for name in _named.names():
        said = json.loads((Path(_named.__file__).parent / "families" / "specs" / f"{name}.json").read_text())
        options = _named.spelled_out({"spec": name})
        again = RewardSpec(kind="bradley_terry").with_options(**options)
        assert again.model_dump() == RewardSpec(**said).model_dump()
        assert f"| `{name}` |" in page, name


@pytest.mark.full
def test_verbs_take_it(karat, tmp_path, language_model):
    rows, steps = tmp_path / "rows.jsonl", tmp_path / "steps.jsonl"
    rows.write_text(json.dumps({"prompt": "2+2?", "steps": list(STEPS)}) + "\n")
    labels = [{"prompt": p, "completions": list(STEPS), "labels": [True, p == "a"]} for p in "ab"]
    steps.write_text("".join(json.dumps(row) + "\n" for row in labels))
    asked = ("--spec", "math-shepherd")
    code, out, _ = karat("score", language_model, rows, *asked)
    wanted = by_hand(language_model)
    assert code == 0 and json.loads(out)["step_rewards"] == pytest.approx(list(wanted.steps), abs=1e-6)
    code, out, _ = karat("explain", language_model, *asked, "--json")
    assert code == 0 and {line["said"] for line in json.loads(out)} >= {"process", "lm_logits head of 2 outputs"}
    for words in (("doctor", language_model), ("eval", language_model, steps)):
        code, _, err = karat(*words, *asked)
        assert code == 0, err
        code, out, err = karat(*words)
        assert code != 0 and "this is a language model" in out + err
    code, _, err = karat("score", language_model, rows, "--spec", "shepherd")
    assert code != 0 and "--spec shepherd is no file" in err and "math-shepherd" in err
    code, _, err = karat("train", "process", "--model", language_model, "--data", steps, "--spec", "math-shepherd")
    assert code != 0 and "--spec" in err
