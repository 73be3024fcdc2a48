"""What the training tests share: files of rows, a run with small settings, and one optimiser step by itself."""

import json
from pathlib import Path

import torch
from transformers import PrinterCallback, TrainerCallback

from karat import arithmetic
from karat.engine.probe import choose_forward
from karat.models import checkpoint
from karat.models.render import Renderer
from karat.rewards._local import RewardModule
from karat.rewards.base import kind
from karat.spec import RewardSpec
from karat.training import _data, run
from karat.training._data import Account
from karat.training.config import TrainConfig
from karat.training.loop import Collator, RewardTrainer, arguments


def write(path: Path, rows) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def pairs(folder: Path, n: int = 24, name: str = "pairs.jsonl", seed: int = 0) -> str:
    return write(folder / name, arithmetic.pair_rows(n, seed))


def labelled_rows(n: int = 24):
    return [{"prompt": f"{i} + 1?", "response": str(i + 1 + i % 2), "label": float(1 - i % 2)} for i in range(n)]


def config(folder: Path, model, data, **settings) -> TrainConfig:
    defaults = {"kind": "bradley_terry", "eval": "0", "learning_rate": 1e-3, "batch_size": 8}
    defaults |= {"output": folder / "out", "model": str(model), "data": data}
    return TrainConfig.make(**{**defaults, **settings})


def train(folder: Path, model, data, **settings) -> run.Trained:
    return run.run(config(folder, model, data, **settings))


def losses(trained: run.Trained) -> list[float]:
    return [line["loss"] for line in trained.history if "loss" in line]


def lines(path: Path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def prepared(model, items, name: str = "bradley_terry", options=None, **spec):
    """Parts, kind and rows, as a run makes them."""
    made = kind(name, options)
    parts = checkpoint.start(model, RewardSpec(kind=name).with_options(**spec), device="cpu")
    renderer = Renderer(parts.tokenizer, parts.spec, parts.positions)
    return parts, made, _data.prepare(items, made, renderer, "drop", Account("train"))


class _Gradients(TrainerCallback):
    def __init__(self) -> None:
        self.found: list[dict[str, torch.Tensor]] = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.found.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})


def steps(folder: Path, parts, made, rows, batch_size: int, accumulate: int = 1, **settings):
    """Loss and gradients of each optimiser step of one epoch; nothing is learnt."""
    seen = _Gradients()
    trainer = RewardTrainer(
        made,
        rows,
        None,
        model=RewardModule(choose_forward(parts.backbone), parts.head),
        args=arguments(
            str(folder),
            per_device_train_batch_size=batch_size // accumulate,
            gradient_accumulation_steps=accumulate,
            num_train_epochs=1,
            learning_rate=0.0,
            max_grad_norm=0.0,
            save_strategy="no",
            **settings,
        ),
        data_collator=Collator(made, choose_forward(parts.backbone)),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(seen)
    trainer.train()
    return [line["loss"] for line in trainer.state.log_history if "loss" in line], seen.found
