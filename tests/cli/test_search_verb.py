"""The verb `search`: real files, wrong words, and a served reward model."""

import json
import os
import re
import subprocess
import sys
import time

import pytest

import toys
from karat import arithmetic, load
from karat.formats import base as formats


@pytest.fixture
def data(tmp_path):
    rows = [{"prompt": p.question, "answer": p.answer} for p in arithmetic.problems(6, split="test")]
    formats.write_rows(rows, str(tmp_path / "p.jsonl"))
    return tmp_path / "p.jsonl"


def test_a_search_and_its_replay(karat, data, tmp_path):
    out = tmp_path / "o.jsonl"
    code, said, err = karat("search", "majority", data, "--policy", "arithmetic:skill=1", "--output", out, "--n", 3)
    assert (code, err) == (0, "") and "right 100.0%" in said and "FLOPs: policy not known" in said
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert all(row["correct"] and len(row["candidates"]) == 3 for row in rows)
    again = ("search", "majority", data, "--policy", f"replay:{out}", "--output", tmp_path / "r.jsonl", "--json")
    code, said, err = karat(*again, "--n", 4, "--policy-parameters", "1e9")
    found = json.loads(said)
    assert code == 0 and found["accuracy"]["value"] == 1 and found["spent"]["policy_flops"] > 1e9
    assert "missing 6: only 3 answers to this prompt were recorded" in err


def test_a_local_reward_model_takes_its_options(karat, data, tmp_path, model_folder, monkeypatch):
    base = ("search", "weighted_best_of_n", data, "--policy", "arithmetic", "--reward", model_folder, "--n", 2)
    code, _, err = karat(*base, "--output", tmp_path / "o.jsonl")
    assert code == 1 and "--activation sigmoid" in err and "normalize" in err
    code, _, err = karat(*base, "--output", tmp_path / "o.jsonl", "--activation", "sigmoid", "--aggregate", "last")
    assert code == 1 and "no rewards of steps" in err and "leave aggregate out" in err
    tournament = ("search", "tournament", *base[2:], "--output", tmp_path / "o.jsonl", "--worth", "borda")
    code, _, err = karat(*tournament)
    assert code == 1 and "worth is for models that compare two answers" in err
    monkeypatch.setattr("karat.progress._EVERY", -1.0)
    code, said, err = karat(*base, "--output", tmp_path / "o.jsonl", "--activation", "sigmoid", "--json")
    assert "scored 8/8" in err and "searched 6/6" in err
    assert code == 0 and json.loads(said)["spent"]["reward_flops"] > 0
    code, _, err = karat(*base, "--output", tmp_path / "o.jsonl")
    assert code == 1 and "already there" in err


def test_how_the_reward_model_computes_is_chosen(karat, data, tmp_path, model_folder, monkeypatch):
    asked = []
    monkeypatch.setattr("karat.load", lambda path, **how: asked.append(how) or load(path, **how))
    base = ("search", "best_of_n", data, "--policy", "arithmetic", "--reward", model_folder, "--n", 2)
    code, _, err = karat(*base, "--output", tmp_path / "o.jsonl", "--deterministic")
    assert code == 0, err
    assert asked[0]["deterministic"] is True and "compiled" not in asked[0]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("beem",), "did you mean 'beam'"),
        (("beam", "--widht", "2"), "did you mean '--width'"),
        (("beam", "--n", "6"), "multiple"),
        (("beam",), "--reward"),
        (("majority", "--budget", "0"), "budget"),
        (("majority", "--task", "none.yaml"), "cannot be read"),
        (("majority", "--temperature", "0"), "--temperature is for an endpoint or a local policy, and the arithmetic"),
        (("majority", "--batch-size", "9"), "--batch-size is for a local policy"),
        (("majority", "--reward", "rm"), "leave --reward out"),
        (("majority", "--max-length", "9"), "--max-length is for a reward model, and there is none"),
        (("best_of_n", "--compiled"), "give a reward model with --reward"),
        (("majority", "--compiled"), "--compiled is for a reward model, and there is none"),
        (("beam", "--reward", "http://127.0.0.1:9", "--compiled"), "give --compiled to karat serve"),
        (("beam", "--reward", "replay:rm.jsonl", "--deterministic"), "leave out deterministic"),
        (("best_of_n", "--width", "2"), "no option --width of best_of_n; it is an option of beam, dvts, mcts"),
        (("majority", "--zork", "2"), "no option --zork; --help says"),
        (("beam", "--reward", "rm", "--normalize", "softmax"), "makes weights for choose='weighted'"),
        (("adaptive", "--weigh", "count", "--normalize", "sigmoid"), "makes weights of rewards"),
    ],
)
def test_wrong_words(karat, data, tmp_path, words, said):
    code, _, err = karat(
        "search", words[0], data, "--policy", "arithmetic", "--output", tmp_path / "o.jsonl", *words[1:]
    )
    assert code in (1, 2) and said in err and not (tmp_path / "o.jsonl").exists()


def test_nothing_found_is_a_failure(karat, tmp_path):
    formats.write_rows([{"prompt": "What is love?", "answer": "x"}], str(tmp_path / "p.jsonl"))
    out = tmp_path / "o.jsonl"
    code, _, err = karat("search", "majority", tmp_path / "p.jsonl", "--policy", "arithmetic", "--output", out)
    assert code == 1 and "missing 16" in err and json.loads(out.read_text())["unsolved"]


@pytest.mark.full
def test_a_served_reward_model_is_searched_with(karat, data, tmp_path):
    folder = toys.save(tmp_path / "prm", toys.step_model(max_position_embeddings=2048))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TRANSFORMERS_OFFLINE": "1"}
    spec, log = ("--kind", "process", "--step-token", "\\n"), tmp_path / "serve.log"
    serve = [sys.executable, "-m", "karat", "serve", str(folder), *spec, "--port", "0"]
    base = ("search", "beam", data, "--policy", "arithmetic", "--n", 4, "--width", 2, "--json")
    with log.open("w") as file, subprocess.Popen(serve, stderr=file, env=environment) as server:
        try:
            while not (url := re.search(r"serving at (\S+)\n", log.read_text())):
                assert server.poll() is None, log.read_text()
                time.sleep(0.1)
            code, said, err = karat(*base, "--reward", url[1], "--output", tmp_path / "a.jsonl")
            assert code == 0, err
            assert json.loads(said)["spent"]["reward_flops"] is None  # it says no size
        finally:
            server.terminate()
    code, said, _ = karat(*base, "--reward", folder, "--output", tmp_path / "b.jsonl", *spec)
    assert code == 0 and json.loads(said)["spent"]["reward_flops"] > 0
    served, local = ([json.loads(x) for x in (tmp_path / f"{n}.jsonl").read_text().splitlines()] for n in "ab")
    assert [row["response"] for row in served] == [row["response"] for row in local]
    assert [row["reward"] for row in served] == pytest.approx([row["reward"] for row in local], abs=1e-5)
