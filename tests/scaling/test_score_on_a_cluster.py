"""`karat score --ray` with a stand-in for Ray, and before there is a cluster."""

import json
import sys
from types import SimpleNamespace

import pytest
from stand_in import Ray

from karat.scaling import ray_score


def test_bad_usage_and_a_missing_ray(karat, monkeypatch, tmp_path):
    code, _, err = karat("score", "model", "data.jsonl", "--output", tmp_path / "a.jsonl", "--replicas", "3")
    assert code == 2 and "--ray" in err
    code, _, err = karat("score", "model", "data.jsonl", "--ray", "local")
    assert code == 2 and "--output" in err
    monkeypatch.setitem(sys.modules, "ray", None)
    code, _, err = karat("score", "model", "data.jsonl", "--output", tmp_path / "a.jsonl", "--ray", "local")
    assert code == 1 and err == "karat: scoring on a cluster needs Ray; install it with `pip install 'karat[ray]'`\n"


def test_a_cluster_that_is_not_there(karat, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace())
    for address in ("127.0.0.1:1", "nowhere", "127.0.0.1:port", ":1"):
        code, _, err = karat("score", "model", "data.jsonl", "--output", tmp_path / "a.jsonl", "--ray", address)
        assert code == 1 and err.startswith(f"karat: there is no Ray cluster at {address} (") and err.count("\n") == 1


ROWS = 40


@pytest.fixture
def folder(tmp_path):
    rows = [{"prompt": f"{i * 7 % 10}?", "response": f"It is {i}."} for i in range(ROWS)]
    rows[3]["response"] = None
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


@pytest.fixture
def score(karat, model_folder, folder, monkeypatch):
    """Score the rows into a file of that name, on a stand-in for a cluster if one is given."""
    monkeypatch.setattr(ray_score, "SHARD", 8)

    def run(name, ray=None):
        monkeypatch.setattr(ray_score, "connect", lambda address: ray)
        command = ("score", model_folder, folder / "answers.jsonl", "--output", folder / name, "--deterministic")
        return karat(*command, *(("--ray", "here") if ray else ()))

    return run


def test_the_same_bytes_as_from_one_process(score, folder):
    ray = Ray()
    code, out, err = score("cluster.jsonl", ray)
    assert (code, err) == (0, "unscored 1: `response` is missing\n") and "scored 39 of 40 rows" in out and ray.ended
    assert score("alone.jsonl")[0] == 0
    assert (folder / "cluster.jsonl").read_bytes() == (folder / "alone.jsonl").read_bytes()
    assert not list(folder.glob("*.parts"))


def test_a_row_that_kills_is_named_and_a_killed_driver_is_gone_on_from(score, folder):
    def killed(ref):
        if ref.name == "score" and 7 in ref.given[0].places and len(list(folder.glob("*.parts/part-*"))) >= 2:
            raise KeyboardInterrupt
        return False

    assert score("cluster.jsonl", Ray(dies=killed))[0] != 0
    there = len(list(folder.glob("*.parts/part-*")))
    ray = Ray(dies=lambda ref: ref.name == "score" and 7 in ref.given[0].places)
    code, _, err = score("cluster.jsonl", ray)
    assert code == 0 and 0 < there < ROWS // 8 and f"of {ROWS} rows are scored already" in err
    assert score("alone.jsonl")[0] == 0
    rows, wanted = ((folder / name).read_text().splitlines() for name in ("cluster.jsonl", "alone.jsonl"))
    assert [n for n, (row, other) in enumerate(zip(rows, wanted, strict=True)) if row != other] == [7]
    assert "a worker died each of the 3 times" in json.loads(rows[7])["unscored"]
