"""What is measured of servers: rates by turns, latency at a common rate, overhead, overload and endurance."""

import asyncio
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import _memory as memory
import numpy as np
from _server_load import Asked, Found, closed, endless, ms, opened
from _server_sides import NATIVE, Dialect, Item, Server, asked
from _server_work import Work

from karat.rewards._local import LocalModel

WARM = 2  # requests for each caller before anything is measured
NORMAL = 2.0  # times the usual p99: up to this, latency is back to normal


@dataclass(frozen=True)
class Part:
    """One comparison."""

    name: str
    what: str
    work: Work
    most: int  # requests per second that are made ready, all different; a turn ends before its time without more
    callers: int
    dialects: dict[str, Dialect]  # by side
    wanted: dict[str, float]  # times a side's scores per second that karat has to give


@dataclass
class Rounds:
    """What came of one side's turns."""

    found: list[Found] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)  # milliseconds of the server for each score
    others: list[float] = field(default_factory=list)  # share of all cores that other processes took

    @property
    def rates(self) -> list[float]:
        """Scores per second, turn by turn."""
        return [own.rate for own in self.found]

    @property
    def requests(self) -> float:
        """Requests per second."""
        return float(np.median([len(own.latencies) / own.seconds for own in self.found]))

    def row(self) -> dict[str, Any]:
        """As it is printed."""
        latencies = [s for own in self.found for s in own.latencies]
        return {
            "scores_per_s": round(float(np.median(self.rates)), 1),
            "turns": [round(rate, 1) for rate in self.rates],
            "p50_ms": ms(latencies, 0.5),
            "p99_ms": ms(latencies, 0.99),
            "cpu_ms_per_score": round(float(np.median(self.cpu)), 3),
            "others_cpu_percent": round(100 * max(self.others)),
            **faults(self.found),
        }


def faults(found: Sequence[Found]) -> dict[str, Any]:
    """Replies that were wrong, and requests without one."""
    said = next((own.first_error for own in found if own.first_error), "")
    counts = {name: sum(getattr(own, name) for own in found) for name in ("wrong", "lost", "doubled", "errors")}
    return {**counts, "refused": sum(len(own.refusals) for own in found), **({"first_error": said} if said else {})}


@contextmanager
def running(server: Server) -> Iterator[None]:
    """The others stand still meanwhile."""
    server.resume()
    try:
        yield
    finally:
        server.pause()


class Sides:
    """Servers of one model, and requests for them, made once for each way of asking."""

    def __init__(self, part: Part, items: Sequence[Item], servers: Sequence[Server], model: LocalModel) -> None:
        self.servers = {own.name: own for own in servers if own.name in part.dialects}
        made: dict[Dialect, list[Asked]] = {}
        for name in self.servers:
            dialect = part.dialects[name]
            if dialect not in made:
                made[dialect] = asked(dialect, model, items)
        self.part = part
        self.streams = {name: iter(made[part.dialects[name]]) for name in self.servers}
        for name, server in list(self.servers.items()):
            with running(server):
                warm = islice(self.streams[name], WARM * part.callers)
                found = asyncio.run(closed(server.target(part.dialects[name]), warm, part.callers, 60.0))
            if not found.scores:  # as infinity, where callers are many
                print(f"{part.name}: {name} answers none of {found.lost} and is left out", file=sys.stderr)
                del self.servers[name]

    def turn(self, name: str, rounds: Rounds, seconds: float, rate: float | None = None) -> None:
        """One side's: callers that wait for their replies, or Poisson arrivals at a rate."""
        server, target = self.servers[name], self.servers[name].target(self.part.dialects[name])
        stream = self.streams[name]
        with running(server):
            before, spent = Clock(), server.cpu_seconds()
            load = (
                closed(target, stream, self.part.callers, seconds)
                if rate is None
                else opened(target, stream, rate, seconds)
            )
            found = asyncio.run(load)
            spent = server.cpu_seconds() - spent
        rounds.found.append(found)
        rounds.cpu.append(1000 * spent / max(found.scores, 1))
        rounds.others.append(before.others(spent))


