"""`karat selftrain` as a person uses it: the table, the JSON, further options, and what stops it."""

import json

import pytest

import karat as front
from karat import arithmetic


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def files(tmp_path):
    every = arithmetic.pair_rows(48, 0)
    write(tmp_path / "l.jsonl", every[:24])
    write(
        tmp_path / "u.jsonl",
        [{"prompt": row["prompt"], "responses": [row["rejected"], row["chosen"]]} for row in every],
    )
    return tmp_path


def arguments(files, model, *more):
    given = ["selftrain", "bradley_terry", "--model", model, "--data", files / "l.jsonl"]
    given += ["--unlabelled", files / "u.jsonl", "--output", files / "o", "--rounds", "1", "--confidence", "0.5"]
    return [*given, "--eval", files / "l.jsonl", "--learning-rate", "1e-3", *more]


@pytest.mark.full
def test_selftrain(karat, files, model_folder):
    more = ("--batch-size", "8", "--max-steps", "6", "--center", "0.01", "--max-length", "500")
    code, out, err = karat(*arguments(files, model_folder, *more))
    assert code == 0, err
    assert "24 labelled pairs, 24 held out, 24 unlabelled" in out and "held-out accuracy" in out
    assert f"saved {files / 'o'}, the model of round " in out
    assert "unlabelled rows left out 24: its prompt is held out" in err and "of 24 labels are surer than 0.5" in err
    told = json.loads((files / "o" / "selftrain.json").read_text())
    assert told["rounds"][-1]["round"] == 1 and told["rounds"][-1]["label_accuracy"] is None
    spec = json.loads((files / "o" / "reward_spec.json").read_text())
    assert spec["render"]["max_length"] == 500 and spec["options"]["center"] == 0.01
    assert len(front.load(files / "o").score("2+2?", ["4", "5"])) == 2
    assert "unscored" not in err
    # Again, elsewhere, for a program.
    config = files / "run.yaml"
    config.write_text("batch_size: 8\ntrainer:\n  max_steps: 6\noptions:\n  center: 0.01\nspec:\n  max_length: 500\n")
    again = [word if word != files / "o" else files / "p" for word in arguments(files, model_folder)]
    code, out, _ = karat(*again, "--config", config, "--json")
    assert code == 0 and len(out.splitlines()) == 1
    assert {**json.loads(out), "folder": ""} == {**told, "folder": ""}


@pytest.mark.full
def test_pairs_that_are_too_long_are_told(karat, files, model_folder):
    long = {"prompt": "q", "chosen": "a" * 300, "rejected": "b"}
    write(files / "u.jsonl", [*arithmetic.pair_rows(8, 7), long])
    more = ("--batch-size", "8", "--max-steps", "6", "--max-length", "250", "--json")
    code, out, err = karat(*arguments(files, model_folder, *more))
    assert code == 0 and "round 1: unlabelled pairs unscored 1: " in err and json.loads(out)["rounds"][1]["kept"] <= 8


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (("--confidence", "1"), 1, "no label is kept at 1 or above; give one from 0 to below 1"),
        (("--confidence", "0.8", "--precision", "0.9"), 1, "leave one out"),
        (("--restart", "prevous"), 1, "did you mean 'previous'?"),
        (("--unlabelled", "v.jsonl"), 1, "there is no file v.jsonl; the nearest is"),
        (("--unlabelled", "u.jsonl@2"), 1, "has a weight, but each unlabelled pair is used once"),
        (("--unlabelled", "l.jsonl"), 1, "no row of l.jsonl can be used: its prompt is held out"),
        (("--eval", "0"), 1, "labelled pairs of 0 prompts are held out"),
        (("--confidenc", "0.5"), 2, "did you mean '--confidence'"),
        (("--lerning-rate", "1"), 2, "did you mean '--learning-rate'"),
    ],
)
def test_mistakes_get_a_sentence(karat, files, model_folder, monkeypatch, options, code, said):
    monkeypatch.chdir(files)
    given = [word for word in map(str, arguments(files, model_folder))]
    for name, value in zip(options[::2], options[1::2], strict=True):
        if name in given and not (name == "--confidence" and "--precision" in options):
            given[given.index(name) + 1] = value
        elif name != "--confidence":
            given += [name, value]
    found, out, err = karat(*given)
    assert found == code and out == "" and said in " ".join(err.split()), err
    assert sorted(path.name for path in files.iterdir()) == ["l.jsonl", "u.jsonl"]


def test_the_unlabelled_rows_are_asked_for(karat, files):
    code, _, err = karat("selftrain", "bradley_terry", "--model", "m", "--data", files / "l.jsonl", "--output", "o")
    assert code == 2 and "--unlabelled" in err
