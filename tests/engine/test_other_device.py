"""The paths that GPUs take, on a device that is as strict as they are about where tensors lie (`other_device.py`)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def found():
    paths = os.pathsep.join([str(HERE), str(HERE.parent)])
    run = subprocess.run(
        [sys.executable, str(HERE / "other_device.py")],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    return json.loads(run.stdout)


def test_states_are_those_of_padded_rows_on_the_cpu(found):
    assert len(found["scored"]) > 30
    for name, far in found["scored"].items():
        assert far < (1e-5 if name.endswith("float32") else 5e-2), name


def test_gradients_are_those_of_padded_rows_on_the_cpu(found):
    assert len(found["learnt"]) > 15
    assert max(found["learnt"].values()) < 1e-5


def test_prefixes_are_shared_in_training_where_that_is_faster(found):
    assert found["chosen"] == ["PackedForward", "PaddedForward"]


def test_negative_control_an_operation_on_two_devices_fails(found):
    assert found["mixed"] == "tensors of two devices in aten.add.Tensor"
