"""karat's engine against transformers and vLLM on the same models, texts and threads, taking turns in one run.

`KARAT_DATA=… python benchmarks/engine.py --models M --dtype float32 --json`; `make peers` builds vLLM's environment,
and `--no-vllm` does without. A row per model, workload and side: seconds as median, lowest and highest, and tokens
needed (distinct) beside tokens computed. `ratio` is a peer's time over karat's, pair by pair of turns.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _memory as memory
import _workloads
import numpy as np
import torch
from transformers import AutoModelForSequenceClassification
from transformers.utils import logging

from karat.engine.padded import plan
from karat.engine.probe import choose
from karat.engine.tree import Tree, packed
from karat.types import Sequence

Calls = list[list[list[int]]]
VLLM = Path(__file__).parent.parent / ".peers" / "vllm" / "bin" / "python"
MATRIX_ROWS = 1024
STEPS = ("W3s",)  # for scores of steps vLLM turns its prefix cache off; elsewhere it is on


class Karat:
    """The engine that karat chooses for the model."""

    def __init__(self, model: Any, deterministic: bool = False) -> None:
        self.model, self.engine = model, choose(model.model, deterministic)

    def __call__(self, workload: _workloads.Workload) -> list[float]:
        """Scores from an empty cache, one per sequence and call; steps are read where the workload says so."""
        self.engine.clear()
        self.engine.computed = 0
        scores = []
        for number, call in enumerate(workload.calls):
            steps = workload.steps[number] if workload.steps else [[len(ids) - 1] for ids in call]
            asked = [Sequence(tuple(ids), {"last": tuple(read)}) for ids, read in zip(call, steps, strict=True)]
            for states in self.engine.run(asked):
                scores.append(head(self.model, states["last"][-1:])[0])
        return scores


@torch.no_grad()
def head(model: Any, states_RD: torch.Tensor) -> list[float]:
    """Scores of states by the model's head in float32."""
    values: list[float] = (states_RD.float() @ model.score.weight.float().T)[:, 0].tolist()
    return values


class Transformers:
    """transformers by one of the ways that people write."""

    def __init__(self, model: Any, way: str) -> None:
        self.model, self.way = model, way

    @torch.no_grad()
    def __call__(self, workload: _workloads.Workload) -> list[float]:
        """Scores, one per sequence and call."""
        return [score for call in workload.calls for score in self.call(call)]

    def call(self, call: list[list[int]]) -> list[float]:
        """One call: a loop, batches of 16 in order, or batches of like lengths."""
        batches = {
            "loop": [[i] for i in range(len(call))],
            "padded": [list(range(i, min(i + 16, len(call)))) for i in range(0, len(call), 16)],
            "sorted": plan([len(ids) for ids in call], 4096),
        }[self.way]
        scores = [0.0] * len(call)
        for batch in batches:
            width = max(len(call[i]) for i in batch)
            ids = torch.full((len(batch), width), 2)
            mask = torch.zeros_like(ids)
            for row, i in enumerate(batch):
                ids[row, : len(call[i])] = torch.tensor(call[i])
                mask[row, : len(call[i])] = 1
            whole = {} if len(batch) == 1 else {"attention_mask": mask}
            states = self.model.model(input_ids=ids, use_cache=False, **whole).last_hidden_state
            last = states[torch.arange(len(batch)), mask.sum(1) - 1]
            for i, score in zip(batch, head(self.model, last), strict=True):
                scores[i] = score
        return scores


