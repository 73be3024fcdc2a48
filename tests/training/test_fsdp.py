"""Weights that are shared out over two processes learn what one process learns, and leave the same checkpoint."""

import os
import subprocess
import sys
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


@pytest.fixture(scope="module")
def one(model_folder, tmp_path_factory):
    """What a single process makes of the data, and the data."""
    folder = tmp_path_factory.mktemp("one")
    data = kit.pairs(folder, 37)
    trained(ONE, model_folder, data, folder / "out", "--max-grad-norm", "0")
    return folder / "out", data


def test_two_processes_that_share_the_weights_are_one(model_folder, tmp_path, one):
    alone, data = one
    done = trained(FSDP, model_folder, data, tmp_path / "two", "--max-grad-norm", "0", "--gradient-checkpointing")
    gradients = [load_file(f.with_name(f.name + ".watch") / "gradients.safetensors") for f in (alone, tmp_path / "two")]
    assert gradients[0].keys() == gradients[1].keys()
    for name, wanted in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], wanted, atol=1e-5, rtol=0)
    held = [int((tmp_path / "two.watch" / f"held-{rank}").read_text()) for rank in (0, 1)]
    everything = int((alone.with_name("out.watch") / "held-0").read_text())
    assert sum(held) == everything and max(held) < 0.6 * everything
    assert losses(tmp_path / "two") == pytest.approx(losses(alone), abs=1e-3) and len(losses(alone)) == 20
    assert scores(tmp_path / "two") == pytest.approx(scores(alone), abs=1e-3)
    assert done.stdout.count("saved ") == 1


def test_a_run_goes_on_with_another_number_of_processes(model_folder, tmp_path, one):
    alone, data = one
    for start, stop, code in ((DDP, 6, 1), (ONE, 13, 1), (DDP, 0, 0)):
        trained(start, model_folder, data, tmp_path / "out", "--max-grad-norm", "0", stop=stop, code=code)
    assert losses(tmp_path / "out") == pytest.approx(losses(alone), abs=1e-4) and len(losses(alone)) == 20
    assert scores(tmp_path / "out") == pytest.approx(scores(alone), abs=1e-4)
