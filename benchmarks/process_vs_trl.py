"""karat against the last TRL that trained process reward models (1.13): the same steps, weights, order and settings.

`make peers` builds TRL's environment. With the folder of data sets in KARAT_DATA the rows are ProcessBench's, otherwise
made up. Exit status 1 says that the two did not learn the same, so that the speeds are not comparable.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import process
import torch
import train_vs_trl as pairs

import karat
from karat import arithmetic
from karat.formats import base as formats
from karat.models.render import Rendered
from karat.rewards._local import LocalModel
from karat.types import Stepped

SETTINGS = {**pairs.SETTINGS, "seed": pairs.SEED, "learning_rate": pairs.LEARNING_RATE}
LENGTH = 2048  # every row fits
SIDES = ("karat", "prm")


def main() -> int:
    """Train by turns, compare, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--steps", type=int, default=34)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if not pairs.WORKERS["prm"][0].is_file():
        print(f"{pairs.WORKERS['prm'][0]} is not there; run `make peers` first", file=sys.stderr)
        return 2
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory(prefix="karat-bench-") as folder:
        found = compare(options, Path(folder))
    print(json.dumps(found, indent=2) if options.json else table(found))
    return 0 if found["ids_equal"] and max(found["loss_difference"]) < pairs.TOLERANCE else 1


def items(count: int) -> list[Stepped]:
    """Answers in steps, each step right or wrong."""
    folder = os.environ.get("KARAT_DATA")
    if not folder:
        print("KARAT_DATA is not set: built-in arithmetic instead of ProcessBench", file=sys.stderr)
        return arithmetic.stepped(count, pairs.SEED)
    return stepped(Path(folder) / "processbench" / "gsm8k.json")[:count]


def stepped(path: Path) -> list[Stepped]:
    """What a file holds."""
    return [item for item in formats.load(str(path)).items if isinstance(item, Stepped)]


def row(item: Stepped) -> dict[str, Any]:
    """TRL's stepwise row, as far as its steps are labelled: behind the first wrong one ProcessBench says nothing."""
    (branch,), (labels,) = item.branches, item.labels
    told = [label > 0.5 for label in labels if label is not None]
    return {"prompt": branch.prompt[0].content, "completions": list(branch.steps[: len(told)]), "labels": told}


def compare(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Trainings of both by turns, and what they saw and learnt."""
    given = [row(item) for item in items(options.rows)]
    data = work / "steps.jsonl"
    data.write_text("".join(json.dumps(line) + "\n" for line in given), encoding="utf-8")
    texts = ["\n".join([line["prompt"], *line["completions"]]) for line in given]
    model = process.start(work / "start", texts, positions=LENGTH)
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    for turn in range(options.repeats):
        for side in SIDES if turn % 2 == 0 else SIDES[::-1]:
            asked = job(side, model, data, work / f"{side}-{turn}", options.steps)
            runs[side].append(pairs.work_on(side, {"train": asked}, options, work))
    first = {side: results[0] for side, results in runs.items()}
    loss = {side: pairs.logged(result, "loss") for side, result in first.items()}
    seconds = {side: [pairs.logged(r, "train_runtime")[-1] for r in results] for side, results in runs.items()}
    return {
        "ids_equal": seen(work / "karat-0", data) == first["prm"]["rows"],
        "rows": {side: result["rows_used"] for side, result in first.items()},
        "loss": loss,
        "loss_difference": [abs(a - b) for a, b in zip(loss["karat"], loss["prm"], strict=True)],
        "seconds": seconds,
        "trl_over_karat": [t / k for t, k in zip(seconds["prm"], seconds["karat"], strict=True)],
        "peak_MiB": {side: max(r["peak_MiB"] for r in results) for side, results in runs.items()},
        "versions": {side: result["versions"] for side, result in first.items()},
    }


def job(side: str, model: Path, data: Path, output: Path, steps: int) -> dict[str, Any]:
    """One training, as that side's worker reads it."""
    if side == "prm":
        settings = {**SETTINGS, "max_steps": steps, "per_device_train_batch_size": pairs.BATCH}
        paths = {"model": str(model), "rows": str(data), "output": str(output), "work": f"{output}.work"}
        return {**paths, "max_length": LENGTH, "settings": {**settings, "gradient_checkpointing": False}}
    return {
        "kind": "process",
        "method": "full",
        "model": str(model),
        "data": [str(data)],
        "eval": ["0"],
        "output": str(output),
        "batch_size": pairs.BATCH,
        "seed": pairs.SEED,
        "learning_rate": pairs.LEARNING_RATE,
        "spec": {"max_length": LENGTH, "over_length": "error"},
        "trainer": {"max_steps": steps, **pairs.SETTINGS},
    }


def seen(folder: Path, data: Path) -> list[list[list[int]]]:
    """Ids and labels of every row as karat renders them, in TRL's form: a label at each mark's last token."""
    local = karat.load(str(folder))
    assert isinstance(local, LocalModel)
    given = stepped(data)
    found = []
    for item, rendered in zip(given, local.renderer([item.branches[0] for item in given]), strict=True):
        assert isinstance(rendered, Rendered), rendered
        labels = [-100] * len(rendered.sequence.ids)
        for at, label in zip(rendered.sequence.reads["step"], item.labels[0], strict=False):
            labels[at] = int(label or 0)
        found.append([list(rendered.sequence.ids), labels])
    return found


def table(found: dict[str, Any]) -> str:
    """The figures for people."""
    ratio = found["trl_over_karat"]
    lines = [
        f"TRL {found['versions']['prm']['trl']}, rows {found['rows']}, ids and labels equal {found['ids_equal']}",
        f"loss differs by at most {max(found['loss_difference']):.1e} over {len(found['loss_difference'])} steps",
        f"TRL takes {statistics.median(ratio):.2f} ({min(ratio):.2f}–{max(ratio):.2f}) of karat's time",
        f"peak memory, MiB: {found['peak_MiB']}",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
