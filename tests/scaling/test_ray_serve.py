"""A server on a cluster answers as one process does, whichever replica is killed and whatever model takes its place."""

import concurrent.futures
import json
import os
import shutil
import signal
import time

import httpx
import psutil
import pytest
from safetensors.torch import load_file, save_file

import karat
from karat import arithmetic
from serving.servers import JSON, error, process, reward

pytestmark = [pytest.mark.full, pytest.mark.filterwarnings("ignore")]
KEY = {"authorization": "Bearer secret"}


@pytest.fixture(scope="module")
def model(model_folder, tmp_path_factory):
    """A folder that the tests may put another model into."""
    return shutil.copytree(model_folder, tmp_path_factory.mktemp("served") / "toy")


@pytest.fixture(scope="module")
def command(address, model):
    """The command with two replicas, and its URL."""
    options = ("--ray", address, "--replicas", "2", "--timeout", "60")
    with process(model, *options, environment={"KARAT_API_KEY": "secret"}, patience=300) as found:
        yield found


@pytest.fixture(scope="module")
def ask(command):
    with httpx.Client(base_url=command[0], timeout=60, headers=KEY) as client:
        yield client


@pytest.fixture(scope="module")
def bodies():
    rows = arithmetic.candidate_rows(40, 4)
    return [
        {"prompt": rows[i]["prompt"], "candidates": [row["response"] for row in rows[i : i + 4]]}
        for i in range(0, 160, 4)
    ]


def expected(folder, bodies):
    rm = karat.load(str(folder))
    return [[one.value for one in rm.score(body["prompt"], body["candidates"])] for body in bodies]


def until(condition):
    end = time.monotonic() + 120
    while not (found := condition()):
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.05)
    return found


def replicas():
    """The processes of replicas."""
    found = []
    for one in psutil.Process().children(recursive=True):
        try:
            if "ServeReplica" in " ".join(one.cmdline()):
                found.append(one.pid)
        except psutil.Error:
            continue
    return found


def figures(ask, name):
    """A figure of each replica."""
    lines = ask.get("/metrics").text.splitlines()
    return [float(line.rpartition(" ")[2]) for line in lines if line.startswith(name) and "replica=" in line]


def test_every_path_is_answered_as_by_one_process(ask, model, bodies):
    values = expected(model, bodies[:5])
    for body, wanted in zip(bodies, values, strict=False):
        assert reward(ask.post("/v1/reward", json=body)) == pytest.approx(wanted, abs=1e-5)
    lines = [json.loads(line) for line in ask.post("/v1/reward", json={**bodies[0], "stream": True}).text.splitlines()]
    assert [line["reward"] for line in lines[:-1]] == pytest.approx(values[0], abs=1e-5) and lines[-1]["done"]
    reply = ask.post("/v1/rerank", json={"query": "7*8?", "documents": ["56", "54"]})
    assert reply.status_code == 200 and len(reply.json()["results"]) == 2
    for path in ("/livez", "/readyz", "/v1/models", "/openapi.json", "/"):
        assert ask.get(path).status_code == 200, path
    assert len(figures(ask, "karat_expected_wait_seconds")) == 2


def test_answers_to_a_prompt_meet_at_one_replica(ask):
    before = sum(figures(ask, "karat_cached_tokens_total"))
    for i in range(6):
        ask.post("/v1/reward", json={"prompt": "the same and long prompt " * 8, "candidates": [f"answer {i}"]})
    by_replica = figures(ask, "karat_cached_tokens_total")
    assert sum(by_replica) - before > 5 * 40  # all but the first found it computed


def test_what_is_refused_is_refused_in_the_same_words(command, ask):
    with httpx.Client(base_url=command[0]) as stranger:
        for method, path in (("POST", "/v1/reward"), ("POST", "/admin/reload"), ("GET", "/metrics")):
            reply = stranger.request(method, path, json={} if method == "POST" else None)
            assert reply.status_code == 401 and error(reply)["code"] == "invalid_api_key", path
    assert ask.post("/v1/reward", content=b"{", headers=JSON).status_code == 400
    assert ask.post("/v1/reward", json={"prompt": "a"}).status_code == 400
    assert ask.get("/nothing").status_code == 404
    assert ask.get("/v1/reward").status_code == 405
    late = ask.post("/v1/reward", json={"prompt": "a", "candidates": ["b"]}, headers={"x-request-timeout": "0"})
    assert late.status_code == 400
    reply = ask.post("/v1/reward", json={"prompt": "l" * 9000, "candidates": ["l"]})
    assert (reply.status_code == 400 and "too long" in reply.text) or "tokens" in reply.text


