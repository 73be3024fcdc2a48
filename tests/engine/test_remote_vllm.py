"""The engine under a real vLLM: what it gives is what one process gives, by every way of asking it."""

import contextlib
import os
import signal
import socket
import subprocess
import time
import urllib.request
from pathlib import Path

import pytest
import served

import karat
from karat.engine import _pooling
from karat.engine._pooling import EngineLost
from karat.models._alone import write_alone

PYTHON = Path(__file__).resolve().parents[2] / ".peers" / "vllm" / "bin" / "python"
PATIENCE = 600  # seconds that it may take to start
pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(
        not (PYTHON.parent.parent / "ready").exists(), reason="vLLM's environment is missing: make .peers/vllm/ready"
    ),
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    found = served.family(tmp_path_factory.mktemp("family"))
    write_alone(found["gated"], found["gated"].parent / "alone")
    return found


@pytest.fixture(scope="module")
def vllm(folders):
    """One server of the backbone that all of them share."""
    with socket.socket() as own:
        own.bind(("127.0.0.1", 0))
        port = own.getsockname()[1]
    command = [
        str(PYTHON),
        "-m",
        "vllm.entrypoints.openai.api_server",
        "--model",
        str(folders["gated"].parent / "alone"),
    ]
    command += ["--runner", "pooling", "--convert", "embed", "--served-model-name", "backbone", "--dtype", "float32"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--gpu-memory-utilization", "0.2", "--disable-log-stats"]
    own = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    log = (folders["gated"].parent / "vllm.log").open("w+")
    process = subprocess.Popen(
        command, env={**os.environ, **own}, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
    )
    try:
        wait_for(f"http://127.0.0.1:{port}/health", process, log)
        yield f"http://127.0.0.1:{port}#backbone", process
    finally:
        end(process)
        log.close()


def wait_for(url, process, log):
    end_at = time.monotonic() + PATIENCE
    while time.monotonic() < end_at:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            if process.poll() is not None:
                break
            time.sleep(0.5)
    log.seek(0)
    pytest.fail(f"vLLM did not start: {log.read()[-3000:]}")


def end(process):
    """It and all that it started, which are of its session."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.mark.parametrize("name", ["classifier", "gated", "saved", "language"])
def test_rewards_are_those_of_one_process(folders, vllm, name):
    """An outcome, objectives with their gate, one with golden scores, and steps by a language model's logits."""
    options = served.STEPS if name == "language" else {}
    far = karat.load(str(folders[name]), engine=vllm[0], **options)
    here = karat.load(str(folders[name]), **options)
    for _ in range(2):  # by the server's prefix cache too
        assert served.alike(far, here, served.rows(40, steps=name == "language")) < 1e-5


def test_a_server_that_was_killed_ends_the_run(folders, vllm, monkeypatch):
    """The last of these tests: it ends the server."""
    monkeypatch.setattr(_pooling, "WAIT", 0.0)
    far = karat.load(str(folders["classifier"]), engine=vllm[0])
    assert len(list(far.score_many(served.rows(4)))) == 4
    end(vllm[1])
    with pytest.raises(EngineLost, match="did not answer"):
        list(far.score_many(served.rows(4)))
