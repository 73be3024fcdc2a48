"""One training by karat in a process of its own, as TRL's is: `_karat_worker.py JOB.json RESULT.json`."""

import json
import resource
import sys
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from _clock import cpu_of_training

import karat
from karat.training.config import TrainConfig
from karat.training.run import run


def train(job: dict[str, Any]) -> dict[str, Any]:
    """Train with `karat.training.run.run`, and tell what was logged and how many rows were used."""
    config = TrainConfig.make(**job)
    with cpu_of_training() as spent:
        trained = run(config)
    return {
        "history": list(trained.history),
        "cpu_seconds": sum(spent),
        "peak_MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "rows_used": trained.accounts[0].used,
    }


def main() -> None:
    """Read the job, do it, write the result."""
    result = train(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))["train"])
    modules = (karat, transformers, torch, datasets)
    told = {"threads": torch.get_num_threads(), "versions": {m.__name__: m.__version__ for m in modules}}
    Path(sys.argv[2]).write_text(json.dumps({**result, **told}), encoding="utf-8")


if __name__ == "__main__":
    main()
