"""How far one driver and its replicas reach: a model of capacity, fitted to `scale.py`'s figures, simulated to 1,000.

`python benchmarks/scale_model.py benchmarks/scale.json --plot docs/images/scale.png`

A shard takes a replica a * computed tokens + b * rows seconds, fitted to half of the measured workloads and judged on
the others. The driver handles one shard after the other, and every replica has two. Replicas die and some are slow.
"""

import argparse
import heapq
import json
import random
from collections import deque
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np
from scipy.optimize import nnls

from karat.scaling._pool import AHEAD
from karat.scaling.ray_score import SHARD

REPLICAS = (1, 2, 4, 8, 16, 32, 64, 125, 250, 500, 1000)
# Assumed, not measured: the network of the driver, how often a replica dies, and how many are slow and how slow.
WIRE, LIFE, SLOW, SLOWNESS = 10e9 / 8, 100 * 3600.0, 0.02, 2.0
# Assumed as well: tokens per second of a replica, 40 % of 400 TFLOP/s at 2 FLOP a parameter, and the time to load it.
ASSUMED = {"assumed: 1B, one GPU": (80_000.0, 20.0), "assumed: 7B, one GPU": (11_000.0, 60.0)}


@dataclass(frozen=True)
class Rows:
    """What a file holds."""

    count: int = 10_000_000
    prompt: int = 300  # tokens
    answer: int = 200
    answers: int = 16  # to a prompt

    def computed(self, routed: bool = True) -> float:
        """Tokens to compute for a row; answers to a prompt share it only where they meet."""
        return self.prompt / (self.answers if routed else 1) + self.answer


@dataclass(frozen=True)
class Costs:
    """Seconds and bytes."""

    token: float  # of a replica
    row: float  # of a replica, beside its tokens
    driver: float  # a row while replicas work
    serial: float  # a row before and after
    wire: float  # bytes a row
    memory: float  # bytes a row, of the driver
    wait: float  # of the driver, for each replica at each shard
    start: float  # seconds until a replica is there

    def shard(self, rows: Rows, routed: bool = True) -> float:
        """Seconds of a shard at a replica."""
        return SHARD * (self.token * rows.computed(routed) + self.row)

    def handling(self, replicas: int) -> float:
        """Seconds of the driver for a shard."""
        return SHARD * self.driver + replicas * self.wait


def fit(measured: dict[str, Any]) -> tuple[Costs, float]:
    """The costs, and the worst ratio of time to model, either way, on the workloads that were not fitted."""
    shards, costs = measured["costs"]["shards"], measured["costs"]
    work = np.array([[shard["computed"], shard["rows"]] for shard in shards], float)
    seconds = np.array([shard["seconds"] for shard in shards])
    (token, row), _ = nnls(work[::2] / seconds[::2, None], np.ones(len(seconds[::2])))
    ratio = (work @ [token, row] / seconds)[1::2]
    driver = float(np.median([run["driver_seconds_per_row"] for run in measured["two"]]))
    serial = costs["read_seconds_per_row"] + costs["merge_seconds_per_row"]
    found = Costs(
        float(token),
        float(row),
        driver,
        serial,
        costs["wire_bytes_per_row"],
        costs["memory_bytes_per_row"],
        costs["wait_seconds_per_replica"],
        costs["open_seconds"],
    )
    return found, float(np.maximum(ratio, 1 / ratio).max())


