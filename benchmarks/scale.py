"""A file scored on a cluster of two one-core nodes: workers are killed on the way, and the output stays the same.

`python benchmarks/scale.py --rows 200000 --json benchmarks/scale.json`. Built-in word problems with sixteen answers to
each, in an order of chance; a seeded scratch model; everything deterministic, and every replica has one thread.

alone      one process.
killed     two replicas, of which three are killed, when a fifth, two and three fifths of the shards are there.
one, two   replicas of one thread each, by turns: rows per second, from a fifth of the shards to the last.
costs      what benchmarks/scale_model.py fits its model of capacity to.
"""

import argparse
import json
import os
import pickle
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import torch

from karat import arithmetic
from karat.models import scratch
from karat.rewards import _offline
from karat.scaling import ray_score
from karat.scaling._replica import Replica
from karat.scaling._shards import Open, cut
from karat.types import Example, as_messages

ANSWERS, KILLS = 16, (0.2, 0.4, 0.6)
TINY, SMALL = "scratch:hidden=64,layers=2", "scratch"
NODE = {"num_cpus": 1, "object_store_memory": 256 << 20}
# One thread for each process; a busy machine answers late.
SURROUNDINGS = {
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_raylet_start_wait_time_s": "300",
    "RAY_health_check_timeout_ms": "60000",
}
PROMPTS, COUNTS, REPEATS = (0, 2, 6), (1, 4, 16), 2  # worked examples before a question; answers to it; turns


