"""A server in operation: models come and go, clients leave, devices fail, traces go through."""

import asyncio
import json
import os
import shutil
import signal
import sys
import threading
from functools import partial

import httpx
import pytest
import servers

import karat
import toys
from karat.engine.batcher import BatchedEngine, Batcher
from karat.models import checkpoint
from karat.rewards._local import golden_values
from karat.serving import _checks, _run, _traces
from karat.serving._app import App, Settings
from karat.serving._pipeline import Pipeline
from karat.serving._turns import Turns
from karat.types import BadInput, Example, Message, Refused

ASKED = {"prompt": "What is 7*8?", "candidates": ["56", "54"]}
KEY = {"authorization": "Bearer secret"}


def trained(folder, seed):
    """A checkpoint with golden scores."""
    plain = toys.save(folder / f"plain-{seed}", toys.reward_model(seed=seed))
    checkpoint.save(karat.load(str(plain)).parts, folder / f"trained-{seed}", golden_values)
    return folder / f"trained-{seed}"


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    return [trained(folder, seed) for seed in (1, 2)]


class Several(servers.Local):
    """An application of models that have folders."""

    def __init__(self, folders, **settings):
        self.loop = asyncio.new_event_loop()
        turns = Turns()
        sources = {name: partial(self.loaded, folder, turns) for name, folder in folders.items()}
        settings = Settings(**{"key": "secret", **settings})
        self.app = App({name: made() for name, made in sources.items()}, settings, sources)
        transport = httpx.ASGITransport(self.app)
        self.client = httpx.AsyncClient(transport=transport, base_url="http://localhost", headers=KEY)

    @staticmethod
    def loaded(folder, turns):
        return Pipeline(karat.load(str(folder)), turns=turns)


@pytest.fixture
def served(checkpoints, tmp_path):
    here = tmp_path / "model"
    shutil.copytree(checkpoints[0], here)
    made = Several({"a": here})
    yield made, here
    made.close()


def put(checkpoint, here):
    """A new checkpoint in the place of the old one."""
    shutil.rmtree(here)
    shutil.copytree(checkpoint, here)


def values(made, **more):
    return servers.reward(made.ask("/v1/reward", {**ASKED, **more}))


def offline(folder):
    return [own.value for own in karat.load(str(folder)).score(ASKED["prompt"], ASKED["candidates"])]


# Loading anew


def test_another_name_than_the_models_loads_nothing_anew(served, checkpoints):
    made, here = served
    put(checkpoints[1], here)
    reply = made.ask("/admin/reload", {"model": "b"})
    assert reply.status_code == 404 and servers.error(reply)["code"] == "model_not_found"
    assert values(made) == pytest.approx(offline(checkpoints[0]), abs=1e-5)
    assert made.ask("/admin/reload", {"model": "a"}).json()["reloaded"] is True


def test_a_new_checkpoint_takes_the_place_of_the_old_one(served, checkpoints):
    made, here = served
    before = made.ask("/v1/models").json()["data"][0]["fingerprint"]
    put(checkpoints[1], here)
    told = made.ask("/admin/reload", {}).json()
    assert told["reloaded"] is True and told["fingerprint"] != before
    assert values(made) == pytest.approx(offline(checkpoints[1]), abs=1e-5)
    assert 'karat_reloads_total{done="yes",model="a"} 1.0' in made.ask("/metrics").text


def spoilt_head(folder):
    from safetensors.torch import load_file, save_file

    file = folder / "model.safetensors"
    save_file({n: -t if n == "score.weight" else t for n, t in load_file(file).items()}, file, {"format": "pt"})


def spoilt_backbone(folder):
    from safetensors.torch import load_file, save_file

    file = folder / "model.safetensors"
    save_file({n: 1.5 * t if "up_proj" in n else t for n, t in load_file(file).items()}, file, {"format": "pt"})


def other_template(folder):
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")


def of_another_kind(folder):
    put(toys.save(folder.parent / "plain", toys.step_model()), folder)


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        pytest.param(spoilt_head, "head", marks=pytest.mark.full),
        (spoilt_backbone, "scored"),
        pytest.param(other_template, "template", marks=pytest.mark.full),
        pytest.param(of_another_kind, "", marks=pytest.mark.full),
        (shutil.rmtree, "folder"),
    ],
)
def test_what_does_not_score_as_it_has_to_is_refused_and_the_old_one_goes_on(
    served, checkpoints, tmp_path, spoil, told
):
    made, here = served
    put(checkpoints[1], here)
    spoil(here)
    reply = made.ask("/admin/reload", {})
    assert reply.status_code == 409 and told in servers.error(reply)["message"]
    assert servers.error(reply)["code"] == "reload_refused"
    assert values(made) == pytest.approx(offline(checkpoints[0]), abs=1e-5)
    assert made.ask("/livez").status_code == 200