class Clock:
    """Since when, and how much of the machine others took since."""

    def __init__(self) -> None:
        self.wall, self.own, self.busy = time.perf_counter(), time.process_time(), _busy()

    def others(self, servers: float) -> float:
        """Share of all cores that neither this process nor the server took, which took `servers` seconds."""
        whole = (time.perf_counter() - self.wall) * (os.cpu_count() or 1)
        return max(0.0, (_busy() - self.busy - servers - (time.process_time() - self.own)) / whole)


def _busy() -> float:
    fields = [int(part) for part in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return (sum(fields) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")  # without idle and waiting for disks


def compare(sides: Sides, turns: int, seconds: float) -> Iterator[dict[str, Any]]:
    """Rates by turns, A B A B; then each side's latency where all are asked as often as vLLM can answer at 80 %."""
    part = sides.part
    busy = {name: Rounds() for name in sides.servers}
    for _ in range(turns):
        for name, own in busy.items():
            sides.turn(name, own, seconds)
    for name, own in busy.items():
        yield {"part": part.name, "side": name, "load": f"{part.callers} callers", **own.row()}
    mine = busy["karat"].rates
    for name, least in part.wanted.items():
        if name in busy:
            ratios = [a / b for a, b in zip(mine, busy[name].rates, strict=True)]
            spread = {"turns": [round(r, 2) for r in ratios]}
            yield shown(
                f"{part.what}: scores per second, times {name}", float(np.median(ratios)), least=least, **spread
            )
    slowest = "vllm" if "vllm" in busy else "karat"
    yield from _same_rate(sides, [n for n in ("karat", slowest) if n in busy], 0.8 * busy[slowest].requests, seconds)


def _same_rate(sides: Sides, names: list[str], rate: float, seconds: float) -> Iterator[dict[str, Any]]:
    steady = {name: Rounds() for name in dict.fromkeys(names)}
    for name, own in steady.items():
        sides.turn(name, own, seconds, rate)
    for name, own in steady.items():
        load = f"open loop, {rate:.0f} requests/s"
        yield {"part": sides.part.name, "side": name, "load": load, **own.row()}
    p99 = {name: own.row()["p99_ms"] for name, own in steady.items()}
    if len(p99) > 1 and None not in p99.values():
        yield shown(f"{sides.part.what}: p99 at the same rate, times vllm", p99["karat"] / p99["vllm"], most=1.0)


def shown(
    what: str, figure: float, least: float | None = None, most: float | None = None, **more: Any
) -> dict[str, Any]:
    """A figure and whether it is what it has to be."""
    holds = (least is None or figure >= least) and (most is None or figure <= most)
    wanted = f">= {least:g}" if least is not None else f"<= {most:g}"
    return {"shows": what, "figure": round(figure, 3), "wanted": wanted, "holds": holds, **more}


def overhead(server: Server, model: LocalModel, items: Sequence[Item], blocks: int = 10) -> Iterator[dict[str, Any]]:
    """Seconds of lone requests over those of bare forwards in this process, by turns."""
    work = asked(NATIVE, model, items)
    model.engine.clear()  # it has seen these texts when the scores to be got were made
    bare: list[float] = []
    over = Found()
    size = len(items) // blocks
    with running(server):
        for block in range(blocks):
            part = slice(block * size, (block + 1) * size)
            found = asyncio.run(closed(server.target(NATIVE), iter(work[part]), 1, 1e9))
            over.latencies += found.latencies[1:]  # the first one connects
            over.wrong += found.wrong
            over.lost += found.lost + found.errors
            bare += [_bare(model, item.texts[0]) for item in items[part]]
    yield {"part": "overhead", "side": "karat", "load": "1 caller", **over.figures(), "scores": len(over.latencies)}
    yield {"part": "overhead", "side": "bare forward", "p50_ms": ms(bare, 0.5), "p99_ms": ms(bare, 0.99)}
    for quantile, most in ((0.5, 2.0), (0.99, 5.0)):
        figure = 1000 * float(np.quantile(over.latencies, quantile) - np.quantile(bare, quantile))
        yield shown(f"overhead of one request in ms, p{100 * quantile:.0f}", figure, most=most)


def _bare(model: LocalModel, text: str) -> float:
    rendered: Any = model.renderer.finished(text)
    start = time.perf_counter()
    model.numbers([rendered.sequence])
    return time.perf_counter() - start


def overload(server: Server, model: LocalModel, items: Sequence[Item], seconds: float) -> Iterator[dict[str, Any]]:
    """Ten times what it can do; then half of it, and how long that takes to be as it was before."""
    target, work = server.target(NATIVE), asked(NATIVE, model, items)
    stream = endless(work)
    with running(server):
        asyncio.run(closed(target, islice(stream, WARM * 32), 32, 60.0))
        most = asyncio.run(closed(target, stream, 32, seconds))
        usual = asyncio.run(opened(target, stream, 0.5 * most.rate, seconds))
        over = asyncio.run(opened(target, stream, 10 * most.rate, seconds))
        ended = time.perf_counter()
        after = asyncio.run(opened(target, stream, 0.5 * most.rate, 8.0))
    for load, found in (("32 callers", most), ("50 %", usual), ("1000 %", over), ("50 % again", after)):
        yield {"part": "overload", "side": "karat", "load": load, **found.figures()}
    limit = NORMAL * float(np.quantile(usual.latencies, 0.99))
    slow = [due + took - ended for due, took in zip(after.moments, after.latencies, strict=True) if took > limit]
    yield shown("ten times overload: goodput over capacity", over.rate / most.rate, least=0.9)
    yield shown("ten times overload: ms to a refusal, p99", ms(over.refusals, 0.99) or float("inf"), most=50.0)
    late = float(np.quantile(slow, 0.99)) if len(slow) > len(after.latencies) // 100 else 0.0
    yield shown("seconds until latency is normal after it", late, most=5.0)
    yield shown("wrong, lost, doubled", over.wrong + over.lost + over.doubled + over.errors, most=0.0)


def soak(server: Server, model: LocalModel, items: Sequence[Item], seconds: float) -> Iterator[dict[str, Any]]:
    """80 % of what it can do, for long; the same requests again and again, at capacity as well."""
    target, work = server.target(NATIVE), asked(NATIVE, model, items)
    with running(server):
        asyncio.run(closed(target, iter(work), 64, 120.0))
        most = asyncio.run(closed(target, endless(work), 64, max(5.0, seconds / 60)))
        found, seen = asyncio.run(_watched(server, opened(target, endless(work), 0.8 * most.rate, seconds), seconds))
    first, last = seen[len(seen) // 10], seen[-1]
    yield {
        "part": "soak",
        "side": "karat",
        "load": "80 %",
        **found.figures(),
        "first": first,
        "last": last,
        "held": seen,
    }
    yield shown("soak: lost, doubled or wrong", found.lost + found.doubled + found.wrong + found.errors, most=0.0)
    yield shown("soak: growth of resident memory in percent", 100 * (last["MiB"] / first["MiB"] - 1), most=2.0)


async def _watched(server: Server, load: Any, seconds: float) -> tuple[Found, list[dict[str, float]]]:
    """A load, and what the server holds meanwhile."""
    seen: list[dict[str, float]] = []

    async def watch() -> None:
        while True:
            await asyncio.sleep(seconds / 40)
            seen.append(_held(server.process.pid))

    task = asyncio.ensure_future(watch())
    try:
        return await load, seen
    finally:
        task.cancel()


def _held(pid: int) -> dict[str, float]:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    files, threads = (len(os.listdir(f"/proc/{pid}/{what}")) for what in ("fd", "task"))
    return {"MiB": pages * os.sysconf("SC_PAGE_SIZE") / 2**20, "files": files, "threads": threads}


def peak(server: Server) -> int:
    """MiB that it took at the most."""
    return memory.peak(memory.family(server.process.pid))
