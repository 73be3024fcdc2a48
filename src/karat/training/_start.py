"""What a run starts from: settings checked by name, and a model as its kind, its data and its spec want it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate import PartialState
from torch import nn
from transformers import TrainingArguments

from karat.models import checkpoint, scratch
from karat.models._quantised import is_quantised
from karat.models.backbone import locate
from karat.models.checkpoint import Parts
from karat.rewards.base import Kind, defaults
from karat.spec import HEAD_NAMES, RewardSpec
from karat.training import _work
from karat.training.config import TrainConfig
from karat.types import BadInput, nearest

# Trainer's settings that karat has under another name, or needs as they are.
_RESERVED = {
    "output_dir": "output",
    "seed": "seed",
    "num_train_epochs": "epochs",
    "learning_rate": "learning_rate",
    "per_device_train_batch_size": "batch_size",
    "label_smoothing_factor": "options: label_smoothing",
    "train_sampling_strategy": "",
    "remove_unused_columns": "",
    "auto_find_batch_size": "",
    "resume_from_checkpoint": "",
}
_CHECKPOINTING = ("gradient_checkpointing", "activation_checkpointing")  # transformers' two names of it


def trainer_settings(config: TrainConfig) -> dict[str, Any]:
    """What is asked of transformers' Trainer, checked by name."""
    known = set(TrainingArguments.__dataclass_fields__) - set(_RESERVED)
    for name in config.trainer:
        if name in _RESERVED:
            mend = f"use karat's own {_RESERVED[name]}" if _RESERVED[name] else "leave it out"
            raise BadInput(f"the trainer setting {name} is karat's to choose; {mend}")
        if name not in known:
            raise BadInput(f"unknown trainer setting {name!r}{nearest(name, known)}")
        if config.method == "frozen" and name in _CHECKPOINTING and config.trainer[name]:
            raise BadInput(f"{name} saves nothing with method=frozen, which computes the backbone once; leave it out")
    return {**_batches(config), **config.trainer}


def check(config: TrainConfig, made: Kind, settings: Mapping[str, Any]) -> None:
    """Raise BadInput where a kind cannot be trained in that way."""
    if not made.items:
        raise BadInput(made.problem([]))
    if config.method not in made.methods:
        raise BadInput(f"{config.kind} is trained with method={made.methods[0]}, not {config.method}; leave method out")
    if config.features and config.method != "frozen":
        raise BadInput("features are kept of a frozen backbone, and this run changes it; use method=frozen")
    if made.language_weight and config.method == "frozen":
        raise BadInput("language_weight trains the backbone; leave it out, or use method=full or lora")
    if (size := settings["per_device_train_batch_size"]) < made.least:
        raise BadInput(
            f"{config.kind} correlates rewards within a batch, and {size} rows are too few; give each process"
            f" {made.least} or more at once: raise batch_size, or lower gradient_accumulation_steps"
        )


