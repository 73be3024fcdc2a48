"""`karat calibrate` as a person uses it: data, figures, and a folder that scores and is evaluated."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

import toys
from karat import arithmetic


@pytest.fixture
def folder(model_folder, tmp_path, monkeypatch):
    shutil.copytree(model_folder, tmp_path / "m")
    answers = [{name: row[name] for name in ("prompt", "response", "label")} for row in arithmetic.candidate_rows(40)]
    rows = {"pairs": arithmetic.pair_rows(120), "answers": answers}
    turned = [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in rows["pairs"]]
    rows |= {"turned": turned, "right": [{**row, "label": 1} for row in answers]}
    rows["long"] = [{**rows["pairs"][0], "prompt": "p" * 600}, *rows["pairs"]]
    for name, found in rows.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("method", "data", "figures"),
    [
        ("length", "pairs", ["length correlation, within pairs", "length correlation, over answers", "accuracy"]),
        ("isotonic", "answers", ["negative log-likelihood, nats", "calibration error (ECE)"]),
    ],
)
def test_fit_score_evaluate(karat, folder, method, data, figures):
    code, out, err = karat("calibrate", "m", f"{data}.jsonl", "--method", method, "--output", "c", "--json")
    assert code == 0 and err == "", err
    found = json.loads(out)
    assert list(found["figures"]) == figures and found["how"]["method"] == method
    assert all(len(f["before_interval"]) == 2 and f["after"] is not None for f in found["figures"].values())
    assert found["fitted"]["held_out"] > 0 and found["fitted"]["data"] == f"{data}.jsonl"
    code, out, err = karat("score", "c", "answers.jsonl", "--output", "o.jsonl")
    assert code == 0 and "scored 160 of 160" in out, err
    code, out, err = karat("eval", "c", f"{data}.jsonl", "--json")
    assert code == 0 and json.loads(out)[0]["judged"] > 0, err


def test_temperature_of_either_order_and_the_table(karat, folder):
    """A seeded model prefers one order of the pairs, and the other order has no temperature."""
    found = {}
    for data in ("pairs", "turned"):
        code, out, err = karat("calibrate", "m", f"{data}.jsonl", "--method", "temperature", "--output", data)
        found[code] = (out, err)
    assert found.keys() == {0, 1} and "no temperature mends" in found[1][1] and found[1][0] == ""
    assert (
        "before" in found[0][0] and "on 60 rows of other prompts" in found[0][0] and "fitted on 60 rows" in found[0][0]
    )


def test_nothing_held_out_and_unscored_rows(karat, folder):
    code, out, err = karat("calibrate", "m", "long.jsonl", "--method", "length", "--output", "c", "--held-out", "0")
    assert code == 0 and "fitted on 120 rows" in out and "before" not in out
    assert err.startswith("unscored 1: ") and "--max-length" in err


def test_options_of_the_spec_are_kept(karat, folder):
    arguments = ("--method", "platt", "--output", "c", "--max-length", "400", "--json")
    code, _, err = karat("calibrate", "m", "answers.jsonl", *arguments)
    assert code == 0, err
    kept = json.loads((folder / "c" / "reward_spec.json").read_text())
    assert kept["kind"] == "calibrated" and kept["model"]["options"] == {"max_length": 400}
    assert kept["model"]["path"] == "../m"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("m", "pairs.jsonl", "--method", "temprature"), "did you mean 'temperature'"),
        (("m", "pairs.jsonl", "--method", "platt"), "holds other rows than labelled answers"),
        (("m", "answers.jsonl", "--method", "length"), "holds other rows than pairs"),
        (("m", "right.jsonl", "--method", "platt"), "every label is 1"),
        (("m", "pairs.jsonl", "--method", "length", "--held-out", "1"), "below 1"),
        (("none", "pairs.jsonl", "--method", "length"), "none"),
        (("m", "none.jsonl", "--method", "length"), "none.jsonl"),
        (("m", "pairs.jsonl", "--method", "temperature", "--activation", "sigmoid"), "--activation identity"),
    ],
)
def test_mistakes_get_a_sentence(karat, folder, arguments, said):
    code, out, err = karat("calibrate", *arguments, "--output", "x")
    assert code == 1 and out == "" and said in err and len(err.splitlines()) == 1, err
    assert not (folder / "x").exists()


def test_an_output_that_is_there_is_not_touched(karat, folder):
    code, _, err = karat("calibrate", "m", "pairs.jsonl", "--method", "length", "--output", "m")
    assert code == 1 and "already there" in err
    code, _, err = karat("calibrate", "m", "pairs.jsonl", "--method", "length", "--output", "2")
    assert code == 1 and "the folder to write" in err


@pytest.mark.full
def test_every_line_of_the_page(karat, folder):
    page = (Path(__file__).parents[2] / "docs" / "wrappers.md").read_text(encoding="utf-8")
    for seed in range(3):
        toys.save(folder / f"seed{seed}", toys.reward_model(seed=seed))
    # What the ensemble prefers is chosen nearly always, so that there is a temperature.
    karat("ensemble", "seed0", "seed1", "seed2", "--output", "judge", "--combine", "mean_minus_std", "--k", "0.5")
    rows = arithmetic.pair_rows(60)
    answers = [{"prompt": r["prompt"], "response": r[side]} for r in rows for side in ("chosen", "rejected")]
    (folder / "sides.jsonl").write_text("".join(json.dumps(row) + "\n" for row in answers))
    _, out, _ = karat("score", "judge", "sides.jsonl")
    rewards = [json.loads(line)["reward"] for line in out.splitlines()]
    for number, (row, a, b) in enumerate(zip(rows, rewards[::2], rewards[1::2], strict=True)):
        if (a < b) != (number % 8 == 0):
            row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = re.findall(r"```sh\n(.*?)```", page, re.S)[0].splitlines()
    assert len(lines) == 4
    for line in lines:
        name, *arguments = shlex.split(line)
        code, out, err = karat(*arguments)
        assert name == "karat" and code == 0 and out, (line, err)
