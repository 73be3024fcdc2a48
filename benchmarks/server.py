"""`karat serve` under load beside vLLM, infinity and FastAPI with `batched`: by turns in one run, every score checked.

`KARAT_DATA=… python benchmarks/server.py --peers --json` prints each figure and what it has to be (`make peers` builds
the others); `--only tiny,overhead` chooses parts, `--soak 600` adds ten minutes at 80 % of capacity. While one server
is measured the others stand still. The driver and the server share the machine. A row says how much of it other
processes took.
"""

import argparse
import json
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))

import _server_parts as parts  # noqa: E402
import _server_sides as sides  # noqa: E402
import _server_work as work  # noqa: E402
import torch  # noqa: E402
from _server_load import many_connections  # noqa: E402
from _server_parts import WARM, Part, Sides, shown  # noqa: E402
from _server_sides import BATCHED, CLASSIFY, INFINITY, STEPS, Server  # noqa: E402

import karat  # noqa: E402

BOTH = {"karat": CLASSIFY, "vllm": CLASSIFY}
PARTS = (
    Part("tiny", "a model of 1M parameters, 64 callers", work.short, 2400, 64, BOTH, {"vllm": 4.0}),
    Part(
        "singles",
        "model S, best of 16 as single requests, 64 callers",
        work.singles,
        350,
        64,
        {**BOTH, "infinity": INFINITY, "fastapi+batched": BATCHED},
        {"vllm": 1.2, "fastapi+batched": 8.0},
    ),
    Part(
        "candidates",
        "model S, 16 candidates to a request",
        work.candidates,
        25,
        8,
        {**BOTH, "infinity": INFINITY},
        {"vllm": 2.0},
    ),
    Part("short", "model S, prompts under 128 tokens, 64 callers", work.under_128, 500, 64, BOTH, {"vllm": 2.0}),
    Part(
        "steps", "step rewards of growing solutions", work.growing, 300, 32, dict.fromkeys(BOTH, STEPS), {"vllm": 6.0}
    ),
)
MODELS: dict[str, Callable[[Path], Path]] = {"tiny": work.tiny, "S": work.small, "steps": work.steps}
OF = {"tiny": "tiny", "singles": "S", "candidates": "S", "short": "S", "steps": "steps"}
OF |= {"overhead": "tiny", "overload": "S", "soak": "tiny"}
LENGTHS = {"tiny": "512", "S": "4096", "steps": "4096"}
Row = dict[str, Any]


def servers_of(model: str, folder: Path, asked: argparse.Namespace, room: Path) -> list[Server]:
    """Karat's server and those of its peers that are asked for and there."""
    wanted = {name for part in PARTS if OF[part.name] == model and part.name in asked.only for name in part.dialects}
    found = [sides.karat(folder, *(["--compiled"] if asked.compiled else []))]
    if not asked.peers:
        return found
    if "vllm" in wanted and sides.python_of("vllm"):
        steps = {"pooling_type": "STEP", "step_tag_id": _step_id(folder)}
        more = ["--pooler-config", json.dumps(steps)] if model == "steps" else ["--enable-prefix-caching"]
        found.append(sides.vllm(folder, "--max-model-len", LENGTHS[model], *more))
    if "infinity" in wanted and sides.python_of("infinity"):
        found.append(sides.infinity(folder, room))
    if "fastapi+batched" in wanted and sides.python_of("batched"):
        found.append(sides.fastapi_batched(folder))
    return found


def _step_id(folder: Path) -> int:
    added = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    return next((own["id"] for own in added if own["content"] == work.STEP), 0)


def of_model(model: str, asked: argparse.Namespace, room: Path) -> Iterator[Row]:
    """All parts that a model is needed for."""
    folder = MODELS[model](room / model)
    names = [name for name in asked.only if OF[name] == model]
    loaded = karat.load(str(folder))
    started: list[Server] = []
    try:
        if compared := [part for part in PARTS if part.name in names]:
            for server in servers_of(model, folder, asked, room):
                started.append(server)
                start(server, asked, room / f"{model}-{server.name}.log")
                server.pause()
            yield from _started(model, started)
            for part in compared:
                most = WARM * part.callers + int(part.most * asked.seconds * (asked.turns + 1))
                yield from parts.compare(Sides(part, part.work(most), started, loaded), asked.turns, asked.seconds)
        yield from _alone(names, folder, loaded, started, asked, room)
    finally:
        for server in started:
            server.stop()


def start(server: Server, asked: argparse.Namespace, log: Path) -> None:
    """Start a server with as many threads as are asked for."""
    if threads := asked.threads if server.name == "karat" else asked.peer_threads:
        server.environment["OMP_NUM_THREADS"] = threads
    server.start(log)


def _started(model: str, started: Sequence[Server]) -> Iterator[Row]:
    for server in started:
        row = {"part": "start", "side": server.name, "model": model}
        yield {**row, "ready_s": round(server.ready, 1), "peak_MiB": parts.peak(server)}
    ready = {server.name: server.ready for server in started}
    if "vllm" in ready:
        yield shown(f"seconds until ready, model {model}, of vllm's", ready["karat"] / ready["vllm"], most=0.2)


def _alone(
    names: Sequence[str], folder: Path, loaded: Any, started: list[Server], asked: argparse.Namespace, room: Path
) -> Iterator[Row]:
    """What is measured of karat alone, each on a server of its own."""
    for name in names:
        if name not in ("overhead", "overload", "soak"):
            continue
        server = sides.karat(folder, *(["--max-wait", "1"] if name == "overload" else []))
        started.append(server)
        start(server, asked, room / f"{name}.log")
        if name == "overhead":
            yield from parts.overhead(server, loaded, work.short(1000))
        elif name == "overload":
            yield from parts.overload(server, loaded, work.long(1500), asked.seconds)
        else:
            yield from parts.soak(server, loaded, work.short(20_000), asked.soak)
        server.pause()


def line(row: Row) -> str:
    """A row for people."""
    if "shows" in row:
        return f"  {'holds' if row['holds'] else 'FAILS'}  {row['shows']}: {row['figure']:g} ({row['wanted']})"
    own = (f"{key} {value}" for key, value in row.items() if key not in ("part", "side", "turns", "held"))
    return f"{row['part']:10} {row['side']:16} {', '.join(own)}"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", type=lambda text: text.split(","), default=[name for name in OF if name != "soak"])
    parser.add_argument("--peers", action="store_true", help="beside the servers that make peers has built")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each turn")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--soak", type=float, default=0.0, help="seconds at 80 %% of capacity; 600 or 3600")
    parser.add_argument("--threads", default="1", help="of karat's server, and of this process")
    parser.add_argument("--compiled", action="store_true", help="karat's server compiles its model first")
    parser.add_argument("--peer-threads", default="", help="of the peers; else what they take by themselves")
    parser.add_argument("--json", action="store_true", help="all rows as JSON on stdout")
    asked = parser.parse_args()
    if asked.soak and "soak" not in asked.only:
        asked.only.append("soak")
    torch.set_num_threads(int(asked.threads))
    many_connections()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that no server is left behind
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as room:
        for model in MODELS:
            if any(OF[name] == model for name in asked.only):
                for row in of_model(model, asked, Path(room)):
                    rows.append(row)
                    print(line(row), file=sys.stderr, flush=True)
    if asked.json:
        print(json.dumps({"rows": rows}, indent=2))


if __name__ == "__main__":
    main()
