"""karat against TRL's RewardTrainer: the same model, data, seed and steps, taking turns in one run.

`make peers` builds TRL's environment. With the folder of data sets in KARAT_DATA the pairs are HH's, otherwise made up.
Exit status 1 says that the two did not learn the same, so that the speeds are not comparable.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch

import karat
from karat import arithmetic, metrics
from karat.formats import base as formats
from karat.models import scratch
from karat.models.render import Rendered
from karat.rewards._local import LocalModel
from karat.types import Example, Message, Pair, Reward

HERE = Path(__file__).parent
PEERS = HERE.parent / ".peers"
TRL_PYTHON = PEERS / "trl" / "bin" / "python"

MODEL = "scratch:hidden=128,layers=2,vocab=2048,positions=1024"
MAX_LENGTH = 512
BATCH = 8
SEED = 0
LEARNING_RATE = 5e-4
HELD_OUT = 256
GROUPED = "trl-grouped"
TRL_EVAL_BATCH = 8  # TRL's default
WORKERS = {
    "karat": (Path(sys.executable), "karat"),
    "trl": (TRL_PYTHON, "trl"),
    GROUPED: (TRL_PYTHON, "trl"),
    "prm": (PEERS / "prm" / "bin" / "python", "prm"),
}

TOLERANCE = 1e-3  # nats, on each of the first steps; later ones drift apart as rounding grows
FIRST = 10

# Given to both, word by word. Everything else is TrainingArguments' default, which both inherit.
SETTINGS: dict[str, Any] = {
    "eval_strategy": "no",
    "save_strategy": "no",
    "logging_steps": 1,
    "logging_nan_inf_filter": False,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.1,
    "optim": "adamw_torch",
    "adam_beta1": 0.9,
    "adam_beta2": 0.999,
    "adam_epsilon": 1e-8,
    "weight_decay": 0.01,
    "max_grad_norm": 1.0,
    "bf16": False,
    "dataloader_pin_memory": False,
    "use_cpu": True,
    "report_to": "none",
    "disable_tqdm": True,
}


@dataclass(frozen=True)
class Data:
    """The pairs of a run, as items and as the files that both sides read."""

    name: str
    train: list[Pair]
    held_out: list[Pair]
    source: str  # as karat reads it
    messages: Path  # the training pairs as TRL reads them


def main() -> int:
    """Run, print, and say by the exit status whether parity holds."""
    options = _options()
    if not TRL_PYTHON.is_file():
        print(f"{TRL_PYTHON} is not there; run `make peers` first", file=sys.stderr)
        return 2
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory(prefix="karat-bench-") as folder:
        found = benchmark(options, Path(folder))
    print(json.dumps(found, indent=2) if options.json else table(found))
    return 0 if found["parity"]["passed"] else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--pairs", type=int, default=256, help="training pairs (default 256)")
    parser.add_argument("--steps", type=int, default=34, help="optimiser steps of each training (default 34)")
    parser.add_argument("--repeats", type=int, default=3, help="trainings of each side, taking turns (default 3)")
    parser.add_argument("--threads", type=int, default=2, help="threads of each side (default 2)")
    parser.add_argument("--model", default=MODEL, help=f"a new model's sizes (default {MODEL})")
    parser.add_argument("--grouped", action="store_true", help="also TRL with its batches grouped by length")
    options = parser.parse_args()
    if min(options.pairs, options.steps, options.repeats, options.threads) < 1:
        parser.error("--pairs, --steps, --repeats and --threads have to be at least 1")
    return options


def benchmark(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Everything that is reported, as plain JSON values."""
    load_before = os.getloadavg()[0]
    data = read_data(options.pairs, work)
    model = scratch.build(work / "start", options.model, _texts(data.train), SEED)
    runs = train_in_turns(options, data, model, work)
    first = {side: results[0] for side, results in runs.items()}
    loaded = {side: karat.load(str(work / f"{side}-0"), max_length=MAX_LENGTH) for side in ("karat", "trl")}
    margins = {side: _margins(local, data.held_out) for side, local in loaded.items()}
    own = trl_evaluation(options, data, margins["trl"], work)
    return {
        "data": {"name": data.name, "pairs": len(data.train), "held_out": len(data.held_out)},
        "setup": {
            "model": options.model,
            "batch_size": BATCH,
            "steps": options.steps,
            "repeats": options.repeats,
            "seed": SEED,
            "learning_rate": LEARNING_RATE,
            "max_length": MAX_LENGTH,
            **SETTINGS,
            "found_in_trl": {name: first["trl"][name] for name in ("checkpointing", "dtype")},
        },
        "parity": parity(first, _ids(loaded["karat"], data.train), margins),
        "held_out": held_out(margins, own),
        "speed": speed(runs, options.steps),
        "ragged_eval": own["ragged"],
        "versions": {side: result["versions"] for side, result in first.items()},
        "machine": {
            "cpus": os.cpu_count(),
            "threads": {side: result["threads"] for side, result in first.items()},
            "platform": platform.platform(),
            "load_before": round(load_before, 2),
        },
    }


