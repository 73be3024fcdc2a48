"""The loop: transformers' Trainer over a reward module, with losses averaged by row weight over the whole step.

It knows neither files nor reports; `run.py` does.
"""

import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from karat import types
from karat.rewards.base import Kind
from karat.training import _sharded
from karat.training._data import Row
from karat.training._stream import Stream
from karat.types import BadInput, CheckpointError

Judge = Callable[[], dict[str, float]]


def labels(kind: Kind, rows: Sequence[Row]) -> dict[str, Any]:
    """What B rows say of the numbers at their sequences' reads, which lie one after the other.

    `slots_BK` are indices of reads, -1 where a row has no more; `weight_B` and the kind's `targets`, among which
    `sequence_BK` says which of a row's sequences a read is of.
    """
    reads = [sum(map(_count, row.sequences)) for row in rows]
    slots_BK = torch.full((len(rows), max(reads)), -1)
    sequence_BK = torch.zeros_like(slots_BK)
    at = 0
    for number, (row, count) in enumerate(zip(rows, reads, strict=True)):
        slots_BK[number, :count] = torch.arange(at, at + count)
        counts = torch.tensor(list(map(_count, row.sequences)))
        sequence_BK[number, :count] = torch.arange(len(counts)).repeat_interleave(counts)
        at += count
    return {
        "slots_BK": slots_BK,
        "targets": {**kind.targets([row.item for row in rows]), "sequence_BK": sequence_BK},
        "weight_B": torch.tensor([row.item.weight * kind.size(row.item) for row in rows], dtype=torch.float32),
    }


def _count(sequence: types.Sequence) -> int:
    """Numbers that a sequence gives: one per position of its first read, and one for a mean; others come beside."""
    read = next(iter(sequence.reads.values()))
    return 1 if isinstance(read, types.Span) else len(read)


def losses_of(kind: Kind, numbers_Rk: Tensor, said: dict[str, Any]) -> Tensor:
    """Loss of each row [B] from the head's numbers at all their reads and what `labels` says of them."""
    slots_BK = said["slots_BK"]
    return kind.loss(numbers_Rk[slots_BK.clamp(min=0)], slots_BK >= 0, said["targets"])


def mean_loss(kind: Kind, rows: Sequence[Row], numbers_Rk: Tensor) -> float:
    """The weighted mean loss of rows whose reads have these numbers; 0 where no row weighs anything."""
    said = labels(kind, rows)
    loss_B = losses_of(kind, numbers_Rk.cpu(), said)
    return float((said["weight_B"] * loss_B).sum() / _above_zero(said["weight_B"].sum()))


def _above_zero(total: Tensor) -> Tensor:
    return total.clamp(min=torch.finfo(torch.float32).tiny)


class Collator:
    """Rows → one batch: the forward's tensors, and what `labels` says."""

    def __init__(self, kind: Kind, forward: Any) -> None:
        self.kind = kind
        self.forward = forward

    def __call__(self, rows: list[Row]) -> dict[str, Any]:
        """B rows of up to K sequences each."""
        return {"batch": self.forward.collate([s for row in rows for s in row.sequences]), **labels(self.kind, rows)}


class Order(Sampler[int]):
    """An order of rows for each epoch, by seed and epoch alone.

    At the end it says `rows`, one behind the last row, until a multiple of `multiple` is reached: the row that
    weighs nothing, so that every process has equally many and none sees a row twice.
    """

    def __init__(self, rows: int, multiple: int, seed: int) -> None:
        self.rows, self.seed, self.epoch = rows, seed, 0
        self.blanks = -rows % multiple

    def __len__(self) -> int:
        return self.rows + self.blanks

    def __iter__(self) -> Iterator[int]:
        chance = torch.Generator().manual_seed(self.seed + self.epoch)
        yield from torch.randperm(self.rows, generator=chance).tolist()
        yield from [self.rows] * self.blanks

    def set_epoch(self, epoch: int) -> None:
        """Which epoch is drawn next."""
        self.epoch = epoch


class _SetEpoch(TrainerCallback):
    """Tells the order which epoch it is: wrappers that skip the rows of a resumed epoch do not pass it on."""

    def __init__(self, trainer: "RewardTrainer") -> None:
        self.trainer = trainer

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Before the epoch's rows are drawn."""
        if self.trainer.order is not None:
            self.trainer.order.set_epoch(int(state.epoch or 0))


