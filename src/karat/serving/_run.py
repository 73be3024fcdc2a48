"""The server as a process: uvicorn around the application, and a guard against endless headers."""

import asyncio
import atexit
import contextlib
import gc
import logging
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NoReturn, Protocol

import pydantic_core
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from karat import load
from karat.serving._app import App, say
from karat.serving._generator import Generator
from karat.serving._incoming import Settings
from karat.serving._pipeline import Pipeline
from karat.serving._turns import Turns
from karat.serving.base import ApiError
from karat.types import Refused

MOST_HEAD = 64 << 10  # bytes of a request's first line and headers
SLOW_HEAD = 20.0  # seconds that they may take to arrive
KEPT = 120  # seconds that an idle connection stays open, or some would ask as it closes: Go keeps them for 90
LAST_WORDS = 1.0  # seconds that those who wait may take to hear that the server ends at once
SWITCH = 0.0005  # seconds after which a thread of Python makes room for another: the engine's leaves gaps that small


@dataclass(frozen=True)
class Source:
    """Where a model comes from, and how it is read."""

    path: str
    options: Mapping[str, Any] = field(default_factory=dict)  # of karat.load
    generates: bool = False  # whether it answers chats as well

    def pipeline(self, turns: Turns, max_batch_tokens: int, max_wait: float) -> Pipeline:
        """The model, loaded.

        Raises:
            KaratError: it cannot be.
        """
        model = load(self.path, **self.options)
        generator = Generator(model, self.path, turns) if self.generates else None
        return Pipeline(model, max_batch_tokens, max_wait, turns, generator)


def made(
    sources: Mapping[str, Source], settings: Settings, max_batch_tokens: int = 2048, max_wait: float = 30.0
) -> App:
    """The application, with its models loaded.

    Raises:
        KaratError: one of them cannot be.
    """
    sys.setswitchinterval(SWITCH)
    turns = Turns()
    loads = {name: partial(own.pipeline, turns, max_batch_tokens, max_wait) for name, own in sources.items()}
    return App({name: load() for name, load in loads.items()}, settings, loads)


class Models(Protocol):
    """What the process asks of an application's models."""

    @property
    def broken(self) -> str:
        """Why nothing can be answered any more; empty where it can."""
        ...

    def __iter__(self) -> Iterator[str]:
        """Their names."""
        ...

    async def reload(self, name: str) -> None:
        """Load one anew."""
        ...


class Served(Protocol):
    """An application that runs until the process is asked to end."""

    problem: str  # why it did not start

    @property
    def pipelines(self) -> Models:
        """Its models."""
        ...

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """One connection's event, as ASGI says."""
        ...


def serve(app: Served, listening: socket.socket) -> None:
    """Serve until the process is asked to end; on stderr, where.

    Raises:
        Refused: a model does not score as it has to, or nothing more can be computed.
    """
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s %(message)s")
    server = _Server(_config(app), app)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)  # connections are files, and 1,024 is usual unasked
    with contextlib.suppress(OSError, ValueError):  # macOS names no number as its limit, and takes only one
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    for asked in (signal.SIGTERM, signal.SIGINT):  # uvicorn raises them again when all is answered; then it is enough
        signal.signal(asked, lambda *_: None)
    with contextlib.suppress(SystemExit):  # uvicorn's where it does not start: why is said below
        server.run([listening])
    if not server.started:
        raise Refused(app.problem or "the server did not start; the lines above say why")
    if broken := app.pipelines.broken:
        raise Refused(f"{broken}, so the server ended; start it anew")


def end() -> NoReturn:
    """End the process with 0 when all is answered.

    Nobody waits for what is left then: Python would take apart half a million objects of its libraries, and join
    threads that still ask a judge across the network for a client that has gone.
    """
    atexit._run_exitfuncs()  # spans that are not sent yet
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(0)


def _config(app: Served) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        loop="uvloop",
        http=Guarded,
        ws="none",
        lifespan="on",
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=30,
        timeout_keep_alive=KEPT,
    )


class _Server(uvicorn.Server):
    """uvicorn's, which says where it listens, loads models anew at SIGHUP, and ends where the device failed.

    At the first SIGTERM or SIGINT what was accepted is answered; at the second those who wait are told that it is not.
    """

    def __init__(self, config: uvicorn.Config, app: Served) -> None:
        super().__init__(config)
        self._app = app
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: Any = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        if self.started and sockets:
            host, port = sockets[0].getsockname()[:2]
            self._loop.add_signal_handler(signal.SIGHUP, self._go, self._reload_all)
            gc.collect()
            gc.freeze()  # objects of libraries, half a million, which each full collection would walk for 0.2 s
            _say(f"serving at http://{f'[{host}]' if ':' in host else host}:{port}")

    async def on_tick(self, counter: int) -> bool:
        return await super().on_tick(counter) or bool(self._app.pipelines.broken)

    def handle_exit(self, sig: int, frame: Any) -> None:
        """A signal to end."""
        if self.should_exit and self._loop:
            self._loop.call_soon_threadsafe(self._go, self._hurry)
        else:
            super().handle_exit(sig, frame)

    async def _hurry(self) -> None:
        running = set(self.server_state.tasks)
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running, timeout=LAST_WORDS)
        self.force_exit = True  # nothing else is waited for, such as a forward

    def _go(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        task = asyncio.get_running_loop().create_task(work())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _reload_all(self) -> None:
        for name in list(self._app.pipelines):
            try:
                await self._app.pipelines.reload(name)
            except Exception as error:  # whatever it is, the old model goes on
                _say(f"{name} is not loaded anew, and the old one goes on: {error}")
            else:
                _say(f"{name} is loaded anew")


def _say(line: str) -> None:
    say(f"karat: {line}")


class Guarded(HttpToolsProtocol):
    """uvicorn's protocol, but headers that are endless or do not come are not waited for."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start to count, and to wait."""
        super().connection_made(transport)
        self._head = 0
        self._slow = self.loop.call_later(SLOW_HEAD, self._give_up)

    def data_received(self, data: bytes) -> None:
        """Refuse what goes on too long without a body."""
        if self._head >= 0:
            self._head += len(data)
        super().data_received(data)
        if self._head > MOST_HEAD and not self.transport.is_closing():
            self.transport.write(_TOO_LONG)
            self.transport.close()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP."""
        self.transport.write(_NO_HTTP)
        self.transport.close()

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        self._head = 0

    def on_headers_complete(self) -> None:
        """The headers are there."""
        self._head = -1
        self._slow.cancel()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The body is there; what comes next is a request."""
        super().on_message_complete()
        self._head = 0

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing more to wait for."""
        self._slow.cancel()
        super().connection_lost(exc)

    def _give_up(self) -> None:
        if not self.transport.is_closing():
            self.transport.close()


def _raw(status: str, error: ApiError) -> bytes:
    """An error as it is sent where there is no request that the application could answer."""
    body = pydantic_core.to_json({"error": error.as_json()})
    head = f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: {len(body)}"
    return head.encode() + b"\r\n\r\n" + body


_TOO_LONG = _raw(
    "431 Request Header Fields Too Large", ApiError(431, "the headers are too long; send less of them", "too_large")
)
_NO_HTTP = _raw("400 Bad Request", ApiError(400, "this is no HTTP request; speak HTTP/1.1, without TLS", "no_http"))
