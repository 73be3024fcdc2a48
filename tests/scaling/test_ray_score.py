"""A cluster of two nodes of one core each gives what one process gives, whoever is killed on the way."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from karat import arithmetic, load
from karat.rewards import _offline
from karat.scaling import _pool, ray_score
from karat.scaling._shards import Open

pytestmark = [pytest.mark.full, pytest.mark.filterwarnings("ignore")]
ROWS, SIZE = 600, 50


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Answers to prompts that come back in other places, and two rows that cannot be read."""
    path = tmp_path_factory.mktemp("data") / "answers.jsonl"
    pairs = arithmetic.pair_rows(ROWS // 4, 0)
    rows = [{"prompt": pairs[i * 7 % len(pairs)]["prompt"], "response": f"It is {i}."} for i in range(ROWS)]
    rows[5]["response"], rows[ROWS // 2]["response"] = None, 7
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def alone(model_folder, data, tmp_path_factory):
    """The bytes that one process writes."""
    output = tmp_path_factory.mktemp("alone") / "scores.jsonl"
    _offline.score_file(load(model_folder, deterministic=True), data, output, {})
    return output.read_bytes()


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(ray_score, "SHARD", SIZE)


@pytest.fixture
def marks(address):
    """An empty folder that workers know too."""
    folder = Path(os.environ["MARKS"])
    for mark in folder.iterdir():
        mark.unlink()
    return folder


class Met(Open):
    """Opens a model that does something the first time that it meets certain answers, in whichever worker."""

    def __call__(self):
        model = super().__call__()
        score_many = model.score_many

        def met(examples, **options):
            examples = list(examples)
            for example in examples:
                self.meet(example.response)
            return score_many(examples, **options)

        model.score_many = met
        return model


class KilledOnce(Met):
    """Its worker is killed the first time that it meets each of three answers."""

    def meet(self, response):
        mark = Path(os.environ["MARKS"]) / response
        if response in ("It is 17.", "It is 200.", "It is 555.") and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)


class Deadly(Met):
    """Its worker dies at one answer each time, and raises at another."""

    def meet(self, response):
        if response == "It is 200.":
            os._exit(1)
        if response == "It is 17.":
            raise ValueError("no such answer")


class Held(Met):
    """Waits at an answer until it is let go."""

    def meet(self, response):
        while response == "It is 555." and (Path(os.environ["MARKS"]) / "hold").exists():
            time.sleep(0.05)


def until(condition):
    while not (found := condition()):
        time.sleep(0.05)
    return found


def replicas():
    """The processes of replicas."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if "Replica" in " ".join(process.cmdline()):
                found.append(process.pid)
        except psutil.Error:
            continue
    return found


def test_workers_that_are_killed_cost_nothing_but_time(address, model_folder, data, alone, marks, tmp_path):
    output = tmp_path / "scores.jsonl"
    found = ray_score.score_file(KilledOnce(str(model_folder), deterministic=True), data, output, address)
    assert len(list(marks.iterdir())) == 3
    assert output.read_bytes() == alone and not output.with_name("scores.jsonl.parts").exists()
    assert (found["rows"], found["scored"]) == (ROWS, ROWS - 2) and sum(found["unscored"].values()) == 2


DRIVER = """
import sys
from pathlib import Path
import test_ray_score as test
test.ray_score.SHARD = test.SIZE
model, data, output, address = sys.argv[1:]
test.ray_score.score_file(test.Held(model, deterministic=True), data, Path(output), address)
"""


def test_the_same_call_goes_on_after_the_driver_was_killed(address, model_folder, data, alone, marks, tmp_path, capsys):
    output, parts, hold = tmp_path / "scores.jsonl", tmp_path / "scores.jsonl.parts", marks / "hold"
    hold.touch()
    command = [sys.executable, "-c", DRIVER, str(model_folder), data, str(output), address]
    driver = subprocess.Popen(command)
    until(lambda: len(list(parts.glob("part-*"))) >= 3 or driver.poll() is not None)
    assert driver.poll() is None and replicas()
    driver.kill()
    driver.wait()
    until(lambda: not replicas())  # nobody works for a driver that has gone, and they would not let go of their CPUs
    done = len(list(parts.glob("part-*")))
    hold.unlink()
    ray_score.score_file(Held(str(model_folder), deterministic=True), data, output, address)
    assert 3 <= done < ROWS // SIZE and f"of {ROWS} rows are scored already" in capsys.readouterr().err
    assert output.read_bytes() == alone


def test_rows_that_kill_their_worker_are_named_and_the_others_scored(
    address, model_folder, data, alone, tmp_path, monkeypatch
):
    monkeypatch.setattr(ray_score, "SHARD", 1)
    monkeypatch.setattr(_pool, "TRIES", 2)
    few, output, places = tmp_path / "few.jsonl", tmp_path / "scores.jsonl", (17, 200, 201)
    lines = Path(data).read_text().splitlines(keepends=True)
    few.write_text("".join(lines[place] for place in places))
    ray_score.score_file(Deadly(str(model_folder), deterministic=True), str(few), output, address)
    raised, died, scored = output.read_text().splitlines()
    assert json.loads(raised)["unscored"] == "ValueError: no such answer"
    assert "a worker died each of the 2 times" in json.loads(died)["unscored"]
    assert scored == alone.decode().splitlines()[201]


def test_what_cannot_be_is_said_in_a_sentence(karat, address, model_folder, data, tmp_path):
    output = tmp_path / "scores.jsonl"
    code, _, err = karat("score", tmp_path / "no-model", data, "--output", output, "--ray", address)
    assert code == 1 and err.count("\n") == 1 and "no-model" in err and not output.exists()
    code, _, err = karat("score", model_folder, data, "--output", output, "--ray", address, "--replicas", "3")
    assert code == 1 and "too few for 3 replicas; give fewer --replicas" in err
