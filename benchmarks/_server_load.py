"""Load on a server: kept connections, callers and Poisson arrivals, and every reply held against its own scores.

Open-loop latency counts from when a request was due, so that a slow reply does not hide what waits behind it
(coordinated omission). A request is sent once: nothing is tried again, and what has no reply is counted as lost.
"""

import asyncio
import itertools
import json
import random
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

AGAIN = 0.25  # seconds that a refused caller waits
PATIENCE = 120.0  # seconds after which a request counts as lost
Values = Sequence[float]


class Asked(NamedTuple):
    """A request, and the scores that it has to get."""

    body: bytes
    values: Values


class Target(NamedTuple):
    """Where requests go and how their replies are read."""

    port: int
    path: str
    read: Callable[[Any], Values]
    tolerance: float = 1e-4  # of max(1, |score|)


@dataclass
class Found:
    """What came of a load."""

    seconds: float = 0.0
    scores: int = 0
    wrong: int = 0  # replies with other scores than the request's own
    lost: int = 0  # requests without a reply
    doubled: int = 0  # replies that nobody had asked for
    errors: int = 0  # statuses other than 200 and 429
    first_error: str = ""
    latencies: list[float] = field(default_factory=list)
    moments: list[float] = field(default_factory=list)  # when each of these was due
    refusals: list[float] = field(default_factory=list)  # latencies of 429

    @property
    def rate(self) -> float:
        """Scores per second."""
        return self.scores / max(self.seconds, 1e-9)

    def figures(self) -> dict[str, Any]:
        """As they are printed; milliseconds, and scores per second."""
        counts = {"wrong": self.wrong, "lost": self.lost, "doubled": self.doubled, "errors": self.errors}
        refused = {"refused": len(self.refusals), "refused_p99_ms": ms(self.refusals, 0.99)} if self.refusals else {}
        spread = {"p50_ms": ms(self.latencies, 0.5), "p99_ms": ms(self.latencies, 0.99)}
        said = {"first_error": self.first_error} if self.first_error else {}
        return {"scores": self.scores, "scores_per_s": round(self.rate, 1), **spread, **refused, **counts, **said}


def ms(seconds: Values, quantile: float) -> float | None:
    """A quantile in milliseconds."""
    return round(1000 * float(np.quantile(seconds, quantile)), 2) if seconds else None


class Connection(asyncio.Protocol):
    """One kept connection, one request at a time."""

    def __init__(self, target: Target, found: Found) -> None:
        self.head = f"POST {target.path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        self.port, self.found = target.port, found
        self._data, self._whole = b"", 0
        self._reply: asyncio.Future[tuple[int, bytes]] | None = None
        self._transport: asyncio.Transport | None = None

    async def ask(self, body: bytes) -> tuple[int, bytes]:
        """Status and body of the reply."""
        loop = asyncio.get_running_loop()
        if self._transport is None or self._transport.is_closing():
            await loop.create_connection(lambda: self, "127.0.0.1", self.port)
        assert self._transport is not None
        self._reply = loop.create_future()
        self._transport.write(f"{self.head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        return await self._reply

    def close(self) -> None:
        """Leave."""
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: Any) -> None:
        """Ready to ask."""
        self._transport, self._data, self._whole = transport, b"", 0

    def data_received(self, data: bytes) -> None:
        """A part of a reply, or more than one was asked for."""
        self._data += data
        if not self._whole and (end := self._data.find(b"\r\n\r\n")) >= 0:
            length = self._data[:end].lower().partition(b"content-length:")[2].split(b"\r\n")[0]
            self._whole = end + 4 + int(length)
        if self._whole and len(self._data) >= self._whole:
            reply, rest = self._data[: self._whole], self._data[self._whole :]
            self._data, self._whole = b"", 0
            self.found.doubled += bool(rest) or self._reply is None or self._reply.done()
            if self._reply is not None and not self._reply.done():
                self._reply.set_result((int(reply[9:12]), reply.partition(b"\r\n\r\n")[2]))

    def connection_lost(self, exc: Exception | None) -> None:
        """Whoever waits is told."""
        if self._reply is not None and not self._reply.done():
            self._reply.set_exception(ConnectionResetError("the server hung up"))


async def one(connection: Connection, asked: Asked, target: Target, found: Found, due: float) -> None:
    """One request; what came of it is counted."""
    try:
        async with asyncio.timeout(PATIENCE):
            status, body = await connection.ask(asked.body)
    except (OSError, TimeoutError):
        connection.close()
        found.lost += 1
        return
    took = time.perf_counter() - due
    if status == 200:
        found.latencies.append(took)
        found.moments.append(due)
        values = target.read(json.loads(body))
        found.scores += len(values)
        found.wrong += not _same(values, asked.values, target.tolerance)
    elif status == 429:
        found.refusals.append(took)
    else:
        found.errors += 1
        found.first_error = found.first_error or f"{status} {body[:200]!r}"


def _same(values: Values, wanted: Values, tolerance: float) -> bool:
    near = (abs(v - w) <= tolerance * max(1.0, abs(w)) for v, w in zip(values, wanted, strict=False))
    return len(values) == len(wanted) and all(near)


async def closed(target: Target, work: Iterator[Asked], callers: int, seconds: float) -> Found:
    """Callers that each ask as soon as they are answered, until the time or the work is over.

    Who is refused waits a moment: callers that ask again at once would take the machine from those who are served.
    """
    found, began = Found(), time.perf_counter()

    async def caller() -> None:
        connection = Connection(target, found)
        while (now := time.perf_counter()) - began < seconds and (asked := next(work, None)) is not None:
            before = len(found.refusals)
            await one(connection, asked, target, found, now)
            if len(found.refusals) > before:
                await asyncio.sleep(AGAIN)
        connection.close()

    await asyncio.gather(*(caller() for _ in range(callers)))
    found.seconds = time.perf_counter() - began
    return found


async def opened(target: Target, work: Iterator[Asked], rate: float, seconds: float, seed: int = 0) -> Found:
    """Poisson arrivals, `rate` requests per second, whatever the replies do."""
    found, chance, began, due = Found(), random.Random(seed), time.perf_counter(), 0.0
    free: list[Connection] = []
    running: set[asyncio.Task[None]] = set()

    async def ask(asked: Asked, at: float) -> None:
        connection = free.pop() if free else Connection(target, found)
        await one(connection, asked, target, found, began + at)
        free.append(connection)

    while (due := due + chance.expovariate(rate)) < seconds and (asked := next(work, None)) is not None:
        await asyncio.sleep(max(0.0, due - (time.perf_counter() - began)))
        running.add(task := asyncio.ensure_future(ask(asked, due)))
        task.add_done_callback(running.discard)
    await asyncio.gather(*running)
    found.seconds = time.perf_counter() - began
    for connection in free:
        connection.close()
    return found


def many_connections() -> None:
    """Let this process open as many as the system allows."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def endless(work: Sequence[Asked]) -> Iterator[Asked]:
    """The same requests again and again, in their order."""
    return itertools.cycle(work)