class Vllm:
    """vLLM in a process of its own."""

    def __init__(self, folder: Path, dtype: str, caching: bool) -> None:
        self.process = subprocess.Popen(
            [str(VLLM), str(Path(__file__).with_name("_vllm_worker.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.ready = self._ask({"model": str(folder), "dtype": dtype, "caching": caching})["ready"]
        self.seconds = 0.0
        self.caching = caching

    def _ask(self, question: Any) -> Any:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline() or '{"ready": null}')

    def __call__(self, workload: _workloads.Workload) -> list[float]:
        """Scores; its own clock is the one that counts."""
        found = self._ask({"calls": workload.calls})
        self.seconds = found["seconds"]
        scores: list[float] = found["scores"]
        return scores


def distinct(calls: Calls) -> int:
    """Tokens that have to be computed: every distinct prefix once."""
    tree = Tree()
    for call in calls:
        for ids in call:
            tree.insert(packed(ids))
    return sum(node.stop - node.start for node in tree.nodes())


@torch.no_grad()
def matrix_rate(model: Any) -> tuple[float, float]:
    """FLOP of the model's linear layers per token, and the rate of products of just these shapes, both best of ten."""
    weights = [m.weight.detach().float() for m in model.model.modules() if isinstance(m, torch.nn.Linear)]
    per_token = 2 * sum(w.numel() for w in weights)
    shapes = {tuple(w.shape): w for w in weights}
    best = {}
    for shape, weight in shapes.items():
        rows, took = torch.randn(MATRIX_ROWS, shape[1]), []
        for _ in range(10):
            start = time.perf_counter()
            torch.nn.functional.linear(rows, weight)
            took.append(time.perf_counter() - start)
        best[shape] = min(took)
    seconds = sum(best[tuple(w.shape)] for w in weights)
    return per_token, per_token * MATRIX_ROWS / seconds


def measure(size: str, dtype: str, names: list[str], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of one model: all sides by turns."""
    folder = _workloads.model_folder(size)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    per_token, rate = matrix_rate(model)
    sides: dict[str, Callable[[_workloads.Workload], list[float]]] = {"karat": Karat(model)}
    if options.deterministic:
        sides["karat, deterministic"] = Karat(model, deterministic=True)
    sides |= {f"transformers, {way}": Transformers(model, way) for way in options.ways}
    if options.vllm and VLLM.exists():
        sides["vllm"] = Vllm(folder, dtype, caching=True)
        if any(name in STEPS for name in names):
            sides["vllm, no caching"] = Vllm(folder, dtype, caching=False)
    workloads = _workloads.workloads(options.part)
    rows = []
    for name in names:
        taking_part = {
            side: call
            for side, call in sides.items()
            if not isinstance(call, Vllm) or call.caching == (name not in STEPS)
        }
        rows += compare(workloads[name], taking_part, options.repeats)
        for row in rows[-len(taking_part) :]:
            best = row["needed"] * per_token / rate
            row |= {"model": size, "dtype": dtype, "of_matrix_rate": round(best / row["median"], 3)}
            print(line(row), file=sys.stderr, flush=True)
    return rows


def compare(workload: _workloads.Workload, sides: dict[str, Any], repeats: int) -> list[dict[str, Any]]:
    """Every side by turns, warmed first; a row for each."""
    took: dict[str, list[float]] = {name: [] for name in sides}
    scores: dict[str, list[float]] = {}
    peak: dict[str, int] = {}
    for turn in range(repeats + 1):
        for name, side in sides.items():
            processes = memory.family(side.process.pid) if isinstance(side, Vllm) else [os.getpid()]
            memory.reset(processes)
            start = time.perf_counter()
            scores[name] = side(workload)
            seconds = side.seconds if isinstance(side, Vllm) else time.perf_counter() - start
            peak[name] = memory.peak(processes)
            if turn:  # the first warms
                took[name].append(seconds)
    needed = distinct(workload.calls)
    rows = []
    for name, side in sides.items():
        each = [peer / own for peer, own in zip(took[name], took["karat"], strict=True)]
        rows.append(
            {
                "workload": workload.name,
                "side": name,
                "median": statistics.median(took[name]),
                "min": min(took[name]),
                "max": max(took[name]),
                "ratio": statistics.median(each),
                "ratio_min": min(each),
                "ratio_max": max(each),
                "ratio_95": interval(each),
                "peak_MiB": peak[name],
                "needed": needed,
                "computed": side.engine.computed if isinstance(side, Karat) else None,
                "tokens": sum(len(ids) for call in workload.calls for ids in call),
                "moves_a_score_by": max(abs(a - b) for a, b in zip(scores[name], scores["karat"], strict=True)),
            }
        )
    return rows


def interval(ratios: list[float]) -> tuple[float, float]:
    """95 % bootstrap interval of the median."""
    drawn = np.median(np.random.default_rng(0).choice(ratios, (10_000, len(ratios))), axis=1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(low), float(high)


def line(row: dict[str, Any]) -> str:
    """A row for people."""
    return (
        f"{row['model']} {row['dtype']} {row['workload']:5} {row['side']:22} {row['median']:8.3f} s"
        f" ({row['min']:.3f} … {row['max']:.3f})  x{row['ratio']:.2f} ({row['ratio_min']:.2f} … {row['ratio_max']:.2f})"
        f" 95 % {row['ratio_95'][0]:.2f} … {row['ratio_95'][1]:.2f}  of matrix rate {row['of_matrix_rate']:.2f}"
        f"  score moves {row['moves_a_score_by']:.1e}  peak {row['peak_MiB']} MiB"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="S,M")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--workloads", default="W1,W2,W2b,W2s,W3,W3s,W4")
    parser.add_argument("--ways", default="loop,sorted", type=lambda text: [w for w in text.split(",") if w])
    parser.add_argument("--part", default="report", choices=list(_workloads.PART))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--deterministic", action="store_true")
    parser.add_argument("--vllm", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    logging.disable_progress_bar()
    rows = []
    for size in options.models.split(","):
        rows += measure(size, options.dtype, options.workloads.split(","), options)
    if options.json:
        print(json.dumps({"rows": rows, "threads": torch.get_num_threads(), "cpus": os.cpu_count()}, indent=2))


if __name__ == "__main__":
    main()
