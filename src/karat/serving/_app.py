"""The server as an ASGI application: who may come in, what is read, and one shape of error for every status.

Paths are looked up as they are, in one table; nothing is served that is not in it, and nothing by prefix.
"""

import asyncio
import contextlib
import itertools
import json
import secrets
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from pydantic import ValidationError

from karat import members
from karat.engine._load import Overloaded
from karat.serving import _replies
from karat.serving._incoming import Gone, Incoming, Settings
from karat.serving._metrics import Metrics
from karat.serving._models import Models
from karat.serving._openapi import document
from karat.serving._pipeline import Pipeline
from karat.serving._playground import LIVE, PATH, Playground, check_form, read
from karat.serving._sentences import keys_of
from karat.serving._traces import Trace
from karat.serving.base import ApiError, Reply, Request, Route

__all__ = ["PUBLIC", "App", "Settings", "routes"]

PUBLIC = ("/livez", "/readyz", "/health")  # without a key


@dataclass
class _Call:
    """A request on its way, and what has to be let go when it was answered."""

    incoming: Incoming
    number: str
    trace: Trace
    model: str = ""  # the name of the one that it asks
    held: ExitStack = field(default_factory=ExitStack)


class App:
    """Pipelines by the names of their models, behind HTTP."""

    def __init__(
        self,
        pipelines: Mapping[str, Pipeline],
        settings: Settings | None = None,
        sources: Mapping[str, Callable[[], Pipeline]] | None = None,
    ) -> None:
        """`sources` load a model anew, where that may be asked for."""
        self.settings = settings or Settings()
        self.metrics = Metrics()
        self.pipelines = Models(pipelines, self.metrics, sources)
        self.routes = routes()
        self.draining = False
        self.problem = ""  # why it did not start
        self._numbers, self._start = itertools.count(), secrets.token_hex(4)
        self.pages = Playground(self.pipelines, self.metrics, self.settings.key is not None)
        self._plain = {
            "/livez": self._alive,
            "/health": self._ready,
            "/readyz": self._ready,
            "/metrics": self._metrics,
            "/openapi.json": self._openapi,
            **self.pages.plain,
        }

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """One connection's event, as ASGI says."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "http":
            await self._answer(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1003})

    async def _live(self, receive: Any, send: Any) -> None:
        """Start, and at the end do what was taken."""
        while True:
            event = (await receive())["type"]
            if event == "lifespan.startup":
                try:
                    await self.pipelines.start()
                except Exception as error:
                    self.problem = str(error)
                    await send({"type": "lifespan.startup.failed", "message": ""})
                    return
                await send({"type": "lifespan.startup.complete"})
            else:
                self.close()
                await send({"type": "lifespan.shutdown.complete"})
                return

    def close(self) -> None:
        """Do what was taken, and end."""
        self.draining = True
        self.pipelines.close()

    # One request

    async def _answer(self, scope: Any, receive: Any, send: Any) -> None:
        incoming = Incoming(scope, receive)
        number = incoming.number(f"{self._start}-{next(self._numbers):x}")
        call = _Call(incoming, number, Trace(incoming.headers))
        status = 500
        try:
            with call.held:
                status = await self._answered(call, send)
        except Gone:
            status = 499
        except asyncio.CancelledError:  # of a stream, whose reader was told
            status = 503
        finally:
            self._note(call, status)

    async def _answered(self, call: _Call, send: Any) -> int:
        """Answer; the status."""
        path = call.incoming.path
        try:
            reply = await self._replied(call)
        except Gone:
            raise
        except (Exception, asyncio.CancelledError) as error:
            reply = _replies.of_error(error, call.number)
        if reply.status >= 400 and path in (PATH, LIVE) and isinstance(reply.body, dict):
            reply = self.pages.refused(path, reply)
        headers = {"x-request-id": call.number, "server-timing": f"total;dur={1000 * call.incoming.seconds:.2f}"}
        if call.trace.header:
            headers["traceparent"] = call.trace.header
        sent = _replies.send(reply, send, headers)
        await (call.incoming.unless_left(sent) if isinstance(reply.body, AsyncIterator) else sent)
        return reply.status

    async def _replied(self, call: _Call) -> Reply:
        incoming, path = call.incoming, call.incoming.path
        if path not in PUBLIC and not self.pages.is_open(path, incoming.method):
            incoming.check_key(self.settings)
        incoming.check_host(self.settings)
        if path == PATH and incoming.method == "POST":
            return await self._form(call)
        if path in self._plain:
            incoming.check_method("GET")
            return await self._plain[path]()
        own = self.routes.get(path)
        if own is None:
            raise ApiError(404, "there is nothing at this path; /openapi.json lists what there is", "not_found")
        incoming.check_method("GET" if own[0].body is None else "POST")
        if own[0].keyed and self.settings.key is None:
            raise ApiError(
                403, "this is for those who hold a key, and the server has none; start it with --api-key-file", "no_key"
            )
        return await self._by_route(call, own)

    async def _by_route(self, call: _Call, own: Iterable[Route]) -> Reply:
        route, *_ = own
        body: dict[str, Any] = {}
        if route.body is not None:
            self._check_room(call.incoming)
            body = await call.incoming.body(self.settings)
            route = _claimed(own, body)
        try:
            read = None if route.body is None else route.body.model_validate(body)
        except ValidationError as error:
            raise _replies.unreadable(error, body, keys_of(route.body)) from None
        request = self._request(call, read, next(iter(self.pipelines)) if route.body is None else body.get("model"))
        found = await call.incoming.unless_left(route.handler(request))
        return found if isinstance(found, Reply) else Reply(found)

    async def _form(self, call: _Call) -> Reply:
        """What the playground's form asks."""
        check_form(call.incoming.headers)
        self._check_room(call.incoming)
        form = await asyncio.to_thread(read, await call.incoming.raw(self.settings))
        request = self._request(call, form, form.model)
        return await call.incoming.unless_left(self.pages.answer(request))

    def _request(self, call: _Call, body: Any, model: Any) -> Request[Any]:
        name = call.model = self._name(model)
        pipeline = self.pipelines[name]
        call.held.enter_context(pipeline.used())
        deadline, headers = call.incoming.deadline(self.settings), call.incoming.headers
        literal = self.settings.literal
        return Request(body, pipeline, name, call.number, literal, deadline, headers, all=self.pipelines)

    def _name(self, asked: Any) -> str:
        """The model that is meant; with one loaded, any name means it."""
        if len(self.pipelines) == 1:
            return next(iter(self.pipelines))
        if not isinstance(asked, str) or asked not in self.pipelines:
            known = ", ".join(self.pipelines)
            problem = f"there is no model {asked!r:.60} here" if asked else "several models are served"
            raise ApiError(404, f"{problem}; give one of {known} as model", "model_not_found", "model")
        return asked

    def _check_room(self, incoming: Incoming) -> None:
        """Raise Overloaded before a body is read that would wait too long for any model: refusing has to be cheap."""
        refused: Overloaded | None = None
        for pipeline in self.pipelines.values():
            try:
                pipeline.load.admit(incoming.size, pipeline.longest_wait)
            except Overloaded as error:
                refused = error
            else:
                return
        if refused:
            raise refused

    def _note(self, call: _Call, status: int) -> None:
        """Count a request, and write it down where that is asked for or it failed."""
        incoming, path = call.incoming, self._known(call.incoming.path)
        seconds = incoming.seconds
        self.metrics.answered(path, status, seconds)
        call.trace.end(incoming.method, path, status, call.model)
        if status < 500 and not self.settings.log_requests:
            return
        line = {"id": call.number, "method": incoming.method, "path": path, "status": status}
        line |= {"ms": round(1000 * seconds, 2)}
        line |= {name: value for name, value in (("model", call.model), ("trace", call.trace.id)) if value}
        say(json.dumps(line))

    def _known(self, path: str) -> str:
        return path if path in self.routes or path in self._plain else "other"

    async def _alive(self) -> Reply:
        if broken := self.pipelines.broken:
            raise ApiError(503, f"{broken}; start the server anew", "device_failed")
        return Reply({"status": "alive"})

    async def _ready(self) -> Reply:
        if self.draining:
            raise ApiError(503, "the server is about to end", "draining")
        if problem := await self.pipelines.problem():
            raise ApiError(503, problem, "not_ready")
        return Reply({"status": "ready"})

    async def _metrics(self) -> Reply:
        return Reply(self.metrics.text(), self.metrics.media)

    @cached_property
    def _document(self) -> bytes:
        return _replies.encoded(document(self.routes, bool(self.settings.key)))

    async def _openapi(self) -> Reply:
        return Reply(self._document)


def routes() -> dict[str, list[Route]]:
    """All routes of all dialects by path; those that claim bodies before those that take what is left."""
    found: dict[str, list[Route]] = {}
    for name in members.describe("serving"):
        for route in members.load("serving", name, "dialect").ROUTES:
            found.setdefault(route.path, []).append(route)
    for own in found.values():
        own.sort(key=lambda route: route.claims is None)
    return found


def _claimed(own: Iterable[Route], body: Mapping[str, Any]) -> Route:
    *_, last = own
    return next((route for route in own if route.claims is None or route.claims(body)), last)


def say(line: str) -> None:
    """A line on stderr; where the disk is full or nobody reads, the line is lost and nothing else."""
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr, flush=True)
