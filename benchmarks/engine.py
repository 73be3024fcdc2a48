"""karat's engine against transformers and vLLM on the same models, texts and threads, taking turns in one run.

`KARAT_DATA=… python benchmarks/engine.py --models M --dtype float32 --json`; `make peers` builds vLLM's environment,
and `--no-vllm` does without. A row per model, workload and side: seconds as median, lowest and highest, and tokens
needed (distinct) beside tokens computed. `ratio` is a peer's time over karat's, pair by pair of turns.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

import _memory as memory
import _workloads
import numpy as np
import torch
from transformers import AutoModelForSequenceClassification
from transformers.utils import logging

from karat.engine.forest import ForestEngine
from karat.engine.probe import choose
from karat.rewards._speed import CPU, Ground, Row, Run, Side, Transformers, compare
from karat.rewards._speed_machine import matrix_rate
from karat.rewards._speed_workloads import Workload

VLLM = Path(__file__).parent.parent / ".peers" / "vllm" / "bin" / "python"
ASLEEP = 0.05  # seconds; OpenMP's threads wait awake for some milliseconds after a loop
STEPS = ("W3s",)  # for scores of steps vLLM turns its prefix cache off; elsewhere it is on


class Karat:
    """The engine that karat chooses for the model, from an empty cache."""

    def __init__(self, model: Any, **how: bool) -> None:
        self.model, self.engine = model, choose(model.model, **how)

    def rest(self) -> None:
        """Forget what is cached."""
        if isinstance(self.engine, ForestEngine):
            self.engine.clear()
            self.engine.computed = 0

    def __call__(self, workload: Workload) -> Run:
        """A score per sequence: the last one's where steps are read."""
        found = chain(*(self.engine.run(call) for call in workload.calls))
        states_BD = torch.cat([states["last"][-1:] for states in found])
        return Run(head(self.model)(states_BD), getattr(self.engine, "computed", None))


def head(model: Any) -> Any:
    """Scores of states by the model's head in float32."""

    @torch.no_grad()
    def score(states_BD: torch.Tensor) -> list[float]:
        values: list[float] = (states_BD.float() @ model.score.weight.float().T)[:, 0].tolist()
        return values

    return score


class Vllm:
    """vLLM in a process of its own, which stands still while others are measured: its threads wait awake."""

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

    def rest(self) -> None:
        """Stand still until the threads of whoever was measured sleep. Its cache is emptied by the worker."""
        self._tell(signal.SIGSTOP)
        time.sleep(ASLEEP)

    def stop(self) -> None:
        """End it."""
        self._tell(signal.SIGCONT)
        self.process.communicate()

    def _tell(self, number: signal.Signals) -> None:
        for one in memory.family(self.process.pid):
            os.kill(one, number)

    def __call__(self, workload: Workload) -> Run:
        """Scores; its own clock and its own memory are those that count."""
        processes = memory.family(self.process.pid)
        self._tell(signal.SIGCONT)
        memory.reset(processes)
        found = self._ask({"calls": [[list(s.ids) for s in call] for call in workload.calls]})
        return Run(found["scores"], None, found["seconds"], memory.peak(processes))


def measure(size: str, dtype: str, names: list[str], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of one model: all sides by turns."""
    folder = _workloads.model_folder(size)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    ground = Ground(CPU, True, matrix_rate(model.model))
    sides: dict[str, Side] = {"karat": Karat(model)}
    if options.deterministic:
        sides["karat, deterministic"] = Karat(model, deterministic=True)
    if options.compiled:
        sides["karat, compiled"] = Karat(model, compiled=True)
    sides |= {f"transformers, {way}": Transformers(model.model, head(model), way) for way in options.ways}
    if options.vllm and VLLM.exists():
        sides["vllm"] = Vllm(folder, dtype, caching=True)
        if any(name in STEPS for name in names):
            sides["vllm, no caching"] = Vllm(folder, dtype, caching=False)
    try:
        return list(_rows(size, dtype, names, sides, ground, options))
    finally:
        for side in sides.values():
            if isinstance(side, Vllm):
                side.stop()


def _rows(
    size: str, dtype: str, names: list[str], sides: dict[str, Side], ground: Ground, options: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    workloads = _workloads.workloads(options.part)
    for name in names:
        part = {n: s for n, s in sides.items() if not isinstance(s, Vllm) or s.caching == (name not in STEPS)}
        found = compare(workloads[name], part, options.repeats, ground)
        for row in found:
            shown = {"model": size, "dtype": dtype, **asdict(row), "ratio_95": interval(row, found[0])}
            print(line(shown), file=sys.stderr, flush=True)
            yield shown


def interval(own: Row, first: Row) -> tuple[float, float]:
    """95 % bootstrap interval of the median ratio over the first side's time, turn by turn."""
    ratios = [a / b for a, b in zip(own.seconds, first.seconds, strict=True)]
    drawn = np.median(np.random.default_rng(0).choice(ratios, (10_000, len(ratios))), axis=1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(low), float(high)


def line(row: dict[str, Any]) -> str:
    """A row for people."""
    return (
        f"{row['model']} {row['dtype']} {row['workload']:5} {row['side']:22} {row['median']:8.3f} s"
        f" ({row['min']:.3f} … {row['max']:.3f})  x{row['ratio']:.2f} ({row['ratio_min']:.2f} … {row['ratio_max']:.2f})"
        f" 95 % {row['ratio_95'][0]:.2f} … {row['ratio_95'][1]:.2f}  of matrix rate {row['of_matrix_rate'] or 0:.2f}"
        f"  score moves {row['moves_a_score_by'] or 0:.1e}  peak {row['peak_MiB']:.0f} MiB"
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
    parser.add_argument("--compiled", action="store_true")
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