def simulate(replicas: int, rows: Rows, costs: Costs, routed: bool = True, seed: int = 0) -> dict[str, float]:
    """Rows per second while replicas work and of the whole run, and how busy replicas and driver are."""
    chance = random.Random(seed)
    pace = [SLOWNESS if chance.random() < SLOW else 1.0 for _ in range(replicas)]
    left = shards = -(-rows.count // SHARD)
    takes, wire = costs.shard(rows, routed), SHARD * costs.wire / WIRE
    handling = costs.handling(replicas)
    queues: list[deque[float]] = [deque() for _ in range(replicas)]  # when each one's next shards arrive
    events: list[tuple[float, int]] = []  # shards that are done, and by whom
    free = busy = end = 0.0

    def hand_out(number: int, now: float) -> None:
        nonlocal free, left
        free = max(free, now) + handling
        if left:
            left -= 1
            queues[number].append(free + wire)

    def go_on(number: int, now: float) -> None:
        nonlocal busy
        if queues[number]:
            start, seconds = max(now, queues[number].popleft()), takes * pace[number]
            busy += seconds
            if chance.random() < seconds / LIFE:
                start += costs.start + chance.random() * seconds
            heapq.heappush(events, (start + seconds, number))

    for number in [*range(replicas)] * AHEAD:
        hand_out(number, 0.0)
    for number in range(replicas):
        go_on(number, 0.0)
    while events:
        end, number = heapq.heappop(events)
        hand_out(number, end)
        go_on(number, end)
    end = max(end, free)
    whole = end + costs.start + costs.serial * rows.count
    rates = {"rows_per_second": rows.count / end, "whole": rows.count / whole, "hours": whole / 3600}
    return {"replicas": replicas, **rates, "busy": busy / end / replicas, "driver": shards * handling / end}


def limits(rows: Rows, costs: Costs) -> dict[str, float]:
    """How many replicas it takes to reach each limit: the one with the least breaks first."""
    shard = costs.shard(rows)
    rate = SHARD / shard  # rows per second of a replica
    driver = next(count for count in range(1, 10**6) if count * costs.handling(count) >= shard)
    return {
        "driver": driver,
        "network of the driver": WIRE / costs.wire / rate,
        "shards in the file": rows.count / SHARD / AHEAD,
        "half the time is reading and merging": 1 / costs.serial / rate,
    }


def plot(curves: dict[str, list[dict[str, float]]], path: Path) -> None:
    """Rows per second of the whole run by replicas; grey is what they would do if nothing else took time."""
    values = [{**point, "model": name} for name, points in curves.items() for point in points]
    ideal = [
        {"model": name, "replicas": count, "whole": count * points[0]["rows_per_second"]}
        for name, points in curves.items()
        for count in (1, 1000)
    ]
    log = alt.Scale(type="log")
    x = alt.X("replicas:Q", scale=log, title="replicas")
    y = alt.Y("whole:Q", scale=log, title="rows per second, reading and writing counted")
    colour = alt.Color("model:N", title=None, sort=list(curves), legend=alt.Legend(orient="bottom", labelLimit=400))
    lines = alt.Chart(alt.Data(values=values)).mark_line(point=True).encode(x, y, colour)
    grey = alt.Chart(alt.Data(values=ideal)).mark_line(color="#bbb", strokeDash=[4, 3]).encode(x, y, detail="model:N")
    (grey + lines).properties(width=560, height=340).save(path, scale_factor=2)


def main() -> None:
    """Fit, simulate, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("measured", type=Path)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    costs, worst = fit(json.loads(options.measured.read_text()))
    rows = Rows()
    cases = {"measured: a small model, one core": costs}
    cases |= {name: replace(costs, token=1 / rate, row=0, start=start) for name, (rate, start) in ASSUMED.items()}
    curves = {name: [simulate(count, rows, case) for count in REPLICAS] for name, case in cases.items()}
    if options.plot:
        plot(curves, options.plot)
    found = {
        "costs": asdict(costs),
        "worst_ratio_held_out": worst,
        "tokens_per_second": 1 / costs.token,
        "limits": {name: limits(rows, case) for name, case in cases.items()},
        "memory_of_driver_GB": rows.count * costs.memory / 1e9,
        "routing": {
            count: costs.shard(replace(rows, answers=count), False) / costs.shard(replace(rows, answers=count))
            for count in (1, 4, 16, 64)
        },
        "curves": curves,
    }
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
