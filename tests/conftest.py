"""Shared fixtures: a model folder, the data folder, the command."""

import os
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

import toys
from karat.cli import base

torch.set_num_threads(1)
# No test depends on how busy the machine is.
settings.register_profile(
    "karat",
    deadline=None,
    max_examples=50,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize="CI" in os.environ,  # a change is not refused by a draw that has nothing to do with it
)
settings.load_profile("karat")


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory) -> Path:
    """A tiny Llama reward model with a chat template, as transformers saves it."""
    return toys.save(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """Real data sets, where KARAT_DATA names them."""
    folder = os.environ.get("KARAT_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("no real data here: set KARAT_DATA to a folder of data sets")
    return Path(folder)


@pytest.fixture
def karat(monkeypatch, capsys):
    """Run the command in this process: (exit code, stdout, stderr)."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["karat", *map(str, arguments)])
        code = 0
        try:
            base.main()
        except SystemExit as ended:
            code = ended.code or 0
        out, err = capsys.readouterr()
        return code, out, err

    return run
