"""The command as a person uses it: what it prints, where, and with which exit code."""

import json
from dataclasses import replace
from importlib.metadata import version

import pytest
import typer
from typer.testing import CliRunner

import toys
from karat.cli import _tables, base, score
from karat.cli._options import spelled
from karat.evaluation.base import evaluate
from karat.types import BadInput, Example, Labelled, Message, Pair, Reward

PAIR = Pair(Example((Message("user", "Q"),), "right"), Example((Message("user", "Q"),), "no"))
PAIRS = [{"prompt": f"What is {i}+1?", "chosen": f"{i + 1}", "rejected": f"{i + 3}!"} for i in range(24)]


@pytest.fixture
def pairs(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
    return path


def test_train_score_eval_doctor(karat, tmp_path, pairs, model_folder):
    output = tmp_path / "trained"
    settings = ("--learning-rate", "1e-3", "--batch-size", "8", "--center", "0.01", "--weight-decay", "0.01")
    code, out, err = karat(
        "train", "bradley_terry", "--model", model_folder, "--data", pairs, "--output", output, "--json", *settings
    )
    assert code == 0, err
    assert json.loads(out)["folder"] == str(output)
    assert "train: " in err and "rows used" in err
    kept = (output / "run.yaml").read_text()
    assert "center: 0.01" in kept and "weight_decay: 0.01" in kept
    assert {"report.html", "summary.json", "reward_spec.json", "log.jsonl"} <= {p.name for p in output.iterdir()}

    answers = tmp_path / "answers.jsonl"
    answers.write_text('{"id": 7, "prompt": "What is 1+1?", "response": "2"}\n')
    code, out, _ = karat("score", output, answers)
    row = json.loads(out)
    assert code == 0 and row["id"] == 7 and isinstance(row["reward"], float) and row["unscored"] is None
    code, out, err = karat("score", output, answers, "--output", tmp_path / "scores.parquet")
    assert code == 0 and "scored 1 of 1 rows" in out

    code, out, err = karat("eval", output, pairs, "--output", tmp_path / "found", "--json")
    assert code == 0, err
    assert json.loads(out)[0]["judged"] == 24
    assert (tmp_path / "found" / "report.html").is_file()

    code, out, _ = karat("doctor", output)
    assert code == 0 and "golden scores" in out and "WRONG" not in out


def test_reasons_of_unscored_rows_are_counted_on_stderr(karat, tmp_path, model_folder):
    long = "".join(json.dumps({"prompt": "p" * n, "response": "r"}) + "\n" for n in (600, 700))
    (tmp_path / "bad.jsonl").write_text(long)
    (tmp_path / "some.jsonl").write_text(long + '{"prompt": "p", "response": "r", "note": "\\ud83d"}\n')
    for name, wanted in (("bad", 1), ("some", 0)):
        data, output = tmp_path / f"{name}.jsonl", tmp_path / f"{name}.parquet"
        code, out, err = karat("score", model_folder, data)
        assert code == wanted and "unscored 2: … tokens are more than --max-length 512" in err
        assert len(out.splitlines()) == 3 - wanted and (wanted or r'"note": "\ud83d"' in out)
        code, out, err = karat("score", model_folder, data, "--output", output)
        assert code == wanted and "unscored 2: … tokens are more than" in err


def test_many_reasons_are_five_lines(capsys):
    with pytest.raises(typer.Exit):
        score._end(False, {f"reason {'x' * i}": 7 - i for i in range(7)})
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 5 and said[-1] == "unscored 6: 3 other reasons, by row"


def test_settings_from_yaml_and_options_that_win(karat, tmp_path, pairs, model_folder):
    file = tmp_path / "run.yaml"
    file.write_text(f"kind: bradley_terry\nmodel: {model_folder}\ndata: [{pairs}]\nepochs: 3\nseed: 5\n")
    code, _, err = karat("train", "--config", file, "--output", tmp_path / "o", "--epochs", "1", "--max-steps", "1")
    assert code == 0, err
    kept = (tmp_path / "o" / "run.yaml").read_text()
    assert "epochs: 1.0" in kept and "seed: 5" in kept


PATHS = ("--model", "m", "--data", "d", "--output", "o")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["scor"], 2, "score"),
        (["score"], 2, "MODEL"),
        (["train", "bradley_terry", "--lerning-rate", "1"], 2, "learning-rate"),
        (["train", "bradley_terry", "--centre", "1"], 2, "center"),
        (["train", "bradley_terry", "--dta", "d"], 2, "did you mean '--data'?"),
        (["train", "--config", "nope.yaml"], 1, "there is no file nope.yaml"),
        (["train", "bradley_terry", "--model", "m"], 2, "give --data, --output"),
        (["train", "bradley_tery", "--model", "m", "--data", "d", "--output", "no/o"], 1, "bradley_terry"),
        (["score", "no-such-folder/x/y", "a.jsonl"], 1, "no folder"),
        (["score", "m", "a.jsonl", "--output", "scores.xlsx"], 1, ".parquet"),
        (["score", "m", "a.jsonl", "--poling", "mean"], 2, "pooling"),
        (["kinds", "outcom"], 1, "outcome"),
        (
            ["train", "bradley_terry", "--batch-size", "8", "--gradient-accumulation-steps", "3", *PATHS],
            1,
            "--batch-size 8 ",
        ),
    ],
)
def test_mistakes_get_a_sentence_and_an_exit_code(karat, tmp_path, monkeypatch, arguments, code, said):
    monkeypatch.chdir(tmp_path)
    got, out, err = karat(*arguments)
    assert got == code and out == ""
    assert said.lower() in err.lower() and "Traceback" not in err
    assert not list(tmp_path.iterdir())