def make(folder: Path, rows: int) -> tuple[Path, Path]:
    """A model and its data."""
    made = arithmetic.candidate_rows(rows // ANSWERS, ANSWERS)
    kept = [{name: row[name] for name in ("id", "prompt", "response")} for row in made]
    texts = [f"{row['prompt']} {row['response']}" for row in kept[:5000]]
    model = scratch.build(folder / "model", TINY, texts, 0)
    random.Random(0).shuffle(kept)
    data = folder / "answers.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in kept))
    return model, data


# ------------------------------------------------------------------------------------------- the command


def score(model: Path, data: Path, output: Path, *options: str, kills: Sequence[int] = ()) -> dict[str, Any]:
    """What a run of `karat score` took; `kills` are the numbers of finished shards at which a replica is killed."""
    command = [sys.executable, "-m", "karat", "score", str(model), str(data), "--output", str(output)]
    start = time.monotonic()
    driver = subprocess.Popen([*command, "--deterministic", *options], stdout=subprocess.DEVNULL)
    times, killed = watched(driver, output.with_name(output.name + ".parts"), kills)
    if driver.wait():
        raise SystemExit(f"karat score ended with {driver.returncode}")
    found: dict[str, Any] = {"seconds": time.monotonic() - start, "killed": killed}
    if "--ray" in options and len(times) > 1:  # one process writes other parts than shards
        later = times[len(times) // 5 :]  # when all replicas are there
        rows = ray_score.SHARD * (len(later) - 1)
        found["rows_per_second"] = rows / (later[-1][0] - later[0][0])
        found["driver_seconds_per_row"] = (later[-1][1] - later[0][1]) / rows
    return found


def watched(driver: Any, parts: Path, kills: Sequence[int]) -> tuple[list[tuple[float, float]], list[int]]:
    """When each part was there, with the CPU time of the driver until then, and the processes that were killed."""
    times: list[tuple[float, float]] = []
    killed: list[int] = []
    process = psutil.Process(driver.pid)
    while driver.poll() is None:
        time.sleep(0.02)
        there = sum(1 for _ in parts.glob("part-*.jsonl")) if parts.is_dir() else 0
        if there > len(times):
            used = process.cpu_times()
            times += [(time.monotonic(), used.user + used.system)] * (there - len(times))
        if len(killed) < len(kills) and there >= kills[len(killed)]:
            killed += kill_one(killed)
    return times, killed


def kill_one(before: list[int]) -> list[int]:
    """A replica among the processes of this one's cluster, which was not killed before."""
    for process in psutil.Process().children(recursive=True):
        try:
            if process.pid not in before and "ray::Replica" in " ".join(process.cmdline()):
                process.kill()
                return [process.pid]
        except psutil.Error:
            continue
    return []


# --------------------------------------------------------------------------------------------- the costs


def shards_of(prompts: int, count: int, size: int = 64) -> list[Any]:
    """A shard whose questions have `prompts` worked examples before them and `count` answers each."""
    drawn = arithmetic.pool(size // count, count, split="train")
    shots = "\n\n".join(p.question + "\n" + "\n".join(p.steps) for p in arithmetic.problems(prompts * len(drawn), 1))
    blocks = [block for block in shots.split("\n\n") if block]
    examples = []
    for number, (problem, candidates) in enumerate(drawn):
        before = blocks[number * prompts : (number + 1) * prompts]
        prompt = as_messages("\n\n".join([*before, problem.question]))
        examples += [Example(prompt, candidate.response) for candidate in candidates]
    return cut(examples, size)


def costs(folder: Path, data: Path) -> dict[str, Any]:
    """Seconds of a shard by its tokens and rows, and what the driver does for a row."""
    texts = [row["prompt"] for row in arithmetic.candidate_rows(500, 2)]
    model = scratch.build(folder / "small", SMALL, texts, 0)
    start = time.perf_counter()
    replica = Replica(Open(str(model)))
    opened = time.perf_counter() - start
    return {"open_seconds": opened, "shards": measured(replica), **of_driver(folder, data)}


def measured(replica: Replica) -> list[dict[str, float]]:
    """A row for each workload: the median of its turns, and its tokens."""
    engine: Any = replica._model.engine
    points = {(p, n): shards_of(p, n)[0] for p in PROMPTS for n in COUNTS}
    took: dict[tuple[int, int], list[float]] = {point: [] for point in points}
    rows = {}
    for turn in range(REPEATS + 1):
        for point, shard in points.items():
            engine.clear()
            engine.computed = 0
            start = time.perf_counter()
            lines = [json.loads(line) for line in replica.score(shard)]
            if turn:
                took[point].append(time.perf_counter() - start)
            tokens = sum(line["tokens"] for line in lines)
            rows[point] = {"examples": point[0], "answers": point[1], "rows": len(lines), "tokens": tokens}
            rows[point]["computed"] = engine.computed
    return [{**rows[point], "seconds": statistics.median(took[point])} for point in points]


def of_driver(folder: Path, data: Path) -> dict[str, float]:
    """Seconds of CPU for a row before and after it is scored, and its bytes in memory and on the wire."""
    own = psutil.Process().memory_info
    resident, start = own().rss, time.process_time()
    job = _offline.begin(str(data), folder / "costs.jsonl", {})
    shards = cut(list(job.examples()), ray_score.SHARD)
    before, rows = time.process_time() - start, len(job.rows)
    resident = own().rss - resident
    result = {"reward": 0.123456, "unscored": None, "tokens": 60, "truncated": False, "flags": []}
    start = time.process_time()
    _offline.finish(job, lambda: [result] * rows)
    return {
        "read_seconds_per_row": before / rows,
        "merge_seconds_per_row": (time.process_time() - start) / rows,
        "memory_bytes_per_row": resident / rows,
        "wire_bytes_per_row": len(pickle.dumps(shards[0])) / len(shards[0].places) + len(json.dumps(result)),
    }


class Sleeper:
    """Somebody to wait for."""

    def sleep(self, seconds: float) -> None:
        """Do nothing."""
        time.sleep(seconds)


def waiting(address: str, replicas: int = 1000) -> float:
    """Seconds, for each replica, of asking which of so many has an answer: what grows with the cluster."""
    import ray

    ray.init(address=address, log_to_driver=False)
    try:
        actor: Any = ray.remote(Sleeper).options(num_cpus=0).remote()
        refs = [actor.sleep.remote(600) for _ in range(replicas)]
        took = []
        for _ in range(20):
            start = time.perf_counter()
            ray.wait(refs, timeout=0)
            took.append(time.perf_counter() - start)
        return statistics.median(took) / replicas
    finally:
        ray.shutdown()


# ---------------------------------------------------------------------------------------------- the whole


def run(folder: Path, rows: int, turns: int) -> dict[str, Any]:
    """Everything, in the order of the first lines."""
    from ray.cluster_utils import Cluster

    model, data = make(folder, rows)
    kills = [max(int(share * rows / ray_score.SHARD), 1) for share in KILLS]
    found: dict[str, Any] = {"rows": rows, "machine": f"{platform.machine()}, {os.cpu_count()} cores"}
    found["costs"] = costs(folder, data)
    found["alone"] = score(model, data, folder / "alone.jsonl")
    cluster = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
    cluster.add_node(**NODE)
    try:
        ray = ("--ray", cluster.address)
        found["costs"]["wait_seconds_per_replica"] = waiting(cluster.address)
        found["killed"] = score(model, data, folder / "killed.jsonl", *ray, kills=kills)
        wanted = (folder / "alone.jsonl").read_bytes()
        found["identical"] = (folder / "killed.jsonl").read_bytes() == wanted
        for turn in range(turns):
            for name, replicas in (("one", 1), ("two", 2)):
                output = folder / f"{name}-{turn}.jsonl"
                took = score(model, data, output, *ray, "--replicas", str(replicas))
                found.setdefault(name, []).append(took)
                found["identical"] &= output.read_bytes() == wanted
    finally:
        cluster.shutdown()
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--json", type=Path, help="where the figures go")
    options = parser.parse_args()
    os.environ.update(SURROUNDINGS)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        found = run(Path(folder), options.rows - options.rows % ANSWERS, options.turns)
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
