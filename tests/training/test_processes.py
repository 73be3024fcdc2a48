"""Two processes are one: the same losses, the same weights, the same figures, and one voice."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import kit
import pytest
import torch
from safetensors.torch import load_file

pytestmark = pytest.mark.full
# `--cpu --num_processes 2` would start one process only (accelerate 1.15): without GPUs too it is `--multi_gpu` that
# starts several. The rest is all that the launcher would otherwise print its own words about; port 0 is any free one.
PORT = ["--main_process_port", "0"]
DEFAULTS = ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", *PORT]
LAUNCH = [
    str(Path(sys.executable).with_name("accelerate")),
    *["launch", "--multi_gpu", "--num_processes", "2", *DEFAULTS, "-m", "karat"],
]
ENV = {**os.environ, "OMP_NUM_THREADS": "1"}


def command(start, model, data, output, *more):
    settings = ["train", "bradley_terry", "--batch-size", "4", "--learning-rate", "1e-3", "--epochs", "2"]
    paths = ["--model", str(model), "--data", data, "--output", str(output), "--eval", "0.2"]
    return [*start, *settings, *paths, *more]


def launched(*arguments):
    done = subprocess.run(command(*arguments), capture_output=True, text=True, env=ENV)
    assert done.returncode == 0, done.stderr
    return done


def log(folder):
    return kit.lines(folder / "log.jsonl")


@pytest.mark.parametrize(
    "more",
    [
        ("--gradient-accumulation-steps", "2"),
        ("--method", "frozen"),
        ("--method", "lora", "--report-to", "tensorboard"),
    ],
)
def test_two_processes_land_where_one_does(model_folder, tmp_path, more):
    data = kit.pairs(tmp_path, 23)  # the last batch of an epoch is ragged
    one = launched([sys.executable, "-m", "karat"], model_folder, data, tmp_path / "one", *more)
    two = launched(LAUNCH, model_folder, data, tmp_path / "two", *more)
    losses = [[line["loss"] for line in log(tmp_path / n) if "loss" in line] for n in ("one", "two")]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4) and len(losses[0]) == 10
    held_out = [[line for line in log(tmp_path / n) if "eval_loss" in line] for n in ("one", "two")]
    for first, second in zip(*held_out, strict=True):
        assert first == {name: pytest.approx(value, abs=1e-4) for name, value in second.items()}
    name = "adapter_model.safetensors" if "lora" in more else "model.safetensors"
    weights = [load_file(tmp_path / n / name) for n in ("one", "two")]
    for tensor in weights[0]:
        torch.testing.assert_close(weights[0][tensor], weights[1][tensor], atol=1e-4, rtol=1e-4)
    assert (tmp_path / "one" / "rows.jsonl").read_text() == (tmp_path / "two" / "rows.jsonl").read_text()
    assert [*map(_what, one.stderr.splitlines())] == [*map(_what, two.stderr.splitlines())]
    assert two.stdout.count("saved ") == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one", "pairs.jsonl", "two"]
    events = list((tmp_path / "two").rglob("events.out*"))
    assert len(events) == ("tensorboard" in more)


def _what(line: str) -> str:
    """A line without its figures."""
    return re.sub(r"[\d.]+", "#", line)


def test_an_error_is_said_once(model_folder, tmp_path):
    data = kit.pairs(tmp_path)
    arguments = command(LAUNCH, model_folder, data, tmp_path / "out", "--max-length", "20")
    done = subprocess.run(arguments, capture_output=True, text=True, env=ENV)
    assert done.returncode == 1
    assert done.stderr.count("karat: no row of the train data can be used") == 1
    assert not (tmp_path / "out").exists()


def test_stopping_one_process_stops_both_at_one_step(model_folder, tmp_path):
    data = kit.pairs(tmp_path, 40)
    arguments = command(LAUNCH, model_folder, data, tmp_path / "out", "--epochs", "20")
    process = subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENV, start_new_session=True
    )
    said = ""
    for line in process.stderr:
        said += line
        if line.startswith("step 2") and "loss" in line:
            os.killpg(process.pid, signal.SIGINT)  # as a terminal does on Ctrl-C
            break
    said += process.communicate(timeout=200)[1]
    assert said.count("karat: stopped after step") == 1
    assert list(tmp_path.glob("out.partial/checkpoint-*/rng_state_1.pth"))  # there were two
    launched(LAUNCH, model_folder, data, tmp_path / "out", "--epochs", "20")
    assert [x["step"] for x in log(tmp_path / "out") if "loss" in x] == list(range(1, 161))