@pytest.mark.full
def test_requests_under_way_are_answered_by_the_model_they_began_with(served, checkpoints, monkeypatch):
    made, here = served
    old = made.app.pipelines["a"]
    begun, go_on = threading.Event(), threading.Event()
    run = old.model.engine.run

    def slow(sequences):
        begun.set()
        assert go_on.wait(20)
        return run(sequences)

    monkeypatch.setattr(old.model.engine, "run", slow)

    async def both():
        first = asyncio.create_task(made.client.post("/v1/reward", json=ASKED))
        while not begun.is_set():
            await asyncio.sleep(0)
        put(checkpoints[1], here)
        # The two take turns on the device, so the new one's golden scores wait for the old one's batch.
        reloading = asyncio.create_task(made.client.post("/admin/reload", json={}))
        await asyncio.sleep(0.05)
        go_on.set()
        assert (await reloading).status_code == 200
        return await first, await made.client.post("/v1/reward", json=ASKED)

    first, then = made.run(both())
    assert servers.reward(first) == pytest.approx(offline(checkpoints[0]), abs=1e-5)
    assert servers.reward(then) == pytest.approx(offline(checkpoints[1]), abs=1e-5)
    made.run(asyncio.wait_for(old.unused(), 10))
    servers.until(lambda: made.run(asyncio.sleep(0)) or not any(t.is_alive() for t in old._threads))


def test_loading_anew_is_for_those_who_hold_a_key(checkpoints):
    made = Several({"a": checkpoints[0]})
    made.client.headers.pop("authorization")
    assert made.ask("/admin/reload", {}).status_code == 401
    made.close()
    open_ = servers.Local(karat.load(str(checkpoints[0])))
    reply = open_.ask("/admin/reload", {})
    assert reply.status_code == 403 and "--api-key-file" in servers.error(reply)["message"]
    open_.close()


def test_a_model_without_a_folder_is_not_loaded_anew(checkpoints):
    made = servers.Local(karat.load(str(checkpoints[0])), Settings(key="secret"))
    reply = made.ask("/admin/reload", {}, headers=KEY)
    assert reply.status_code == 409 and "folder" in servers.error(reply)["message"]
    made.close()


# Several models


def test_models_are_told_apart_by_their_names(checkpoints):
    made = Several(dict(zip("ab", checkpoints, strict=True)))
    for name, folder in zip("ab", checkpoints, strict=True):
        assert values(made, model=name) == pytest.approx(offline(folder), abs=1e-5)
        reply = made.ask("/v1/score", {"model": name, "query": "p", "items": ["x"]}).json()
        assert reply["model"] == name
    for body in (ASKED, {**ASKED, "model": "c"}, {**ASKED, "model": None}):
        reply = made.ask("/v1/reward", body)
        assert reply.status_code == 404 and "a, b" in reply.text
    assert made.ask("/slime_reward", {"prompt": "Q", "response": "A"}).status_code == 404
    put_back = made.ask("/admin/reload", {"model": "b"})
    assert put_back.status_code == 200 and put_back.json()["id"] == "b"
    metrics = made.ask("/metrics").text
    assert 'karat_reward_count{model="a"}' in metrics and 'karat_waiting{model="b"}' in metrics
    made.close()


def test_names_of_models(tmp_path):
    assert _checks.named([str(tmp_path), "owner/name"], []) == [tmp_path.name, "owner/name"]
    assert _checks.named(["x", "y"], ["a", "b"]) == ["a", "b"]
    with pytest.raises(BadInput, match="--name"):
        _checks.named(["x", "y"], ["a"])
    with pytest.raises(BadInput, match="'x'"):
        _checks.named(["x", "x"], [])


# Clients that leave


async def leaving(app, path, body, parts):
    """A client that leaves after so many parts of the reply: what it got."""
    sent, got = [{"type": "http.request", "body": json.dumps(body).encode()}], []
    left = asyncio.Event()

    async def receive():
        if sent:
            return sent.pop()
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(event):
        got.append(event)
        if sum(bool(own.get("body")) for own in got) >= parts:
            left.set()

    headers = [(b"content-type", b"application/json"), (b"host", b"localhost")]
    if not parts:
        left.set()
    await app({"type": "http", "method": "POST", "path": path, "headers": headers}, receive, send)
    return got