def answers(ask, bodies):
    """Statuses and rewards, of eight callers."""
    with concurrent.futures.ThreadPoolExecutor(8) as callers:
        found = list(callers.map(lambda body: ask.post("/v1/reward", json=body), bodies))
    return [(reply.status_code, reward(reply) if reply.status_code == 200 else reply.text) for reply in found]


def test_a_replica_that_is_killed_under_load_costs_no_request(ask, model, bodies):
    wanted = expected(model, bodies)
    victim, *_ = until(lambda: replicas() if len(replicas()) == 2 else None)
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        asked = thread.submit(answers, ask, bodies * 6)
        until(lambda: sum(figures(ask, "karat_reward_count")) > 200)
        os.kill(victim, signal.SIGKILL)
        found = asked.result()
    assert {status for status, _ in found} == {200}
    for (_, values), own in zip(found, wanted * 6, strict=True):
        assert values == pytest.approx(own, abs=1e-5)
    until(lambda: len(figures(ask, "karat_expected_wait_seconds")) == 2)


def test_a_model_is_replaced_everywhere_or_nowhere(ask, model, bodies):
    old, new = expected(model, bodies), model.with_name("new")
    shutil.copytree(model, new)
    weights = load_file(new / "model.safetensors")
    weights["score.weight"] = -weights["score.weight"]
    save_file(weights, new / "model.safetensors", {"format": "pt"})
    keep = (model / "config.json").read_text()
    (model / "config.json").write_text("{")
    reply = ask.post("/admin/reload", json={})
    assert reply.status_code == 409 and "the old one goes on" in reply.text
    assert [values for _, values in answers(ask, bodies)] == [pytest.approx(own, abs=1e-5) for own in old]
    (model / "config.json").write_text(keep)
    model.rename(model.with_name("old"))
    new.rename(model)
    turned = expected(model, bodies)
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        asked = thread.submit(answers, ask, bodies * 4)
        reply = ask.post("/admin/reload", json={})
        found = asked.result()
    assert reply.status_code == 200 and reply.json()["reloaded"]
    for (status, values), one, other in zip(found, old * 4, turned * 4, strict=True):
        assert status == 200 and (values == pytest.approx(one, abs=1e-5) or values == pytest.approx(other, abs=1e-5))
    assert [values for _, values in answers(ask, bodies)] == [pytest.approx(own, abs=1e-5) for own in turned]


def test_another_command_is_another_door_or_says_why_not(karat, address, command, ask, model):
    options = ("--ray", address, "--timeout", "60")
    with process(model, *options, environment={"KARAT_API_KEY": "secret"}, patience=300) as (url, other):
        assert httpx.get(f"{url}/v1/models", headers=KEY).json() == ask.get("/v1/models").json()
        assert len(replicas()) == 2
        other.terminate()
        assert other.wait(60) == 0
    assert ask.get("/readyz").status_code == 200
    code, _, err = karat("serve", model, "--ray", address, "--port", "0")
    assert code == 1 and "another command serves toy on this cluster" in err and err.count("\n") == 1


def test_a_command_that_is_killed_takes_its_replicas_with_it(command):
    assert replicas()
    command[1].kill()
    until(lambda: not replicas())


def test_a_model_that_cannot_be_opened_is_said_in_a_sentence(karat, address, tmp_path):
    code, _, err = karat("serve", tmp_path / "no-model", "--ray", address, "--port", "0", "--replicas", "1")
    assert code == 1 and "no-model is no folder; give" in err.splitlines()[-1]  # a busy machine is waited for before
    code, _, err = karat("serve", tmp_path, "--ray", address, "--port", "0", "--replicas", "3")
    assert code == 1 and "too few for 3 replicas; give fewer --replicas" in err
