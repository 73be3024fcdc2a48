"""The loop: transformers' Trainer over a reward module, with losses averaged by row weight over the whole step.

It knows neither files nor reports; `run.py` does.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from karat.rewards.base import Kind
from karat.training._data import Row

Judge = Callable[[], dict[str, float]]


class Collator:
    """Rows → one batch: the forward's tensors, where each row's rewards stand among the reads, targets and weights."""

    def __init__(self, kind: Kind, forward: Any) -> None:
        self.kind = kind
        self.forward = forward

    def __call__(self, rows: list[Row]) -> dict[str, Any]:
        """B rows of up to K sequences each; `slots_BK` are indices of reads, -1 where a row has no candidate."""
        sequences = [s for row in rows for s in row.sequences]
        width = max(len(row.sequences) for row in rows)
        slots_BK = torch.full((len(rows), width), -1)
        at = 0
        for number, row in enumerate(rows):
            slots_BK[number, : len(row.sequences)] = torch.arange(at, at + len(row.sequences))
            at += len(row.sequences)
        return {
            "batch": self.forward.collate(sequences),
            "slots_BK": slots_BK,
            "targets": self.kind.targets([row.item for row in rows]),
            "weight_B": torch.tensor([row.item.weight for row in rows]),
        }


class RewardTrainer(Trainer):
    """Trainer whose loss is the weighted mean over all rows of an optimiser step, however it is split up."""

    def __init__(self, kind: Kind, judge: Judge | None, **options: Any) -> None:
        super().__init__(**options)
        self.kind = kind
        self.judge = judge
        # Tells Trainer that the loss is already divided by what get_batch_samples counts.
        self.model_accepts_loss_kwargs = True

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor | None]:
        """The batches of one optimiser step, and the total weight of their rows over all processes."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        total = torch.stack([b["weight_B"].sum() for b in batches]).sum() if batches else torch.zeros(())
        return batches, self.accelerator.gather(total.to(device)).sum()

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """The batch's share of the step's loss, in nats."""
        numbers_Rk = model(**inputs["batch"])
        slots_BK = inputs["slots_BK"]
        rewards_BK = numbers_Rk[:, 0][slots_BK.clamp(min=0)]
        loss_B = self.kind.loss(rewards_BK, slots_BK >= 0, inputs["targets"])
        weight_B = inputs["weight_B"]
        total = weight_B.sum() if num_items_in_batch is None else num_items_in_batch
        # Gradients are averaged over processes, and the total counts the rows of all of them.
        share: Tensor = (weight_B * loss_B).sum() / total * self.accelerator.num_processes
        return share

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Figures of the whole held-out set, by row and not by batch; the first process judges."""
        metrics: dict[str, float] = {}
        if self.judge is not None and self.is_world_process_zero():
            metrics = {f"eval_{name}": value for name, value in self.judge().items()}
            self.log(metrics)
        self.accelerator.wait_for_everyone()
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def arguments(folder: str, **settings: Any) -> TrainingArguments:
    """Trainer's arguments: karat's defaults under what the user gave.

    Raises:
        TypeError: a setting that transformers does not know.
    """
    defaults: dict[str, Any] = {
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.05,  # a share of the steps
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "logging_first_step": True,
        "logging_nan_inf_filter": False,
        "report_to": "none",
        "save_total_limit": 1,
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "ddp_find_unused_parameters": False,
        "use_cpu": not torch.cuda.is_available(),
    }
    return TrainingArguments(output_dir=folder, **{**defaults, **settings})
