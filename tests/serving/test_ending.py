"""The second signal to end: those who wait are told so at once, whatever they wait for."""

import asyncio
import json
import signal
import socket
import threading

import pytest
import servers

import karat

BODY = json.dumps({"prompt": "What is 7*8?", "candidates": ["56", "54"]}).encode()


@pytest.fixture
def held(model_folder, monkeypatch):
    """A server whose engine waits until it may go on, and what lets it."""
    model = karat.load(str(model_folder))
    made, go_on = servers.Local(model), threading.Event()
    run = model.engine.run
    monkeypatch.setattr(model.engine, "run", lambda sequences: go_on.wait(20) and run(sequences))
    yield made
    go_on.set()
    made.close()


async def given_up(app, body):
    """The events of a request that is cancelled as uvicorn's server does it."""
    sent, waits = [], asyncio.Event()

    async def receive():
        if sent or waits.is_set():
            await asyncio.Event().wait()
        waits.set()
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(event):
        sent.append(event)

    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    scope = {"type": "http", "method": "POST", "path": "/v1/reward", "headers": headers}
    task = asyncio.ensure_future(app(scope, receive, send))
    await waits.wait()
    while not app.pipelines["toy"].load.in_flight:
        await asyncio.sleep(0)
    task.cancel()
    await task
    return sent


def test_who_waits_for_a_reply_gets_503(held):
    start, body = held.run(given_up(held.app, BODY))
    assert start["status"] == 503 and (b"retry-after", b"1") in start["headers"]
    assert json.loads(body["body"])["error"]["code"] == "unavailable"
    assert held.pipeline.load.in_flight == 0


def test_who_reads_a_stream_gets_a_last_line(held):
    start, *lines = held.run(given_up(held.app, BODY[:-1] + b', "stream": true}'))
    assert start["status"] == 200 and not lines[-1].get("more_body")
    assert json.loads(lines[-1]["body"])["error"]["code"] == "unavailable"
    assert 'karat_requests_total{path="/v1/reward",status="503"} 1.0' in held.ask("/metrics").text


def connected(url):
    host, _, port = url.removeprefix("http://").partition(":")
    return socket.create_connection((host, int(port)), 20.0)


def begun(url):
    """A connection whose request is accepted, with its body still to come."""
    own = connected(url)
    head = "POST /v1/reward HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nExpect: 100-continue\r\n"
    own.sendall(f"{head}Content-Length: {len(BODY)}\r\n\r\n".encode())
    assert own.recv(4096).startswith(b"HTTP/1.1 100")  # somebody reads it
    return own


def whole(own):
    found = b""
    while part := own.recv(65536):
        found += part
    return int(found[9:12]), json.loads(found.partition(b"\r\n\r\n")[2])


def refuses(url):
    try:
        connected(url).close()
    except OSError:
        return True
    return False


@pytest.mark.full
@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_waits_for_all_and_the_second_for_nobody(model_folder, second):
    with servers.process(model_folder) as (url, started):
        with begun(url) as answered, begun(url) as waiting:
            started.send_signal(signal.SIGTERM)
            servers.until(lambda: refuses(url))
            answered.sendall(BODY)
            status, found = whole(answered)
            assert status == 200 and len(found["data"][0]["candidates"]) == 2
            assert started.poll() is None
            started.send_signal(second)
            status, found = whole(waiting)
            assert status == 503 and found["error"]["code"] == "unavailable"
        assert started.wait(20) == 0
