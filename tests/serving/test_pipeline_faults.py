"""What fails, is late, leaves or waits for others inside the server stays with the request that it belongs to."""

import asyncio
import gc
import threading
import time
import weakref

import pytest
import servers
import torch

import karat
from karat.engine._work import Late
from karat.serving import _incoming, _models, _pipeline
from karat.serving._app import App, Settings
from karat.serving._canary import Canary
from karat.serving._pipeline import Pipeline
from karat.serving._turns import Turns
from karat.types import Refused, Reward

ASKED = {"prompt": "What is 7*8?", "candidates": ["56", "54", ""]}
OTHER = {**ASKED, "options": {"activation": "sigmoid"}}


@pytest.fixture
def local(model_folder):
    made = servers.Local(karat.load(str(model_folder)))
    yield made
    made.close()


# Other readings


def test_a_reading_that_fails_fails_its_request_alone(local, monkeypatch):
    own = _pipeline.outcomes

    def outcomes(asked, *rest):
        if asked.spec.activation == "sigmoid":
            raise RuntimeError("out of memory")
        return own(asked, *rest)

    monkeypatch.setattr(_pipeline, "outcomes", outcomes)
    found = local.all("/v1/reward", [ASKED, OTHER, ASKED, OTHER, ASKED])
    assert [reply.status_code for reply in found] == [200, 500, 200, 500, 200]
    assert "out of memory" in servers.error(found[1])["message"]


def test_other_readings_are_computed_at_once_and_off_the_event_loop(local, monkeypatch):
    seen, own = [], _pipeline.outcomes

    def outcomes(*given):
        seen.append((threading.current_thread().name.partition("_")[0], len(given[2])))
        return own(*given)

    monkeypatch.setattr(_pipeline, "outcomes", outcomes)
    assert local.ask("/v1/reward", OTHER).status_code == 200
    assert seen == [("karat-read", 3)]


@pytest.mark.parametrize("value", [1e39, 3e38])
def test_options_that_no_number_can_hold_are_the_requests_fault(local, value):
    with torch.no_grad():
        local.pipeline.model.parts.head.out.weight.mul_(100)  # so that what it gives is above 1
    reply = local.ask("/v1/reward", {"prompt": "a", "candidates": ["b"], "options": {"output": [value]}})
    assert reply.status_code == 400 and "output" in servers.error(reply)["message"]


def test_equal_options_are_read_once_and_not_waited_for_beyond_the_deadline(local, monkeypatch):
    made, go_on, own = [], threading.Event(), type(local.pipeline.inside).with_options

    def slow(self, **options):
        made.append(options)
        assert go_on.wait(20)
        return own(self, **options)

    monkeypatch.setattr(type(local.pipeline.inside), "with_options", slow)

    async def asked():
        options = {"activation": "sigmoid"}
        late = local.pipeline.variant(options, time.monotonic() + 0.05)
        waits = [asyncio.ensure_future(local.pipeline.variant(options)) for _ in range(3)]
        with pytest.raises(Late):
            await late
        go_on.set()
        return await asyncio.gather(*waits)

    first, *others = local.run(asked())
    assert len(made) == 1 and all(one is first for one in others)


# How long work takes


def test_work_that_was_left_is_not_counted_as_done(local):
    go_on, load = threading.Event(), local.pipeline.load
    before = load._done

    async def late():
        with pytest.raises(Late):
            await local.pipeline.call(lambda: go_on.wait(20), 1_000_000, time.monotonic() + 0.05)

    local.run(late())
    go_on.set()
    assert load._done <= before and load.in_flight == 0
    assert local.run(local.pipeline.call(lambda: 7, 1_000_000)) == 7 and load._done > before


def test_a_body_that_never_begins_is_not_waited_for(local, monkeypatch):
    monkeypatch.setattr(_incoming, "_SLOW_BODY", 0.05)
    sent = []

    async def receive():
        await asyncio.Event().wait()

    async def send(event):
        sent.append(event)

    headers = [(b"content-type", b"application/json"), (b"content-length", b"9")]
    scope = {"type": "http", "method": "POST", "path": "/v1/reward", "headers": headers}
    local.run(local.app(scope, receive, send))
    assert sent[0]["status"] == 408


class Remote:
    """A model that waits for the network and computes nothing here."""

    output, compares, at_steps = "logit", False, False

    def score_many(self, examples):
        return [Reward(1.0) for _ in examples]


def test_what_waits_for_the_network_takes_no_turn_on_the_device():
    turns = Turns()
    made = servers.Local(Remote(), turns=turns)
    with turns:
        assert servers.reward(made.ask("/v1/reward", ASKED)) == [1.0] * 3
    made.close()


# Loading anew


@pytest.fixture
def reloaded(model_folder):
    sources = {"a": lambda: Pipeline(karat.load(str(model_folder)))}
    loop = asyncio.new_event_loop()
    app = App({"a": sources["a"]()}, Settings(key="secret"), sources)
    yield app, loop.run_until_complete
    app.close()
    loop.close()


def test_the_old_model_is_let_go_of_as_soon_as_it_left(reloaded):
    app, run = reloaded
    old = weakref.ref(app.pipelines["a"].model)
    run(app.pipelines["a"].score(["a text"]))
    gc.disable()  # memory of a device is not waited for by it
    try:
        run(app.pipelines.reload("a"))
        run(app.pipelines._room("a"))
        run(_ended(old))
    finally:
        gc.enable()


async def _ended(old):
    """A thread that served it may still be about to leave its last function."""
    async with asyncio.timeout(20):
        while old() is not None:
            await asyncio.sleep(0.01)


def test_no_third_model_is_loaded_while_one_still_leaves(reloaded, monkeypatch):
    app, run = reloaded
    monkeypatch.setattr(_models, "WAIT", 0.05)
    with app.pipelines["a"].used():
        run(app.pipelines.reload("a"))
        with pytest.raises(Refused, match="try again later"):
            run(app.pipelines.reload("a"))
    monkeypatch.setattr(_models, "WAIT", 20.0)
    run(app.pipelines.reload("a"))
    assert "2.0" in next(s for s in app.metrics.text().decode().splitlines() if 'reloads_total{done="yes"' in s)


@pytest.mark.parametrize(("error", "told"), [(RuntimeError("x"), RuntimeError), (MemoryError(), Refused)])
def test_a_reload_that_fails_in_any_way_leaves_nothing_and_is_counted(reloaded, monkeypatch, error, told):
    app, run = reloaded
    old, new = app.pipelines["a"], []

    async def first(canary):
        new.append(canary.pipeline)
        raise error

    monkeypatch.setattr(Canary, "first", first)
    with pytest.raises(told):
        run(app.pipelines.reload("a"))
    assert app.pipelines["a"] is old
    run(asyncio.wait_for(app.pipelines._room("a"), 20))
    assert new[0]._closed and b'karat_reloads_total{done="no",model="a"} 1.0' in app.metrics.text()


def test_a_model_that_is_still_being_loaded_does_not_hold_up_the_end(model_folder):
    go_on, began = threading.Event(), threading.Event()

    def slow():
        began.set()
        go_on.wait(20)

    app = App({"a": Pipeline(karat.load(str(model_folder)))}, Settings(key="secret"), {"a": slow})

    async def ended():
        task = asyncio.create_task(app.pipelines.reload("a"))
        await asyncio.to_thread(began.wait, 20)
        app.close()
        task.cancel()
        await asyncio.wait_for(asyncio.get_running_loop().shutdown_default_executor(), 5)

    try:
        asyncio.run(ended())
        assert not go_on.is_set()
    finally:
        go_on.set()