def _batches(config: TrainConfig) -> dict[str, Any]:
    accumulate = int(config.trainer.get("gradient_accumulation_steps", 1))
    processes = PartialState().num_processes
    if config.batch_size % (shares := accumulate * processes):
        raise BadInput(
            f"batch_size={config.batch_size} cannot be split into {shares} equal parts"
            f" ({accumulate} accumulated, {processes} processes); change one of them"
        )
    return {"per_device_train_batch_size": config.batch_size // shares}


def starting_model(config: TrainConfig, work: Path, items: Sequence[Any], made: Kind) -> str:
    """The folder or hub id to begin from; for a new model the folder that it was made in."""
    if not _is_scratch(config):
        return config.model
    if "full" not in made.methods:
        raise BadInput(f"{config.kind} learns over a model that is there; give a folder or hub id instead of scratch")
    if config.method != "full":
        raise BadInput(f"a new model has nothing that method={config.method} could keep; use method=full")
    examples = [e for item in items if isinstance(item, made.items) for e in made.examples(item)]
    texts = (t for e in examples for t in (*(m.content for m in e.prompt), e.response))
    head = {**defaults(config.kind, {**config.spec, **config.options}), **config.spec}.get("head", "")
    logits = str(head).partition(":")[0] in ("lm_logits", "log_ratio") or made.language_weight > 0
    return str(_work.scratch_model(work, config.model, texts, config.seed, logits))


def _is_scratch(config: TrainConfig) -> bool:
    return config.model.partition(":")[0] == scratch.WORD


def _layout_for(items: Sequence[Any], made: Kind) -> str:
    """The plain layout for models without a chat template: turns need their roles written out."""
    turns = any(len(e.prompt) > 1 for item in items if isinstance(item, made.items) for e in made.examples(item))
    return "dialogue" if turns else "concat"


def start(config: TrainConfig, model: str, device: str, made: Kind, items: Sequence[Any]) -> tuple[Parts, str]:
    """The model to train, and what is done with over-long rows."""
    options = dict(config.spec)
    policy = str(options.pop("over_length", "drop"))
    if policy not in ("error", "drop", "cut_prompt", "cut_end"):
        raise BadInput(f"over_length has to be error, drop, cut_prompt or cut_end, not {policy!r}")
    options["over_length"] = "cut_prompt" if policy == "cut_prompt" else "error"
    saved = None if _is_scratch(config) else RewardSpec.read(locate(model))
    saved = saved if saved and saved.kind == config.kind else None
    given = {} if saved else defaults(config.kind, {**options, **config.options})
    own: list[Any] = [item for item in items if isinstance(item, made.items)]
    given |= made.told(own, saved)
    usual = saved.activation if saved else given.get("activation", "identity")
    if options.get("activation", usual) != usual:
        raise BadInput(
            "losses work on raw rewards; leave activation out, and give it when the model is loaded to score"
        )
    spec = RewardSpec(kind=config.kind, options=config.options).with_options(**{**given, **options})
    plain = _layout_for(items, made)
    if spec.head.type == "log_ratio" and saved is None and "reference" not in options:
        spec = spec.with_options(reference=_first_model(config))
    parts = checkpoint.start(model, spec, device, plain=plain)
    if config.method != "lora" and is_quantised(parts.backbone):
        raise BadInput(f"{model} is stored in fewer bits, beside which only an adapter is trained; use method=lora")
    _check_head(parts.spec, spec, options)
    _without_dropout(parts.backbone)
    added = checkpoint.add_step_token(parts) if config.add_step_token else None
    if added is not None and config.method == "frozen":
        raise BadInput("method=frozen trains no row of the embedding; leave add_step_token out, or use lora or full")
    if config.method == "lora":
        row = {} if added is None else {"trainable_token_indices": [added]}
        # The base model's embedding and pad token stay what they are.
        checkpoint.add_lora(parts, {**row, **config.lora})
    else:
        checkpoint.add_pad_token(parts)
    if config.method == "frozen":
        parts.backbone.requires_grad_(False)
    return parts, policy


def _check_head(own: RewardSpec, asked: RewardSpec, options: Mapping[str, Any]) -> None:
    """Raise BadInput where a run goes on from a model whose head is another than the one asked for."""
    for name in HEAD_NAMES:
        had = getattr(own.head, name)
        if name in options and had != getattr(asked.head, name):
            raise BadInput(
                f"training goes on with the model's own head, whose {name} is {had!r}; leave {name} out, or start from"
                " the model that it was trained from"
            )


def _first_model(config: TrainConfig) -> str:
    """What a run starts from, as the reference of what comes of it."""
    if _is_scratch(config):
        raise BadInput("a new model is not kept, so it cannot be the reference; give reference='', which is none")
    return str(Path(config.model).absolute()) if Path(config.model).is_dir() else config.model


def cutting(spec: RewardSpec, policy: str) -> RewardSpec:
    """The spec by which rows are rendered. Late steps are cut here only: part of an answer has no reward."""
    if policy != "cut_end":
        return spec
    return spec.model_copy(update={"render": spec.render.model_copy(update={"over_length": policy})})


def _without_dropout(backbone: nn.Module) -> None:
    """Dropout would make a pair's two rewards differ for no reason. Modules keep its rate in many ways."""
    for module in backbone.modules():
        names = ["p"] if isinstance(module, nn.Dropout) else [n for n in vars(module) if "drop" in n]
        for name in names:
            if isinstance(getattr(module, name), float):
                setattr(module, name, 0.0)