def gated(model, monkeypatch, free):
    """An engine that computes so many batches, and no more until it is let."""
    let, seen, run = threading.Semaphore(free), [], model.engine.run

    def own(sequences):
        assert let.acquire(timeout=20)
        seen.extend(sequences)
        return run(sequences)

    monkeypatch.setattr(model.engine, "run", own)
    return let, seen


@pytest.mark.parametrize(("path", "parts", "stream"), [("/v1/reward", 1, True), ("/v1/reward", 0, False)])
def test_what_a_client_that_left_asked_for_is_not_computed(model_folder, monkeypatch, path, parts, stream):
    model = karat.load(str(model_folder))
    made = servers.Local(model, budget=32)  # an answer to a batch
    let, seen = gated(model, monkeypatch, parts)
    body = {"prompt": "p", "candidates": [f"{n} " * 20 for n in range(40)], "stream": stream}
    made.run(leaving(made.app, path, body, parts))
    assert f'karat_requests_total{{path="{path}",status="499"}} 1.0' in made.ask("/metrics").text
    let.release(100)
    servers.until(lambda: made.pipeline.batcher.waiting == 0 and made.pipeline.batcher.busy_since is None)
    assert len(seen) <= parts + 2
    counts = made.pipeline.batcher.counts
    assert counts.dropped >= 38 - parts or not counts.batches  # where it left before anything was rendered
    assert made.pipeline.load.in_flight == 0
    made.close()


def test_a_ranking_that_nobody_waits_for_is_given_up(tmp_path, monkeypatch):
    model = karat.load(str(toys.save(tmp_path, toys.causal_model())), kind="pairwise")
    made = servers.Local(model, budget=32)
    let, seen = gated(model, monkeypatch, 0)
    body = {"prompt": "p", "candidates": [f"{n}" * 20 for n in range(8)]}
    made.run(leaving(made.app, "/v1/rank", body, 0))
    let.release(100)
    servers.until(lambda: made.pipeline.batcher.waiting == 0 and made.pipeline.batcher.busy_since is None)
    assert len(seen) <= 4  # of 56
    made.close()


# Devices that fail


@pytest.fixture
def handlers():
    """The signals' own handlers, given back."""
    kept = {own: signal.getsignal(own) for own in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    yield
    for own, handler in kept.items():
        signal.signal(own, handler)


@pytest.mark.full
def test_when_the_device_fails_everyone_is_told_and_the_server_ends(model_folder, monkeypatch, handlers):
    model = karat.load(str(model_folder))
    monkeypatch.setattr(_run, "load", lambda *_, **__: model)
    run, listening, told = model.engine.run, _checks.listen("127.0.0.1", 0), {}
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"

    def failing(sequences):
        if any(len(s.ids) > 400 for s in sequences):
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return run(sequences)

    def client():
        with httpx.Client(base_url=url, timeout=20, transport=httpx.HTTPTransport(retries=20)) as own:
            told["good"] = own.post("/v1/reward", json=ASKED).status_code
            bad = own.post("/v1/reward", json={"prompt": "l" * 430, "candidates": ["l"]})
            told["bad"] = bad.status_code, bad.json()["error"]["message"], bad.headers["retry-after"]

    monkeypatch.setattr(model.engine, "run", failing)
    thread, watchdog = threading.Thread(target=client), threading.Timer(60, os.kill, (os.getpid(), signal.SIGTERM))
    thread.start()
    watchdog.start()
    with pytest.raises(Refused, match=r"the device failed .*CUDA error.*start it anew"):
        _run.serve(_run.made({"toy": _run.Source("anywhere")}, Settings()), listening)
    watchdog.cancel()
    thread.join(20)
    assert told["good"] == 200
    status, message, after = told["bad"]
    assert status == 503 and "device failed" in message and after == "1"
    sys.setswitchinterval(0.005)


def test_after_the_device_failed_liveness_says_so(model_folder):
    model = karat.load(str(model_folder))
    made = servers.Local(model)

    def broken(_):
        raise RuntimeError("CUDA error: device-side assert triggered")

    model.engine.run = broken
    found = made.all("/v1/reward", [{"prompt": f"{n}", "candidates": ["b"]} for n in range(8)])
    assert {own.status_code for own in found} == {503}
    assert made.ask("/v1/reward", ASKED).status_code == 503
    assert made.ask("/livez").status_code == 503 and "CUDA error" in made.ask("/livez").text
    made.close()


# Traces

PARENT = f"00-{'a' * 32}-{'b' * 16}-01"
BAD = [
    "evil",
    "",
    f"00-{'0' * 32}-{'b' * 16}-01",
    f"ff-{'a' * 32}-{'b' * 16}-01",
    PARENT.upper(),
    PARENT + "\n",
    f"{PARENT}-x",
]


@pytest.mark.parametrize("has_api", [False, True])
def test_a_trace_goes_through(monkeypatch, has_api):
    if has_api:
        pytest.importorskip("opentelemetry.trace")
    monkeypatch.setattr(_traces, "_HAS_API", has_api)
    trace = _traces.Trace({"traceparent": PARENT})
    assert trace.header == PARENT and trace.id == "a" * 32  # nothing records, so that the caller's span stays
    trace.end("POST", "/v1/reward", 200, "toy")
    for said in BAD:
        assert _traces.Trace({"traceparent": said}).id == ""


STATE = f"karat=1, vendor@sys=a b ,{'k' * 241}@v=x,"
BAD_STATES = ["any words", "Key=1", "a=b=c", "a=" + "x" * 257, "a=\xe9", "a=1," * 40, "secret, a=1"]


def test_the_state_of_a_trace_is_not_written_into_logs(caplog):
    pytest.importorskip("opentelemetry.trace")
    for said in [STATE, "", *BAD_STATES]:
        assert _traces.Trace({"traceparent": PARENT, "tracestate": said}).id == "a" * 32
    assert not caplog.records
    assert _traces._state({"tracestate": STATE}) == STATE
    assert not any(_traces._state({"tracestate": said}) for said in BAD_STATES)


def test_spans_are_the_callers_children():
    pytest.importorskip("opentelemetry.sdk")
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    kept = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(kept))
    trace.set_tracer_provider(provider)
    own = _traces.Trace({"traceparent": PARENT})
    own.end("POST", "/v1/reward", 503, "toy")
    (span,) = kept.get_finished_spans()
    assert span.parent.span_id == int("b" * 16, 16) and own.id == "a" * 32
    assert own.header != PARENT and own.header.startswith(PARENT[:36])
    assert span.name == "POST /v1/reward" and span.attributes["http.response.status_code"] == 503