def test_unknown_key_in_yaml(karat, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("kind: bradley_terry\nmodle: x\ndata: [y]\noutput: z\nmodel: m\n")
    code, _, err = karat("train", "--config", file)
    assert code == 1 and "'modle'" in err and "'model'" in err


def test_kinds_and_formats_for_programs(karat):
    code, out, _ = karat("kinds", "--json")
    assert code == 0 and set(json.loads(out)) >= {"bradley_terry", "outcome"}
    code, out, _ = karat("formats", "--json")
    assert code == 0 and set(json.loads(out)) >= {"preference", "hh", "outcome", "kwise"}
    code, out, _ = karat("kinds", "bradley_terry")
    assert code == 0 and "--center" in out


@pytest.mark.parametrize("arguments", [("train", "--help"), ("train", "bradley_terry", "--help")])
def test_help_says_where_the_options_of_a_kind_are(karat, arguments):
    code, out, _ = karat(*arguments)
    assert code == 0 and "`karat kinds bradley_terry` lists them with their defaults" in " ".join(out.split())


def test_version(karat):
    assert karat("--version") == (0, f"karat {version('karat')}\n", "")


def test_messages_spell_options_as_they_are_typed(karat, tmp_path, pairs, model_folder):
    more = ("--max-length", "12", "--over-length", "error")
    output = tmp_path / "over_length=drop" / "o"
    code, _, err = karat("train", "bradley_terry", "--model", model_folder, "--data", pairs, "--output", output, *more)
    assert code == 1 and "--max-length 12;" in err
    assert "--over-length cut_prompt to cut" in err and err.endswith("with --over-length drop\n")
    output.mkdir(parents=True, exist_ok=True)
    _, _, err = karat("train", "bradley_terry", "--model", model_folder, "--data", pairs, "--output", output)
    assert str(output) in err, "a path is no option"


@pytest.mark.parametrize(
    ("message", "spelt"),
    [
        ("use batch_size=8.", "use --batch-size 8."),
        ("raise max_length=8.5, or", "raise --max-length 8.5, or"),
        ("/tmp/my layout=chat is there; use layout=concat", "/tmp/my layout=chat is there; use --layout concat"),
        ("/tmp/my layout=chat: use (eos='append')", "/tmp/my layout=chat: use (--eos append)"),
        ("layout=chat.jsonl and train_layout=chat", "layout=chat.jsonl and train_layout=chat"),
    ],
)
def test_settings_are_spelt_as_options_and_paths_stay(message, spelt):
    assert spelled(message) == spelt


def evaluated(monkeypatch, folder):
    """Run `karat eval` without a model: what it makes of its results."""
    found = evaluate(lambda examples: [Reward(float(len(e.response))) for e in examples], [PAIR])
    monkeypatch.setattr("karat.load", lambda *_, **__: None)
    monkeypatch.setattr("karat.evaluation._files.evaluate_files", lambda *_, **__: [found])
    words = ["eval", "m", "d", "--output", str(folder), "--json"]
    CliRunner().invoke(base.app(), words, catch_exceptions=False)


def test_figures_whose_reader_has_gone_are_in_the_report(monkeypatch, tmp_path):
    def gone(*_):
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr("karat.cli.eval.print", gone, raising=False)
    evaluated(monkeypatch, tmp_path / "found")
    assert json.loads((tmp_path / "found" / "summary.json").read_text())[0]["judged"] == 1


def test_figures_that_cannot_be_written_are_printed(monkeypatch, tmp_path):
    def full(*_):
        raise BadInput("the disk is full")

    printed = []
    monkeypatch.setattr("karat.evaluation._files.write_run", full)
    monkeypatch.setattr("karat.cli.eval.print", printed.append, raising=False)
    with pytest.raises(BadInput, match="full"):
        evaluated(monkeypatch, tmp_path / "found")
    assert json.loads(printed[0])[0]["judged"] == 1


@pytest.mark.parametrize(
    ("items", "said"),
    [
        ([PAIR, replace(PAIR, preference=0.5)], "tied 1: their label prefers no answer"),
        ([Labelled(PAIR.chosen, v) for v in (0.0, 0.5, 1.0)], "tied 1: their label is exactly 0.5, neither right nor"),
    ],
)
def test_what_is_tied_is_said_in_the_words_of_the_items(capsys, items, said):
    _tables.result(evaluate(lambda examples: [Reward(1.0)] * len(examples), items))
    assert said in capsys.readouterr().out


def test_doctor_says_what_is_wrong(karat, tmp_path):
    folder = toys.save(tmp_path / "m")
    (folder / "model.safetensors").write_bytes(b"not weights")
    code, out, _ = karat("doctor", folder, "--json")
    (finding,) = json.loads(out)
    assert code == 1 and not finding["ok"]


def test_a_fault_of_karat_is_one_sentence_too(karat, monkeypatch):
    def broken(**_):
        raise RuntimeError("first line\nsecond line")

    monkeypatch.setattr("karat.rewards.base.kinds", broken)
    code, out, err = karat("kinds")
    assert code == 1 and out == "" and len(err.splitlines()) == 1 and "first line" in err
