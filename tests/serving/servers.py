"""Servers for tests: the application without a socket, and the command as a process."""

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import httpx
import uvicorn

from karat.serving import _checks, _run
from karat.serving._app import App, Settings
from karat.serving._pipeline import Pipeline

JSON = {"content-type": "application/json"}


class Local:
    """An application, asked without a socket; one event loop for its life."""

    def __init__(self, model, settings=None, **options):
        self.loop = asyncio.new_event_loop()
        self.pipeline = Pipeline(model, **options)
        self.app = App({"toy": self.pipeline}, settings or Settings())
        self.client = httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://localhost")

    def run(self, work):
        async def within():
            return await asyncio.wait_for(work, 20)  # nothing may hang

        return self.loop.run_until_complete(within())

    def ask(self, path, body=None, method=None, **options):
        method = method or ("GET" if body is None else "POST")
        if isinstance(body, bytes | str):
            options = {"content": body, "headers": {**JSON, **options.pop("headers", {})}, **options}
        elif body is not None:
            options = {"json": body, **options}
        return self.run(self.client.request(method, path, **options))

    def all(self, path, bodies, **options):
        async def asked():
            return await asyncio.gather(*(self.client.post(path, json=body, **options) for body in bodies))

        return self.run(asked())

    def close(self):
        self.run(self.client.aclose())
        self.app.close()
        self.loop.close()


@contextlib.contextmanager
def threaded(model, settings=None):
    """A server on a socket, in a thread of the tests' own process: its URL."""
    app = App({"toy": Pipeline(model)}, settings)
    listening = _checks.listen("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(app, http=_run.Guarded, ws="none", log_level="error", lifespan="on"))
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    try:
        until(lambda: server.started)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)
        listening.close()


@contextlib.contextmanager
def process(folder, *options, environment=None, patience=60):
    """`karat serve` as users start it: its URL and the process."""
    command = [sys.executable, "-X", "faulthandler", "-m", "karat", "serve", str(folder), "--port", "0", *options]
    own = {**os.environ, "OMP_NUM_THREADS": "1", "TRANSFORMERS_OFFLINE": "1", **(environment or {})}
    # A pipe that nobody reads stops the server when it is full; reading a shared file would move where it writes.
    with tempfile.NamedTemporaryFile() as told, Path(told.name).open(errors="replace") as log:
        started = subprocess.Popen(command, stderr=told, env=own)
        try:
            yield _url(log, started, patience), started
        finally:
            if started.poll() is None:
                started.terminate()
                started.wait(20)


def _url(log, started, patience):
    """Where a server says that it serves."""
    found = None

    def told():
        nonlocal found
        assert started.poll() is None, f"the server ended with {started.returncode}"
        log.seek(0)
        found = re.search(r"serving at (\S+)\n", log.read())
        return found

    try:
        until(told, patience)
    except AssertionError:
        started.send_signal(signal.SIGABRT)  # faulthandler says where each thread stands
        started.wait(20)
        log.seek(0)
        raise AssertionError(f"the server does not serve after {patience} s:\n{log.read()[-8000:]}") from None
    return found[1]


def reward(reply):
    return [c["reward"] for item in reply.json()["data"] for c in item["candidates"]]


def until(true, seconds=10.0):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.01)


def error(reply):
    """The one shape of errors."""
    found = json.loads(reply.content)
    assert set(found) == {"error"} and set(found["error"]) == {"message", "type", "param", "code"}, found
    return found["error"]
