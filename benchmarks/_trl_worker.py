"""One job for TRL's RewardTrainer, run by the python of `.peers/trl`: `_trl_worker.py JOB.json RESULT.json`.

A job is either {"train": …} or {"evaluate": …}; `train_vs_trl.py` writes them. Only TRL and what it brings is imported.
"""

import json
import resource
import sys
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
import trl
from _clock import cpu_of_training
from datasets import Dataset
from trl import RewardConfig, RewardTrainer


def train(job: dict[str, Any]) -> dict[str, Any]:
    """Train from a folder on conversational rows, save, and tell what was logged and which ids were seen."""
    args = RewardConfig(output_dir=job["work"], max_length=job["max_length"], **job["settings"])
    trainer = RewardTrainer(model=job["model"], args=args, train_dataset=_rows(job["rows"]))
    if job["settings"].get("train_sampling_strategy") == "group_by_length":  # wants a column that TRL does not make
        longest = [max(len(row["chosen_ids"]), len(row["rejected_ids"])) for row in trainer.train_dataset]
        trainer.train_dataset = trainer.train_dataset.add_column("length", longest)
    with cpu_of_training() as spent:
        trainer.train()
    trainer.save_model(job["output"])
    return {
        "history": trainer.state.log_history,
        "cpu_seconds": sum(spent),
        "peak_MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "rows_used": len(trainer.train_dataset),
        "checkpointing": trainer.model.is_gradient_checkpointing,
        "dtype": str(trainer.model.dtype),
        "ids": [[row["chosen_ids"], row["rejected_ids"]] for row in trainer.train_dataset],
    }


def evaluate(job: dict[str, Any]) -> dict[str, Any]:
    """What TRL's own evaluation says of a trained folder, for each named set of rows and batch size."""
    return {name: _evaluated(job, **wanted) for name, wanted in job["sets"].items()}


def _evaluated(job: dict[str, Any], rows: str, batch_size: int) -> dict[str, Any]:
    data = _rows(rows)
    args = RewardConfig(
        output_dir=job["work"], max_length=job["max_length"], per_device_eval_batch_size=batch_size, **job["settings"]
    )
    trainer = RewardTrainer(model=job["model"], args=args, train_dataset=data, eval_dataset=data)
    found = trainer.evaluate()
    return {"accuracy": found["eval_accuracy"], "loss": found["eval_loss"], "rows": len(trainer.eval_dataset)}


def _rows(path: str) -> Dataset:
    return Dataset.from_list([json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()])


def main() -> None:
    """Read the job, do it, write the result."""
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    result = train(job["train"]) if "train" in job else evaluate(job["evaluate"])
    modules = (trl, transformers, torch, datasets)
    told = {"threads": torch.get_num_threads(), "versions": {m.__name__: m.__version__ for m in modules}}
    Path(sys.argv[2]).write_text(json.dumps({**result, **told}), encoding="utf-8")


if __name__ == "__main__":
    main()
