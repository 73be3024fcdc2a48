"""Does the engine's time grow as its work does? A sweep of prompt length and candidates, against a model of its cost.

`python benchmarks/engine_cost.py --model M --plot cost.svg`: seconds = a * FLOP of linear layers + b * FLOP of
attention + c for each call, fitted by least squares of the ratios on half of the sweep, judged on the other half.
"""

import argparse
import json
import random
import time
from pathlib import Path
from typing import Any

import _workloads
import altair as alt
import numpy as np
import torch
from scipy.optimize import nnls
from transformers import AutoModelForSequenceClassification
from transformers.utils import logging

from karat.engine.probe import choose
from karat.types import Sequence

PROMPTS, CANDIDATES, ANSWER = (64, 128, 256, 512, 1024, 2000), (1, 4, 16, 64), 64


def measure(model: Any, repeats: int) -> list[dict[str, float]]:
    """A row for each point of the sweep: the median of its turns, and its work."""
    engine, chance = choose(model.model), random.Random(0)
    vocabulary = model.config.vocab_size
    linear = 2 * sum(m.weight.numel() for m in model.model.modules() if isinstance(m, torch.nn.Linear))
    attended = 4 * model.config.num_hidden_layers * model.config.num_attention_heads * model.config.head_dim
    points = [(p, n) for p in PROMPTS for n in CANDIDATES]
    took: dict[tuple[int, int], list[float]] = {point: [] for point in points}
    computed = {}
    for turn in range(repeats + 1):
        for prompt, count in points:
            shared = tuple(chance.randrange(3, vocabulary) for _ in range(prompt))
            ids = [shared + tuple(chance.randrange(3, vocabulary) for _ in range(ANSWER)) for _ in range(count)]
            asked = [Sequence(one, {"last": (len(one) - 1,)}) for one in ids]
            engine.clear()
            engine.computed = 0
            start = time.perf_counter()
            engine.run(asked)
            if turn:
                took[prompt, count].append(time.perf_counter() - start)
            computed[prompt, count] = engine.computed
    rows = []
    for prompt, count in points:
        tokens = prompt + count * ANSWER
        pairs = prompt * (prompt + 1) / 2 + count * sum(prompt + i + 1 for i in range(ANSWER))
        seconds = float(np.median(took[prompt, count]))
        work = {"linear": linear * tokens, "attention": attended * pairs}
        rows.append(
            {"prompt": prompt, "candidates": count, "seconds": seconds, **work}
            | {"computed_over_distinct": computed[prompt, count] / tokens}
        )
    return rows


def fit(rows: list[dict[str, float]]) -> tuple[list[float], float]:
    """Coefficients from every second point, and the worst ratio of time to model, either way, on the others."""
    work = np.array([[row["linear"], row["attention"], 1.0] for row in rows])
    seconds = np.array([row["seconds"] for row in rows])
    found, _ = nnls(work[::2] / seconds[::2, None], np.ones(len(seconds[::2])))
    for row, expected in zip(rows, work @ found, strict=True):
        row["expected"] = float(expected)
    ratio = (work @ found / seconds)[1::2]
    return found.tolist(), float(np.maximum(ratio, 1 / ratio).max())


def plot(rows: list[dict[str, float]], path: Path, title: str) -> None:
    """Time by prompt length, a line for each number of candidates; points are measured, lines are the model."""
    data = alt.Data(values=[{**row, "candidates": str(row["candidates"])} for row in rows])
    x = alt.X("prompt:Q", scale=alt.Scale(type="log"), title="tokens of the shared prompt")
    colour = alt.Color("candidates:N", sort=[str(n) for n in CANDIDATES], title="candidates")
    base = alt.Chart(data, title=title)
    log = alt.Scale(type="log")
    points = base.mark_point(filled=True).encode(x, alt.Y("seconds:Q", scale=log, title="seconds"), colour)
    lines = base.mark_line().encode(x, alt.Y("expected:Q", scale=log), colour)
    (lines + points).properties(width=520, height=320).save(path)


def main() -> None:
    """Measure, fit, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="S")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    logging.disable_progress_bar()
    model = AutoModelForSequenceClassification.from_pretrained(_workloads.model_folder(options.model)).eval().float()
    if not hasattr(model.config, "head_dim") or model.config.head_dim is None:
        model.config.head_dim = model.config.hidden_size // model.config.num_attention_heads
    rows = measure(model, options.repeats)
    (linear, attention, call), worst = fit(rows)
    if options.plot:
        plot(rows, options.plot, f"model {options.model}: measured (points) and linear + attention FLOP (lines)")
    found = {"GFLOP/s linear": 1e-9 / linear, "GFLOP/s attention": 1e-9 / max(attention, 1e-18), "seconds a call": call}
    found |= {"worst_ratio_held_out": worst, "most_computed": max(r["computed_over_distinct"] for r in rows)}
    print(json.dumps({**found, "rows": rows}, indent=2) if options.json else found)


if __name__ == "__main__":
    main()