# Data


def read_data(count: int, work: Path) -> Data:
    """HH pairs from KARAT_DATA, the last ones held out; without it arithmetic, and a line on stderr that says so."""
    folder = os.environ.get("KARAT_DATA")
    if folder:
        path = Path(folder) / "hh_rlhf_harmless" / "test.jsonl.gz"
        items = _pairs(formats.load(str(path)).items)
        if count > len(items) - HELD_OUT:
            raise SystemExit(
                f"--pairs {count} is too many: {path} has {len(items) - HELD_OUT} besides the held-out ones"
            )
        train, rest, name, source = items[:count], items[-HELD_OUT:], "hh_rlhf_harmless", f"{path}[:{count}]"
    else:
        print("KARAT_DATA is not set: built-in arithmetic instead of HH", file=sys.stderr)
        train, rest = arithmetic.pairs(count, SEED), arithmetic.pairs(HELD_OUT, SEED, "test")
        name, source = "karat.arithmetic (built in)", str(work / "train.jsonl")
        formats.write(train, source, "preference")
    messages = write_messages(train, work / "train-messages.jsonl")
    return Data(name, train, rest, source, messages)


def _pairs(items: Sequence[Any]) -> list[Pair]:
    return [item for item in items if isinstance(item, Pair)]


def write_messages(pairs: Sequence[Pair], path: Path) -> Path:
    """The pairs as TRL's conversational preference columns."""
    rows = ({"chosen": _messages(pair.chosen), "rejected": _messages(pair.rejected)} for pair in pairs)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def _messages(example: Example) -> list[dict[str, str]]:
    messages = (*example.prompt, Message("assistant", example.response))
    return [{"role": m.role, "content": m.content} for m in messages]


def _texts(pairs: Sequence[Pair]) -> list[str]:
    return [m["content"] for pair in pairs for side in (pair.chosen, pair.rejected) for m in _messages(side)]


# Training


def train_in_turns(options: argparse.Namespace, data: Data, model: Path, work: Path) -> dict[str, list[dict[str, Any]]]:
    """The results of every training, by side; who goes first changes from turn to turn."""
    sides = ["karat", "trl", *([GROUPED] if options.grouped else [])]
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for turn in range(options.repeats):
        for side in sides if turn % 2 == 0 else sides[::-1]:
            print(f"turn {turn + 1}/{options.repeats}: {side}", file=sys.stderr)
            job = _karat_job if side == "karat" else _trl_job
            asked = job(options, data, model, work / f"{side}-{turn}")
            if side == GROUPED:
                # Trainer takes unused columns away before it looks for the lengths.
                asked["settings"] |= {"train_sampling_strategy": "group_by_length", "remove_unused_columns": False}
            runs[side].append(work_on(side, {"train": asked}, options, work))
    return runs


def _karat_job(options: argparse.Namespace, data: Data, model: Path, output: Path) -> dict[str, Any]:
    return {
        "kind": "bradley_terry",
        "method": "full",
        "model": str(model),
        "data": [data.source],
        "eval": ["0"],
        "output": str(output),
        "batch_size": BATCH,
        "seed": SEED,
        "learning_rate": LEARNING_RATE,
        "spec": {"max_length": MAX_LENGTH, "over_length": "drop"},
        "trainer": {"max_steps": options.steps, **SETTINGS},
    }


