"""One training by TRL's last PRMTrainer, run by the python of `.peers/prm`: `_prm_worker.py JOB.json RESULT.json`."""

import json
import resource
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
import trl
from _clock import cpu_of_training
from datasets import Dataset
from transformers import AutoModelForTokenClassification, AutoTokenizer
from trl.experimental.prm import PRMConfig, PRMTrainer


def train(job: dict[str, Any]) -> dict[str, Any]:
    """Train from a folder on stepwise rows, save, and tell what was logged and which ids and labels were seen."""
    rows = [json.loads(line) for line in Path(job["rows"]).read_text(encoding="utf-8").splitlines()]
    trainer = PRMTrainer(
        model=AutoModelForTokenClassification.from_pretrained(job["model"]),
        args=PRMConfig(output_dir=job["work"], max_length=job["max_length"], **job["settings"]),
        processing_class=AutoTokenizer.from_pretrained(job["model"]),
        train_dataset=Dataset.from_list(rows),
    )
    with cpu_of_training() as spent:
        trainer.train()
    trainer.save_model(job["output"])
    return {
        "history": trainer.state.log_history,
        "cpu_seconds": sum(spent),
        "peak_MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "rows_used": len(trainer.train_dataset),
        "rows": [[row["input_ids"], row["labels"]] for row in trainer.train_dataset],
    }


def main() -> None:
    """Read the job, do it, write the result."""
    result = train(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))["train"])
    told = {"versions": {m.__name__: m.__version__ for m in (trl, transformers, torch)}}
    Path(sys.argv[2]).write_text(json.dumps({**result, **told}), encoding="utf-8")


if __name__ == "__main__":
    main()
