"""The door of a server whose models are on a cluster: who comes in, which replica answers, and what if that one dies.

It knows no dialect and no model: replicas do, which run the application of `karat serve` as it is.
"""

import asyncio
import itertools
import json
import secrets
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing, suppress
from typing import Any

from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, RayServeException

from karat.engine._load import Overloaded
from karat.scaling import _affinity
from karat.scaling._figures import together
from karat.scaling._router import Route
from karat.scaling._wire import Asked, Headers, Said
from karat.serving import _replies
from karat.serving._app import say
from karat.serving._deadlines import in_time
from karat.serving._incoming import Gone, Incoming, Settings
from karat.serving.base import ApiError, Reply
from karat.types import Refused

TRIES = 3  # replicas that a request may see die
LATER = (429, 503)  # what one replica says that has too much to do or ends, and another need not
GRACE = 5.0  # seconds beyond its deadline in which a replica says that it is late
RELOAD = "/admin/reload"
WATCH = 5.0  # seconds between two looks whether the command's cluster is there


class Replicas:
    """The models as a cluster has them: any number of times, and one at a time anew."""

    def __init__(self, handle: Any, record: Any, names: Sequence[str]) -> None:
        """`handle` is Ray Serve's, `record` the actor that knows what is served."""
        self._handle, self._record, self._names = handle, record, names
        self._whole = handle.options(method_name="whole")
        self._parts = handle.options(method_name="answer", stream=True)
        self.broken = ""  # why nothing can be answered any more

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    async def ask(self, asked: Asked, route: Route) -> AsyncGenerator[Said, None]:
        """The parts of a reply, of the replica that the route leads to.

        Raises:
            RayError, RayServeException: it died on the way, or there is none.
        """
        streams = b'"stream"' in asked.body
        found = (self._parts if streams else self._whole).remote(route, asked)
        more = True
        try:
            while more:
                said = await (anext(found) if streams else found)
                more = said.more
                yield said
        finally:
            if more:  # nobody waits for it, or it failed
                found.cancel()

    async def all(self) -> list[str]:
        """Replicas that answer."""
        route = Route()
        async with aclosing(self.ask(Asked("GET", "/livez"), route)) as said:
            await anext(said, None)
        return list(route.known)

    async def watch(self) -> None:
        """Wait for the end of the cluster, or of the command that started the replicas."""
        while not self.broken:
            await asyncio.sleep(WATCH)
            try:
                await self._record.problem.remote()
            except RayError:
                self.broken = "the cluster ended, or the command that started the replicas"

    async def reload(self, name: str) -> None:
        """Load a model anew everywhere, one replica after the other; the first decides whether it is done.

        Raises:
            Refused: the first cannot; all go on with the old one.
        """
        first, *_ = await self.all()
        fingerprint, problem = await self._call("renew", first, name)
        if problem:
            raise Refused(problem)
        await self.follow(name, fingerprint, first)

    async def follow(self, name: str, fingerprint: str, first: str) -> None:
        """Have all replicas do what the first has done; one that cannot is replaced by another."""
        await self._record.expect.remote(name, fingerprint)
        done = {first}
        while rest := [one for one in await self.all() if one not in done]:
            done.add(rest[0])
            with suppress(RayError, RayServeException, LookupError):  # another replica takes its place, and is new
                _, problem = await self._call("renew", rest[0], name, fingerprint)
                if problem:
                    say(f"karat: a replica is replaced, as it does not load {name} anew: {problem}")
                    await self._call("replace", rest[0], problem)

    async def _call(self, method: str, only: str, *given: Any) -> Any:
        """What one replica gives, however long that takes.

        Raises:
            RayError, RayServeException: it died on the way.
            LookupError: it is not there.
        """

        async def asked() -> Any:
            return await self._handle.options(method_name=method).remote(Route(only=only), *given)

        task = asyncio.create_task(asked())
        try:
            while not (await asyncio.wait([task], timeout=WATCH))[0]:
                if only not in await self.all():
                    raise LookupError(only)
            return task.result()
        finally:
            task.cancel()