class RewardTrainer(Trainer):
    """Trainer whose loss is the weighted mean over all rows of an optimiser step, however it is split up."""

    def __init__(self, kind: Kind, rows: list[Row] | Stream, judge: Judge | None, **options: Any) -> None:
        if not isinstance(rows, Stream):
            rows = [*rows, replace(rows[0], item=replace(rows[0].item, weight=0.0))]
        # Trainer wants an evaluation set; `judge` has the real one.
        super().__init__(train_dataset=rows, eval_dataset=[None], **options)
        self.kind = kind
        self.judge = judge
        self.order: Order | None = None
        self.add_callback(_SetEpoch(self))
        # Tells Trainer that the loss is already divided by what get_batch_samples counts.
        self.model_accepts_loss_kwargs = True

    def _get_train_sampler(self, train_dataset: Any = None) -> Order | None:
        if isinstance(self.train_dataset, Stream):
            return None
        args = self.args
        multiple = args.train_batch_size * args.world_size if args.world_size > 1 else 1
        seed = args.seed if args.data_seed is None else args.data_seed
        self.order = Order(len(self.train_dataset) - 1, multiple, seed)  # type: ignore[arg-type]
        return self.order

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
        loss_B = self.losses(model, inputs)
        weight_B = inputs["weight_B"]
        total = weight_B.sum() if num_items_in_batch is None else torch.as_tensor(num_items_in_batch)
        # Gradients are averaged over processes, and the total counts the rows of all of them.
        share: Tensor = (weight_B * loss_B).sum() / _above_zero(total) * self.accelerator.num_processes
        head = self.accelerator.unwrap_model(model).head
        return share + self.kind.penalty(head) / self.current_gradient_accumulation_steps

    def losses(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        """The loss of each row of a batch [B], in nats."""
        with _sharded.autocast(self) if self.is_fsdp_enabled else nullcontext():
            numbers_Rk = model(**inputs["batch"])
        return losses_of(self.kind, numbers_Rk, inputs)

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Figures of the whole held-out set, by row and not by batch; the first process judges for all.

        Where none has all weights, all judge together.
        """
        if self.judge is None:
            return {}
        judges = self.args.process_index == 0 or _sharded.is_sharded(self)
        found = [{f"eval_{name}": value for name, value in self.judge().items()} if judges else {}]
        metrics: dict[str, float] = broadcast_object_list(found)[0]
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Keep and report figures; a loss that is no number ends training.

        Raises:
            BadInput: it has diverged.
        """
        for name, what in (("loss", "the loss"), ("eval_loss", "the held-out loss")):
            if not math.isfinite(logs.get(name, 0.0)):
                raise BadInput(self.diverged(f"{what} is {logs[name]}"))
        super().log(logs, start_time)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self.check_weights()
        try:
            super()._save_checkpoint(model, trial)
        except (OSError, SafetensorError, RuntimeError) as error:
            shutil.rmtree(Path(str(self.args.output_dir), f"checkpoint-{self.state.global_step}"), ignore_errors=True)
            problem = getattr(error, "strerror", None) or str(error).strip().splitlines()[0]
            raise CheckpointError(
                f"the checkpoint of step {self.state.global_step} could not be written ({problem});"
                " free space, and give the same command again to go on from the one before"
            ) from None

    def steps(self) -> int:
        """Optimiser steps of the whole run."""
        return int(self.set_initial_training_values(self.args, self.get_train_dataloader())[-1])

    def check_weights(self) -> None:
        """Raise BadInput where a trained weight is no number."""
        for name, tensor in self.model.named_parameters():  # type: ignore[union-attr]
            if tensor.requires_grad and not _sharded.all_finite(tensor):
                raise BadInput(self.diverged(f"{name.rpartition('.')[0]} has weights that are no numbers"))

    def diverged(self, what: str) -> str:
        """The sentence about it, with the mend."""
        return (
            f"training diverged: {what} at step {self.state.global_step}; use a learning_rate below"
            f" {self.args.learning_rate:g} and another output, or remove {self.args.output_dir}"
        )


def arguments(folder: str, **settings: Any) -> TrainingArguments:
    """Trainer's arguments: karat's defaults under what the user gave.

    Raises:
        TypeError, ValueError: a setting that transformers does not know or take.
    """
    defaults: dict[str, Any] = {
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.05,  # a share of the steps
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "logging_steps": 1,  # so that a run that was stopped has the curve of one that was not
        "logging_nan_inf_filter": False,
        "report_to": "none",
        "save_total_limit": 1,
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "ddp_find_unused_parameters": False,
        "use_cpu": not torch.cuda.is_available(),
    }
    made = TrainingArguments(output_dir=folder, **{**defaults, **settings})
    if made.n_gpu > 1:
        made._n_gpu = 1  # several GPUs are for `accelerate launch`: torch's DataParallel would tear batches apart
    return made