def _trl_job(options: argparse.Namespace, data: Data, model: Path, output: Path) -> dict[str, Any]:
    settings = {
        "max_steps": options.steps,
        "per_device_train_batch_size": BATCH,
        "seed": SEED,
        "learning_rate": LEARNING_RATE,
        "gradient_checkpointing": False,  # TRL turns it on where nothing is said, karat does not
        **SETTINGS,
    }
    return {
        "model": str(model),
        "rows": str(data.messages),
        "output": str(output),
        "work": str(output) + ".work",
        "max_length": MAX_LENGTH,
        "settings": settings,
    }


def work_on(side: str, job: Mapping[str, Any], options: argparse.Namespace, work: Path) -> dict[str, Any]:
    """The result of one job in a process of its own, with pinned threads and no network."""
    ask, answer, log = (work / f"{side}.{ending}" for ending in ("job.json", "result.json", "log"))
    ask.write_text(json.dumps(job), encoding="utf-8")
    answer.unlink(missing_ok=True)
    python, worker = WORKERS[side]
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(options.threads))
    alone = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(work / "hf"), "TOKENIZERS_PARALLELISM": "false"}
    with log.open("w", encoding="utf-8") as out:
        done = subprocess.run(
            [str(python), str(HERE / f"_{worker}_worker.py"), str(ask), str(answer)],
            env={**os.environ, **threads, **alone},
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    if done.returncode:
        tail = "\n".join(log.read_text(encoding="utf-8").splitlines()[-30:])
        raise SystemExit(f"{side}'s worker failed with status {done.returncode}:\n{tail}")
    result: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
    return result


# Findings


def parity(
    first: Mapping[str, dict[str, Any]],
    karat_ids: list[list[list[int]]],
    margins: Mapping[str, list[float | None]],
) -> dict[str, Any]:
    """Did both see the same tokens in the same batches, and learn the same from them?"""
    first = {side: first[side] for side in ("karat", "trl")}
    curves = {side: logged(result, "loss") for side, result in first.items()}
    gaps = _gaps(curves)
    rows = {side: result["rows_used"] for side, result in first.items()}
    ids_equal = karat_ids == first["trl"]["ids"]
    same_length = len(curves["karat"]) == len(curves["trl"])
    return {
        "passed": ids_equal and same_length and rows["karat"] == rows["trl"] and max(gaps[:FIRST]) < TOLERANCE,
        "tolerance": TOLERANCE,
        "tolerance_steps": FIRST,
        "ids_equal": ids_equal,
        "rows_compared": len(karat_ids),
        "rows_used": rows,
        "max_loss_difference": max(gaps),
        "max_loss_difference_first": max(gaps[:FIRST]),
        "max_learning_rate_difference": max(_gaps({s: logged(r, "learning_rate") for s, r in first.items()})),
        "max_grad_norm_difference": max(_gaps({s: logged(r, "grad_norm") for s, r in first.items()})),
        "max_held_out_margin_difference": max(
            abs(a - b) for a, b in zip(margins["karat"], margins["trl"], strict=True) if a is not None and b is not None
        ),
        "loss": curves,
        "loss_difference": gaps,
    }


def logged(result: Mapping[str, Any], name: str) -> list[float]:
    """One value for each step; Trainer's last line is about the whole run."""
    return [float(line[name]) for line in result["history"] if name in line]


def _gaps(curves: Mapping[str, list[float]]) -> list[float]:
    return [abs(a - b) for a, b in zip(curves["karat"], curves["trl"], strict=False)]


def _ids(local: LocalModel, pairs: Sequence[Pair]) -> list[list[list[int]]]:
    """Token ids of the pairs that fit, as karat renders them."""
    flat = local.renderer([side for pair in pairs for side in (pair.chosen, pair.rejected)])
    sides = zip(flat[::2], flat[1::2], strict=True)
    return [
        [list(a.sequence.ids), list(b.sequence.ids)]
        for a, b in sides
        if isinstance(a, Rendered) and isinstance(b, Rendered)
    ]


def _margins(local: LocalModel, pairs: Sequence[Pair]) -> list[float | None]:
    """Reward of chosen minus reward of rejected; None where a side is too long."""
    scored = list(local.score_many([side for pair in pairs for side in (pair.chosen, pair.rejected)]))
    return [
        a.value - b.value if isinstance(a, Reward) and isinstance(b, Reward) else None
        for a, b in zip(scored[::2], scored[1::2], strict=True)
    ]


def held_out(margins: Mapping[str, list[float | None]], own: Mapping[str, Any]) -> dict[str, Any]:
    """Accuracy of both models by one scorer, and what TRL's evaluation says of its own model."""
    found: dict[str, Any] = {side: _accuracy(values) for side, values in margins.items()}
    found["pairs_ordered_differently"] = sum(
        (a > 0) != (b > 0)
        for a, b in zip(margins["karat"], margins["trl"], strict=True)
        if a is not None and b is not None
    )
    found["trl_by_its_own_evaluation"] = {"batch_1": own["batch_1"], f"batch_{TRL_EVAL_BATCH}": own["batched"]}
    return found


def _accuracy(margins: Sequence[float | None]) -> dict[str, Any]:
    judged = [m for m in margins if m is not None]
    accuracy = metrics.pair_accuracy(judged)
    low, high = metrics.wilson_interval(sum(m > 0 for m in judged), len(judged))
    return {"accuracy": accuracy.strict, "wilson_95": [low, high], "judged": len(judged), "ties": accuracy.ties}


def speed(runs: Mapping[str, Sequence[dict[str, Any]]], steps: int) -> dict[str, Any]:
    """Pairs per second of training alone, and its CPU time for each pair, which bears a busy machine better."""
    seen = {side: pairs_seen(results[0]["rows_used"], steps) for side, results in runs.items()}
    seconds = {side: [logged(r, "train_runtime")[-1] for r in results] for side, results in runs.items()}
    rate = {side: [seen[side] / each for each in seconds[side]] for side in runs}
    cpu = {side: [1000 * r["cpu_seconds"] / seen[side] for r in results] for side, results in runs.items()}
    return {
        "timed": "transformers' Trainer.train: no imports, loading, tokenising, evaluation or saving",
        "pairs_seen": seen,
        "pairs_per_second": {side: _spread(rate[side]) for side in runs},
        "karat_over_trl": _spread([k / t for k, t in zip(rate["karat"], rate["trl"], strict=True)]),
        "karat_over_trl_grouped": _spread([k / t for k, t in zip(rate["karat"], rate[GROUPED], strict=True)])
        if GROUPED in rate
        else None,
        "peak_MiB": {side: max(r["peak_MiB"] for r in results) for side, results in runs.items()},
        "cpu_ms_per_pair": {side: _spread(cpu[side]) for side in runs},
        "trl_over_karat_cpu": _spread([t / k for k, t in zip(cpu["karat"], cpu["trl"], strict=True)]),
    }


def _spread(each: list[float]) -> dict[str, Any]:
    return {"median": statistics.median(each), "min": min(each), "max": max(each), "each": each}


def pairs_seen(rows: int, steps: int) -> int:
    """Pairs in that many steps, where the last batch of an epoch may be smaller.

    >>> pairs_seen(rows=20, steps=4)
    28
    """
    epochs, rest = divmod(steps, -(-rows // BATCH))
    return epochs * rows + min(rest * BATCH, rows)


def trl_evaluation(
    options: argparse.Namespace, data: Data, margins: Sequence[float | None], work: Path
) -> dict[str, Any]:
    """TRL's own evaluation of its model: the held-out pairs one by one and in batches, and nine in batches of 8."""
    rows = str(write_messages(data.held_out, work / "held-out-messages.jsonl"))
    sets = {"batch_1": {"rows": rows, "batch_size": 1}, "batched": {"rows": rows, "batch_size": TRL_EVAL_BATCH}}
    nine = _eight_right_one_wrong(margins)
    if nine:
        path = write_messages([data.held_out[i] for i in nine], work / "ragged-messages.jsonl")
        sets["ragged"] = {"rows": str(path), "batch_size": TRL_EVAL_BATCH}
    settings = {k: v for k, v in SETTINGS.items() if k in ("bf16", "use_cpu", "report_to", "disable_tqdm")}
    job = {
        "model": str(work / "trl-0"),
        "work": str(work / "evaluate"),
        "max_length": MAX_LENGTH,
        "settings": settings,
        "sets": sets,
    }
    found = work_on("trl", {"evaluate": job}, options, work)
    return {**found, "ragged": _ragged([margins[i] for i in nine], found.get("ragged"))}


def _eight_right_one_wrong(margins: Sequence[float | None]) -> list[int]:
    """Places of eight pairs that the model orders rightly, then one that it does not; none where there are too few."""
    clear = [(i, m) for i, m in enumerate(margins) if m is not None and abs(m) > 1e-4]
    right, wrong = [i for i, m in clear if m > 0][:8], [i for i, m in clear if m < 0][:1]
    return [*right, *wrong] if len(right) == 8 and wrong else []


def _ragged(margins: Sequence[float | None], trl: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if trl is None:
        return None
    return {
        "rows": trl["rows"],
        "batch_size": TRL_EVAL_BATCH,
        "trl": trl["accuracy"],
        "karat": _accuracy(margins)["accuracy"],
    }


# For people


def table(found: Mapping[str, Any]) -> str:
    """The figures that matter."""
    equal, rates, ragged = found["parity"], found["speed"], found["ragged_eval"]
    trl = found["versions"]["trl"]["trl"]
    lines = [
        f"{found['data']['name']}: {found['data']['pairs']} pairs, {found['setup']['steps']} steps of {BATCH};"
        f" karat {found['versions']['karat']['karat']}, TRL {trl}",
        f"parity {'holds' if equal['passed'] else 'FAILS'}: ids equal {equal['ids_equal']},"
        f" rows used {equal['rows_used']['karat']} and {equal['rows_used']['trl']}",
        f"  loss differs by at most {equal['max_loss_difference_first']:.1e} in the first {FIRST} steps,"
        f" {equal['max_loss_difference']:.1e} in all",
        f"{'':22}{'karat':>22}{'TRL':>22}",
        _line("last loss", *(f"{equal['loss'][side][-1]:.4f}" for side in ("karat", "trl"))),
        _line("held-out accuracy", *(_share(found["held_out"][side]) for side in ("karat", "trl"))),
        _line("pairs per second", *(_range(rates["pairs_per_second"][side]) for side in ("karat", "trl"))),
        _line("peak memory, MiB", *(str(rates["peak_MiB"][side]) for side in ("karat", "trl"))),
        _line("CPU ms for a pair", *(_range(rates["cpu_ms_per_pair"][side]) for side in ("karat", "trl"))),
        f"karat over TRL: {_range(rates['karat_over_trl'], 2)} by the clock,"
        f" {_range(rates['trl_over_karat_cpu'], 2)} by CPU time",
    ]
    if grouped := rates["karat_over_trl_grouped"]:
        lines.append(f"karat over TRL grouped by length: {_range(grouped, 2)} by the clock")
    if ragged:
        lines.append(
            f"eight of nine pairs right, batches of {TRL_EVAL_BATCH}:"
            f" karat says {ragged['karat']:.3f}, TRL says {ragged['trl']:.3f}"
        )
    return "\n".join(lines)


def _line(name: str, karat_says: str, trl_says: str) -> str:
    return f"{name:22}{karat_says:>22}{trl_says:>22}"


def _share(found: Mapping[str, Any]) -> str:
    low, high = found["wilson_95"]
    return f"{found['accuracy']:.3f} [{low:.3f}, {high:.3f}]"


def _range(found: Mapping[str, Any], digits: int = 1) -> str:
    return f"{found['median']:.{digits}f} ({found['min']:.{digits}f}–{found['max']:.{digits}f})"


if __name__ == "__main__":
    sys.exit(main())
