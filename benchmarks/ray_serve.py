"""A server on a cluster under load: a replica is killed and the model replaced on the way, and every reply is checked.

`python benchmarks/ray_serve.py --responses 50000 --json benchmarks/ray_serve.json`. Two replicas of one thread each, a
seeded model of two layers, several answers to a request, callers that ask as soon as they are answered.

before   replies are the model's; a replica is killed when half of these are asked for.
update   `/admin/reload` puts in its place the same model with the sign of its head turned: a reply is either one's.
after    replies are the new model's.

A reply that is not there is lost, one with other rewards than its own is wrong, one that nobody asked for is doubled.
"""

import argparse
import asyncio
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import httpx
import psutil
from _server_load import Asked, Found, Target, closed, many_connections
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

import karat
from karat import arithmetic
from karat.models import scratch

CALLERS, ANSWERS, PROMPTS, KEY = 48, 4, 400, "a key"
TINY = "scratch:hidden=64,layers=2"
SURROUNDINGS = {
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_health_check_timeout_ms": "60000",
    "KARAT_API_KEY": KEY,
}


def make(folder: Path) -> Path:
    """The model; beside it in `new` the same with the sign of its head turned."""
    texts = [f"{row['prompt']} {row['response']}" for row in arithmetic.candidate_rows(200, ANSWERS)]
    built, model = scratch.build(folder / "built", TINY, texts, 0), folder / "model"
    shutil.copytree(built, model)
    AutoModelForSequenceClassification.from_pretrained(built, num_labels=1).save_pretrained(model)
    new = folder / "new"
    shutil.copytree(model, new)
    weights = load_file(new / "model.safetensors")
    weights["score.weight"] = -weights["score.weight"]
    save_file(weights, new / "model.safetensors", {"format": "pt"})
    return model


def requests_of(model: Path) -> list[Asked]:
    """Requests with the rewards that one process gives."""
    rows = arithmetic.candidate_rows(PROMPTS, ANSWERS)
    found = karat.load(str(model))
    asked = []
    for start in range(0, len(rows), ANSWERS):
        own = rows[start : start + ANSWERS]
        texts = [row["response"] for row in own]
        values = [one.value for one in found.score(own[0]["prompt"], texts)]
        asked.append(Asked(json.dumps({"prompt": own[0]["prompt"], "candidates": texts}).encode(), values))
    return asked


def rewards(reply: Any) -> list[float]:
    return [one["reward"] for one in reply["data"][0]["candidates"]]


def either(reply: Any) -> list[float]:
    """Of one model or the other: the sign of the first is that of all."""
    return [abs(value) for value in rewards(reply)]


def signed(asked: Sequence[Asked], turn: Callable[[float], float]) -> list[Asked]:
    return [one._replace(values=[turn(value) for value in one.values]) for one in asked]


def some(asked: Sequence[Asked], count: int, events: dict[int, Callable[[], None]]) -> Iterator[Asked]:
    """So many requests; what happens when one is asked for."""
    for place, one in enumerate(islice(cycle(asked), count)):
        if place in events:
            events[place]()
        yield one


class Server:
    """`karat serve --ray local` as users start it."""

    def __init__(self, folder: Path, model: Path) -> None:
        self._log = folder / "log"
        command = [sys.executable, "-m", "karat", "serve", str(model), "--port", "0", "--ray", "local"]
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                [*command, "--replicas", "2", "--name", "toy"], stderr=log, env={**os.environ, **SURROUNDINGS}
            )
        self.killed: list[int] = []
        self.reloads: list[tuple[int, float]] = []  # status and seconds

    def port(self) -> int:
        """Where it serves, when it does."""
        while not (found := re.search(r"serving at \S+:(\d+)\n", self._log.read_text())):
            if self.process.poll() is not None:
                raise SystemExit(self._log.read_text())
            time.sleep(0.2)
        return int(found[1])

    def replicas(self) -> list[psutil.Process]:
        """Processes of the models."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        return [one for one in children if "ServeReplica" in " ".join(one.cmdline())]

    def kill_one(self) -> None:
        """Kill a replica, as a machine that fails does."""
        victim = self.replicas()[0]
        victim.kill()
        self.killed.append(victim.pid)

    async def reload(self, port: int) -> None:
        """Replace the model while requests go on."""
        began = time.perf_counter()
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=300) as client:
            reply = await client.post("/admin/reload", json={}, headers={"authorization": f"Bearer {KEY}"})
        self.reloads.append((reply.status_code, round(time.perf_counter() - began, 1)))

    def end(self) -> int:
        """Ask it to end; its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(120)


def swap(model: Path) -> None:
    """Put the new model where the old one was."""
    model.rename(model.with_name("old"))
    model.with_name("new").rename(model)


async def load(server: Server, port: int, model: Path, asked: list[Asked], responses: int) -> dict[str, Found]:
    """All three phases."""
    path = f"/v1/reward HTTP/1.1\r\nAuthorization: Bearer {KEY}\r\nX-Load:"  # the head that each request begins with
    share, tasks = responses // 4, []

    def replace() -> None:
        swap(model)
        tasks.append(asyncio.ensure_future(server.reload(port)))

    async def phase(name: str, own: list[Asked], count: int, events: dict[int, Callable[[], None]]) -> Found:
        target = Target(port, path, either if name == "update" else rewards)
        return await closed(target, some(own, count, events), CALLERS, 3600)

    before = await phase("before", asked, 2 * share, {share: server.kill_one})
    update = await phase("update", signed(asked, abs), share, {share // 10: replace})
    await asyncio.gather(*tasks)
    after = await phase("after", signed(asked, float.__neg__), responses - 3 * share, {})
    return {"before": before, "update": update, "after": after}


def run(folder: Path, responses: int) -> dict[str, Any]:
    """The figures."""
    model = make(folder)
    asked = requests_of(model)
    server = Server(folder, model)
    try:
        phases = asyncio.run(load(server, server.port(), model, asked, responses))
    finally:
        status = server.end()
    good = [len(one.latencies) for one in phases.values()]
    counts = {
        "responses": sum(good),
        "failed": sum(one.errors + one.lost + len(one.refusals) for one in phases.values()),
        "doubled": sum(one.doubled for one in phases.values()),
        "wrong": sum(one.wrong for one in phases.values()),
    }
    rates = {"responses_per_s": round(sum(good) / sum(one.seconds for one in phases.values()), 1)}
    events = {"killed": len(server.killed), "reloads": server.reloads, "exit": status}
    told = {name: one.figures() for name, one in phases.items()}
    return {**counts, **rates, **events, "phases": told, "machine": platform.processor() or platform.machine()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--responses", type=int, default=50_000)
    parser.add_argument("--json", type=Path, help="a file to write the figures to")
    options = parser.parse_args()
    many_connections()
    with tempfile.TemporaryDirectory() as folder:
        found = run(Path(folder), options.responses)
    print(json.dumps(found, indent=2))
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")
    if found["failed"] or found["doubled"] or found["wrong"] or found["killed"] != 1 or found["reloads"][0][0] != 200:
        sys.exit(1)


if __name__ == "__main__":
    main()