def test_log_lines_carry_the_trace(model_folder, capfd):
    made = servers.Local(karat.load(str(model_folder)), Settings(log_requests=True))
    reply = made.ask("/v1/reward", ASKED, headers={"traceparent": PARENT, "x-request-id": "mine"})
    line = json.loads(capfd.readouterr().err.strip().splitlines()[-1])
    assert reply.headers["traceparent"][3:35] == "a" * 32
    assert (line["trace"], line["id"], line["model"], line["status"]) == ("a" * 32, "mine", "toy", 200)
    made.close()


# Turns


def test_turns_are_given_in_the_order_of_asking():
    turns, order, threads = Turns(), [], []

    def take(name):
        with turns:
            order.append(name)

    with turns:
        for name in range(5):
            threads.append(threading.Thread(target=take, args=(name,)))
            threads[-1].start()
            servers.until(lambda: len(turns._waiting) == len(threads))
    for thread in threads:
        thread.join(10)
    assert order == list(range(5))
    with turns:  # it is free again
        pass


def test_an_engine_asked_by_someone_who_left_gives_nothing(model_folder):
    from karat.engine._work import Late, Work
    from karat.engine.batcher import CALLER, Caller

    model, begun, let = karat.load(str(model_folder)), threading.Event(), threading.Event()

    def held(sequences):
        begun.set()
        assert let.wait(10)
        return model.engine.run(sequences)

    class Left(Caller):
        def waits_for(self, ticket):
            super().waits_for(ticket)
            let.set()

    batcher = Batcher(held)
    first, second = model.renderer([Example((Message("user", "a"),), answer) for answer in ("b", "c")])
    batcher.submit([Work.of(first.sequence)], lambda _: None, None)
    assert begun.wait(10)  # the other's work cannot begin before it is known that nobody waits for it
    caller = Left()
    caller.leave()
    token = CALLER.set(caller)
    with pytest.raises(Late):
        BatchedEngine(batcher).run([second.sequence])
    CALLER.reset(token)
    batcher.close()


def test_deployment_says_what_the_command_takes():
    """The image is not built here: what it starts is held to the command's own options."""
    from pathlib import Path

    import typer.main

    from karat.cli.base import app

    text = (Path(__file__).parents[2] / "deploy" / "Containerfile").read_text()
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    (command,) = [json.loads(line.removeprefix("CMD ")) for line in lines if line.startswith("CMD ")]
    known = {flag for own in typer.main.get_command(app()).commands["serve"].params for flag in own.opts}
    assert {word for word in command if word.startswith("--")} <= known
    assert lines.index("USER 10001:10001") < lines.index('ENTRYPOINT ["karat", "serve"]')
    assert "/readyz" in text and all(
        ":latest" not in line and line.count(":") for line in lines if line.startswith("FROM")
    )