class Front:
    """An ASGI application that hands requests on."""

    def __init__(self, replicas: Replicas, settings: Settings) -> None:
        self.pipelines, self.settings = replicas, settings
        self.problem = ""
        self._numbers, self._start = itertools.count(), secrets.token_hex(4)
        self._watching: asyncio.Task[None] | None = None
        self._rolling, self._tasks = asyncio.Lock(), set[asyncio.Task[Any]]()
        self._dead: set[str] = set()  # replicas that ended with requests

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """One connection's event, as ASGI says."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "http":
            with suppress(Gone):
                await self._answer(Incoming(scope, receive), send)
        else:
            await send({"type": "websocket.close", "code": 1003})

    async def _live(self, receive: Any, send: Any) -> None:
        """Start to watch the cluster, and end it."""
        while True:
            event = (await receive())["type"]
            if event == "lifespan.startup":
                self._watching = asyncio.create_task(self.pipelines.watch())
                await send({"type": "lifespan.startup.complete"})
            else:
                if self._watching:
                    self._watching.cancel()
                await send({"type": "lifespan.shutdown.complete"})
                return

    async def _answer(self, incoming: Incoming, send: Any) -> None:
        number = incoming.number(f"{self._start}-{next(self._numbers):x}")
        going = _Going(send)
        try:
            loading = incoming.path == RELOAD  # which takes as long as it takes
            async with in_time(None if loading else incoming.deadline(self.settings) + GRACE):
                await self._answered(incoming, number, going)
        except (Gone, _BrokenOff):
            raise
        except (Exception, asyncio.CancelledError) as error:  # cancelled at a second signal
            if going.parts:
                raise _BrokenOff from error
            await _replies.send(_replies.of_error(error, number), send, {"x-request-id": number})

    async def _answered(self, incoming: Incoming, number: str, going: "_Going") -> None:
        asked = await self._asked(incoming, number)
        special = {"/livez": self._alive, "/metrics": self._figures, RELOAD: self._reload}.get(asked.path)
        route = Route(_affinity.key_of(asked.body))
        await incoming.unless_left(special(asked, going) if special else self._forward(asked, route, going))

    async def _asked(self, incoming: Incoming, number: str) -> Asked:
        """The request with its body, which nobody sends without the key."""
        body = b""
        if incoming.method not in ("GET", "HEAD"):
            incoming.check_key(self.settings)
            body = await incoming.raw(self.settings)
        left = incoming.deadline(self.settings) - incoming.began - incoming.seconds
        told = {**incoming.headers, "x-request-id": number, "x-request-timeout": f"{max(left, 1e-3):.3f}"}
        headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in told.items()]
        return Asked(incoming.method, incoming.path, headers, body)

    async def _forward(self, asked: Asked, route: Route, going: "_Going") -> None:
        """Have a replica answer; another where it dies, or has no time while others may have."""
        deaths = 0
        while True:
            going.again()
            try:
                async with aclosing(self.pipelines.ask(asked, route)) as parts:
                    async for said in parts:
                        if said.status in LATER and len(route.tried) < len(route.known) and not route.only:
                            break
                        await going.on(said)
                if going.done:
                    return
            except BackPressureError:
                raise Overloaded(0.0, 1.0) from None
            except RayTaskError:
                raise
            except (RayError, RayServeException) as error:
                deaths += 1
                self._note(route, error)
                if deaths == TRIES:
                    raise ApiError(
                        503, f"a replica died each of the {TRIES} times; send it by itself", "replica_died"
                    ) from None

    def _note(self, route: Route, error: Exception) -> None:
        """Say once of a replica that it died."""
        last = route.tried[-1] if route.tried else route.only
        if last not in self._dead:
            self._dead.add(last)
            say(f"karat: a replica ended with requests, which others answer ({type(error).__name__})")

    # What is not for one replica

    async def _alive(self, asked: Asked, going: "_Going") -> None:
        await going.reply(Reply({"status": "alive"}))

    async def _whole(self, asked: Asked, route: Route) -> "_Going":
        """What one replica replies.

        Raises:
            TimeoutError: nothing, of the only one that may; it has ended.
        """
        found = _Going(_nowhere)
        async with asyncio.timeout(WATCH if route.only else None):
            await self._forward(asked, route, found)
        return found

    async def _figures(self, asked: Asked, going: "_Going") -> None:
        """Those of every replica, by its name."""
        names = await self.pipelines.all()
        found = await asyncio.gather(*(self._whole(asked, Route(only=name)) for name in names), return_exceptions=True)
        told = {name: own for name, own in zip(names, found, strict=True) if isinstance(own, _Going)}
        refused = [own for own in told.values() if own.status != 200]
        if refused:
            await refused[0].on_to(going)
            return
        texts = {name: own.body.decode() for name, own in told.items()}
        await going.reply(Reply(together(texts), "text/plain; version=0.0.4; charset=utf-8"))

    async def _reload(self, asked: Asked, going: "_Going") -> None:
        """One replica's answer; where it has the new model, all others follow before it is told."""
        task = asyncio.create_task(self._rolled(asked))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        found = await asyncio.shield(task)  # a client that leaves does not leave half of it
        await found.on_to(going)

    async def _rolled(self, asked: Asked) -> "_Going":
        async with self._rolling:
            found = await self._whole(asked, route := Route())
            if found.status == 200:
                new = json.loads(found.body)
                await self.pipelines.follow(new["id"], new["fingerprint"], route.tried[-1])
            return found


class _BrokenOff(Exception):
    """A reply that has begun cannot go on; the server cuts the connection, so that nobody takes it for whole."""


class _Going:
    """A reply on its way to the client, which gets each part once, whichever replica it comes from."""

    def __init__(self, send: Any) -> None:
        self._send = send
        self.status, self.body = 0, b""
        self.headers: Headers = ()
        self.parts = 0  # that the client has
        self.done = False
        self._seen = 0  # of the replica that answers now

    def again(self) -> None:
        """Another replica begins the reply anew.

        Raises:
            _BrokenOff: what the client has is not what that one will say, as generated texts differ each time.
        """
        lines = any(name == b"content-type" and b"ndjson" in value for name, value in self.headers)
        if self.parts and not lines:
            raise _BrokenOff
        self._seen = 0

    async def on(self, said: Said) -> None:
        """The next part; those that the client has are not sent twice."""
        self._seen += 1
        if self._seen <= self.parts:
            return
        if not self.parts:
            self.status, self.headers = said.status, said.headers
            await self._send({"type": "http.response.start", "status": said.status, "headers": self.headers})
        self.parts += 1
        self.body = said.body
        await self._send({"type": "http.response.body", "body": said.body, "more_body": said.more})
        self.done = not said.more

    async def on_to(self, other: "_Going") -> None:
        """Tell another client the same."""
        await other.on(Said(self.body, False, self.status, self.headers))

    async def reply(self, reply: Reply) -> None:
        """A reply of the server's own."""
        await _replies.send(reply, self._send, {})
        self.done = True


async def _nowhere(_: Any) -> None:
    """Sent to nobody."""
