"""`karat bench` and `--deterministic` as a person uses them."""

import json

import pytest

import toys
from karat.rewards import _offline, _speed_workloads


@pytest.mark.full
def test_a_table_for_people(karat, model_folder, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    code, out, err = karat("bench", model_folder, "--repeats", "1", "--max-length", "300")
    assert code == 0, err
    rows = [line.split()[:2] for line in out.splitlines() if line.split()[:1] and line.split()[0] in _names()]
    assert rows == [[name, side] for name in _names() for side in ("karat", "loop", "sorted")]
    assert "W2: best of 16; the prompt has" in out and "as the model takes 300 tokens" in out
    assert "karat: shared prefixes, float32 on cpu, threads 1" in out and "GFLOP/s" in out


def _names():
    return ["W1", "W2", "W3", "W4"]


@pytest.fixture
def small(monkeypatch):
    """Workloads of a few sequences."""
    for name, size in (("PAIRS", 4), ("GROUP", 4), ("BEAMS", 2), ("STEPS", 4), ("SHOTS", 2)):
        monkeypatch.setattr(_speed_workloads, name, size)


def test_json_for_programs_and_a_picture(karat, model_folder, tmp_path, small):
    options = ("--repeats", "2", "--deterministic", "--device", "cpu", "--json", "--plot", tmp_path / "speed.svg")
    code, out, _ = karat("bench", model_folder, *options)
    found = json.loads(out)
    assert code == 0 and set(found) == {"workloads", "rows", "machine"} and len(found["rows"]) == 12
    assert [len(row["seconds"]) for row in found["rows"]] == [2] * 12
    assert "<svg" in (tmp_path / "speed.svg").read_text()


def test_figures_whose_picture_cannot_be_written_are_printed(karat, model_folder, monkeypatch, tmp_path, small):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    code, out, err = karat("bench", model_folder, "--repeats", "1", "--json", "--plot", tmp_path / "speed.svg")
    assert code == 1 and json.loads(out)["rows"] and "No space left on device); choose another --plot" in err


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["bench"], 2, "model"),
        (["bench", "m", "--repeats", "0"], 2, "repeats"),
        (["bench", "m", "--repeat", "3"], 2, "did you mean '--repeats'?"),
        (["bench", "m", "--plot", "speed.pdf"], 1, ".svg, .png, .html"),
        (["bench", "no-such-folder/x/y"], 1, "no folder"),
        (["score", "m", "d", "--determinstic"], 2, "did you mean '--deterministic'?"),
    ],
)
def test_mistakes_get_a_sentence_and_an_exit_code(karat, tmp_path, monkeypatch, arguments, code, said):
    monkeypatch.chdir(tmp_path)
    got, out, err = karat(*arguments)
    assert got == code and out == "" and said in " ".join(err.lower().split()) and "Traceback" not in err


def test_a_model_with_too_few_positions(karat, tmp_path):
    folder = toys.save(tmp_path / "m", toys.reward_model(max_position_embeddings=20))
    code, out, err = karat("bench", folder)
    assert code == 1 and out == "" and err.endswith("which hold none of the built-in answers; raise max_length\n")


def test_score_resumes_by_whether_it_is_deterministic(karat, model_folder, tmp_path, monkeypatch):
    data, output = tmp_path / "answers.jsonl", tmp_path / "scores.jsonl"
    data.write_text('{"prompt": "What is 1+1?", "response": "2"}\n')

    def stopped(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(_offline, "finish", stopped)
        assert karat("score", model_folder, data, "--output", output, "--deterministic")[0] != 0
    code, _, err = karat("score", model_folder, data, "--output", output)
    assert code == 1 and "scored with another model, data or options" in err
    code, out, err = karat("score", model_folder, data, "--output", output, "--deterministic")
    assert code == 0 and "scored 1 of 1 rows" in out and "going on: 1 of 1 rows are scored already" in err


@pytest.mark.parametrize(
    ("verb", "given"),
    [
        ("score", []),
        ("score", ["--deterministic"]),
        ("score", ["--compiled"]),
        ("eval", []),
        ("eval", ["--deterministic"]),
        ("eval", ["--compiled"]),
    ],
)
def test_how_it_runs_reaches_the_model(karat, model_folder, tmp_path, monkeypatch, verb, given):
    from karat.rewards import _local

    asked = []
    whole = _local.LocalModel.__init__

    def noted(self, parts, engine=None, deterministic=False, compiled=False):
        asked.extend(["--deterministic"] * deterministic + ["--compiled"] * compiled)
        whole(self, parts, engine, deterministic)

    monkeypatch.setattr(_local.LocalModel, "__init__", noted)
    rows = {"score": {"prompt": "1+1?", "response": "2"}, "eval": {"prompt": "1+1?", "chosen": "2", "rejected": "3"}}
    data = tmp_path / "d.jsonl"
    data.write_text(json.dumps(rows[verb]) + "\n")
    code, _, err = karat(verb, model_folder, data, *given)
    assert code == 0 and asked == given, err


def test_an_evaluation_says_whether_it_is_deterministic(karat, model_folder, tmp_path):
    data = tmp_path / "d.jsonl"
    data.write_text('{"prompt": "1+1?", "chosen": "2", "rejected": "3"}\n')
    code, _, err = karat("eval", model_folder, data, "--deterministic", "--output", tmp_path / "found")
    assert code == 0, err
    assert "deterministic" in (tmp_path / "found" / "report.html").read_text()
