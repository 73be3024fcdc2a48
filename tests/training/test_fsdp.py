"""Weights that are shared out over two processes learn what one process learns, and leave the same checkpoint."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import kit
import pytest
import torch
from safetensors.torch import load_file
from test_processes import DEFAULTS, PORT

import karat

pytestmark = pytest.mark.full
DEPLOY = Path(__file__).parents[2] / "deploy"
WATCHED = str(Path(__file__).with_name("watched.py"))
ONE = [sys.executable]
LAUNCH = [str(Path(sys.executable).with_name("accelerate")), "launch", "--num_processes", "2"]
FSDP = [*LAUNCH, *PORT, "--config_file", str(DEPLOY / "fsdp2.yaml")]
ZERO = [*LAUNCH, *PORT, "--config_file", str(DEPLOY / "zero3.yaml")]
DDP = [*LAUNCH, "--multi_gpu", *DEFAULTS]
ENV = {**os.environ, "OMP_NUM_THREADS": "1"}


def trained(start, model, data, output, *more, stop=0, code=0):
    settings = ["--batch-size", "4", "--learning-rate", "1e-3", "--max-steps", "20", "--eval", "0.2"]
    paths = ["--model", str(model), "--data", data, "--output", str(output)]
    watch = [WATCHED, str(output.with_name(output.name + ".watch")), str(stop)]
    command = [*start, *watch, "train", "bradley_terry", *settings, *paths, *more]
    done = subprocess.run(command, capture_output=True, text=True, env=ENV)
    assert done.returncode == code, done.stderr
    return done


def losses(folder):
    return [line["loss"] for line in kit.lines(folder / "log.jsonl") if "loss" in line]


def scores(folder):
    model = karat.load(folder, device="cpu")
    return [r.value for r in model.score("What is 2 + 3?", ["5", "6", "It is 5.", ""])]


def as_one(two, alone):
    """Each of two processes held its share, and they learnt what one learnt."""
    gradients = [load_file(f.with_name(f.name + ".watch") / "gradients.safetensors") for f in (alone, two)]
    assert gradients[0].keys() == gradients[1].keys()
    for name, wanted in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], wanted, atol=1e-5, rtol=0)
    held = [int((two.with_name("two.watch") / f"held-{rank}").read_text()) for rank in (0, 1)]
    everything = int((alone.with_name("out.watch") / "held-0").read_text())
    assert sum(held) == everything and max(held) < 0.6 * everything
    assert losses(two) == pytest.approx(losses(alone), abs=1e-3) and len(losses(alone)) == 20
    assert scores(two) == pytest.approx(scores(alone), abs=1e-3)


@pytest.fixture(scope="module")
def one(model_folder, tmp_path_factory):
    """What a single process makes of the data, and the data."""
    folder = tmp_path_factory.mktemp("one")
    data = kit.pairs(folder, 37)
    trained(ONE, model_folder, data, folder / "out", "--max-grad-norm", "0")
    return folder / "out", data


without_deepspeed = pytest.mark.skipif(find_spec("deepspeed") is None, reason="deepspeed is not installed")


@pytest.mark.parametrize(
    ("start", "more"), [(FSDP, ("--gradient-checkpointing",)), pytest.param(ZERO, (), marks=without_deepspeed)]
)
def test_two_processes_that_share_the_weights_are_one_and_go_on(model_folder, tmp_path, one, start, more):
    alone, data = one
    for stop, code in ((7, 1), (0, 0)):
        given = ("--max-grad-norm", "0", *more)
        done = trained(start, model_folder, data, tmp_path / "two", *given, stop=stop, code=code)
        assert done.stderr.count("stopped after step 7 of 20") == bool(stop)
    assert "going on after step 7 of 20" in done.stderr
    as_one(tmp_path / "two", alone)
    found = (alone, tmp_path / "two")
    (wanted,), (judged,) = (
        [x["eval_loss"] for x in kit.lines(f / "log.jsonl") if "eval_loss" in x][-1:] for f in found
    )
    assert judged == pytest.approx(wanted, abs=1e-4)
    assert done.stdout.count("saved ") == 1


def test_a_run_goes_on_with_another_number_of_processes(model_folder, tmp_path, one):
    alone, data = one
    for start, stop, code in ((DDP, 6, 1), (ONE, 13, 1), (DDP, 0, 0)):
        trained(start, model_folder, data, tmp_path / "out", "--max-grad-norm", "0", stop=stop, code=code)
    assert losses(tmp_path / "out") == pytest.approx(losses(alone), abs=1e-4) and len(losses(alone)) == 20
    assert scores(tmp_path / "out") == pytest.approx(scores(alone), abs=1e-4)
