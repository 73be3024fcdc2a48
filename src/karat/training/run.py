"""One training run from config to checkpoint: read, render, train, evaluate, save, report; resumable.

Work happens in `OUTPUT.partial`; `OUTPUT` appears whole when everything is done.
"""

import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from accelerate import PartialState
from torch import nn
from transformers import PrinterCallback, set_seed

from karat.engine.padded import PaddedEngine, PaddedForward
from karat.evaluation import _report
from karat.evaluation import base as evaluation
from karat.models import checkpoint, scratch
from karat.models.checkpoint import Parts
from karat.models.render import Renderer
from karat.rewards._local import LocalModel, RewardModule, golden_values
from karat.rewards.base import Kind, kind
from karat.spec import RewardSpec
from karat.training import _data
from karat.training._data import Account, Row
from karat.training._forward import StoredForward
from karat.training._progress import Progress, StopOnSignal
from karat.training.config import TrainConfig
from karat.training.loop import Collator, RewardTrainer, arguments
from karat.types import BadInput, Item, KaratError, Result


class Interrupted(KaratError):
    """Training was stopped; the message says how it goes on."""


@dataclass(frozen=True)
class Trained:
    """What a run leaves: a folder that `karat.load` reads, and what was found on held-out rows."""

    folder: Path
    result: evaluation.Result | None
    accounts: tuple[Account, Account]


def run(config: TrainConfig) -> Trained:
    """Train, evaluate and save; the same call goes on with a run that was stopped.

    Raises:
        BadInput: settings or data that cannot be used.
        Interrupted: stopped by a signal, with a checkpoint to go on from.
        CheckpointError: the result could not be written.
    """
    state = PartialState()
    with state.main_process_first():
        work = _open_work(config, state.is_main_process)
    set_seed(config.seed)
    made = kind(config.kind, config.options)
    (train, train_account), (rest, rest_account) = _data.read_both(config)
    with state.main_process_first():
        model = _starting_model(config, work, train, made)
    parts, policy = _start(config, model)
    renderer = Renderer(parts.tokenizer, parts.spec, parts.positions)
    rows = _data.prepare(train, made, renderer, policy, train_account)
    held_out = _data.prepare(rest, made, renderer, policy, rest_account) if rest else []
    if state.is_main_process:
        print("\n".join([*train_account.lines(), *rest_account.lines()]), file=sys.stderr)
    history = _fit(config, made, parts, rows, held_out, work)
    trained = None
    if state.is_main_process:
        trained = _finish(config, parts, rows, held_out, (train_account, rest_account), history, work)
    state.wait_for_everyone()
    return trained or Trained(config.output, None, (train_account, rest_account))


# Before training


def _open_work(config: TrainConfig, main: bool) -> Path:
    if config.output.exists():
        raise BadInput(f"{config.output} is already there; choose another --output, or remove it")
    work = config.output.with_name(config.output.name + ".partial")
    settings = config.model_dump(mode="json")
    record = work / "run.yaml"
    if record.is_file():
        before = yaml.safe_load(record.read_text(encoding="utf-8"))
        if changed := [name for name in settings if before.get(name) != settings[name]]:
            raise BadInput(
                f"{work} holds an unfinished run with another {', '.join(changed)}; give the same settings to go on"
                f" with it, or remove {work}"
            )
    elif main:
        try:
            work.mkdir(parents=True, exist_ok=True)
            record.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
        except OSError as error:
            raise BadInput(f"{work} cannot be written to ({error.strerror}); choose another --output") from None
    return work


def _starting_model(config: TrainConfig, work: Path, items: Sequence[Any], made: Kind) -> str:
    if config.model.partition(":")[0] != scratch.WORD:
        return config.model
    folder = work / "scratch"
    if not (folder / "tokenizer_config.json").is_file():
        examples = [e for item in items if isinstance(item, made.items) for e in made.examples(item)]
        texts = [t for e in examples for t in (*(m.content for m in e.prompt), e.response)]
        scratch.build(folder, config.model, (t for t in texts if t.isascii() or _encodes(t)), config.seed)
    return str(folder)


def _encodes(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _start(config: TrainConfig, model: str) -> tuple[Parts, str]:
    """The model to train, and what is done with over-long rows."""
    options = dict(config.spec)
    policy = str(options.pop("over_length", "drop"))
    if policy not in ("error", "drop", "cut_prompt"):
        raise BadInput(f"over_length has to be error, drop or cut_prompt, not {policy!r}")
    options["over_length"] = "cut_prompt" if policy == "cut_prompt" else "error"
    spec = RewardSpec(kind=config.kind, options=config.options).with_options(**options)
    parts = checkpoint.start(model, spec)
    for module in parts.backbone.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # dropout would make a pair's two rewards differ for no reason
    if config.method == "frozen":
        parts.backbone.requires_grad_(False)
    else:
        checkpoint.add_pad_token(parts)
    if config.method == "lora":
        checkpoint.add_lora(parts, config.lora)
    return parts, policy


# Training


def _fit(
    config: TrainConfig, made: Kind, parts: Parts, rows: list[Row], held_out: list[Row], work: Path
) -> list[dict[str, float]]:
    """Train the parts in place; Trainer's log."""
    stop = StopOnSignal()
    trainer = _trainer(config, made, parts, rows, held_out, work)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(stop)
    trainer.add_callback(Progress(config.batch_size))
    try:
        trainer.train(resume_from_checkpoint=_last_checkpoint(work))
    finally:
        stop.release()
    if stop.asked and trainer.state.global_step < trainer.state.max_steps:
        raise Interrupted(
            f"stopped after step {trainer.state.global_step} of {trainer.state.max_steps};"
            " give the same command again to go on"
        )
    return list(trainer.state.log_history)


def _last_checkpoint(work: Path) -> str | None:
    """The newest whole one: Trainer writes its state last."""
    whole = [p.parent for p in work.glob("checkpoint-*/trainer_state.json")]
    return str(max(whole, key=lambda p: int(p.name.rpartition("-")[2]))) if whole else None


def _trainer(
    config: TrainConfig, made: Kind, parts: Parts, rows: list[Row], held_out: list[Row], work: Path
) -> RewardTrainer:
    scoring = PaddedEngine(PaddedForward(parts.backbone))
    frozen = config.method == "frozen"
    forward: Any = scoring.forward
    if frozen:
        forward = StoredForward(scoring, [s for row in rows for s in row.sequences])
    try:
        args = arguments(str(work), **_schedule(config, len(rows)), **config.trainer)
    except (TypeError, ValueError) as error:
        raise BadInput(f"transformers refuses the trainer settings: {error}") from None
    local = LocalModel(parts, scoring)
    items = [row.item for row in held_out]

    def judge() -> dict[str, float]:
        found = evaluation.evaluate(lambda examples: list(local.score_many(examples)), items)
        return {f.name: f.value for f in found.figures if f.name in (found.accuracy, found.headline)}

    return RewardTrainer(
        made,
        judge if items and not frozen else None,
        model=RewardModule(forward, parts.head),
        args=args,
        train_dataset=rows,
        eval_dataset=rows[:1],  # Trainer wants one; `judge` has the real ones
        data_collator=Collator(made, forward),
    )


def _schedule(config: TrainConfig, rows: int) -> dict[str, Any]:
    own = config.trainer
    accumulate = int(own.get("gradient_accumulation_steps", 1))
    shares = accumulate * PartialState().num_processes
    if config.batch_size % shares:
        raise BadInput(
            f"batch_size={config.batch_size} cannot be split into {shares} equal parts"
            f" ({accumulate} accumulated, {PartialState().num_processes} processes); change one of them"
        )
    steps = max(1, int(config.passes * -(-rows // config.batch_size)))
    steps = int(own["max_steps"]) if int(own.get("max_steps", -1)) > 0 else steps
    timed = {"logging_steps": max(1, steps // 50), "eval_steps": max(1, steps // 4), "save_steps": max(1, steps // 4)}
    return {
        "per_device_train_batch_size": config.batch_size // shares,
        "num_train_epochs": config.passes,
        "learning_rate": config.rate,
        "seed": config.seed,
        "eval_strategy": "steps",
        "save_strategy": "steps",
        **{name: value for name, value in timed.items() if name not in own},
    }


# After training


def _finish(
    config: TrainConfig,
    parts: Parts,
    rows: list[Row],
    held_out: list[Row],
    accounts: tuple[Account, Account],
    history: list[dict[str, float]],
    work: Path,
) -> Trained:
    parts.backbone.eval()
    local = LocalModel(parts)
    items: list[Item] = [row.item for row in held_out]
    result = None
    if items:
        result = evaluation.evaluate(
            lambda examples: _scored(local, examples), items, [row.item for row in rows], config.seed
        )

    def also(folder: Path) -> None:
        _write_records(config, accounts, history, result, folder)
        if (work / "runs").is_dir():
            shutil.copytree(work / "runs", folder / "runs")

    checkpoint.save(parts, config.output, golden_values, also)
    shutil.rmtree(work, ignore_errors=True)
    return Trained(config.output, result, accounts)


def _scored(local: LocalModel, examples: Sequence[Any]) -> list[Result]:
    return list(local.score_many(examples))


def _write_records(
    config: TrainConfig,
    accounts: tuple[Account, Account],
    history: list[dict[str, float]],
    result: evaluation.Result | None,
    folder: Path,
) -> None:
    (folder / "run.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False), encoding="utf-8")
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in history), encoding="utf-8")
    for account in accounts:
        account.write(folder / "rows.jsonl")
    if result is None:
        return
    summary = evaluation.summary(result)
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    _report.write(report(config, accounts, history, result), folder / "report.html")


def report(
    config: TrainConfig, accounts: Sequence[Account], history: list[dict[str, float]], result: evaluation.Result
) -> _report.Report:
    """The page about a run."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for line in history:
        for name, value in line.items():
            if name.startswith("eval_"):
                curves.setdefault(name.removeprefix("eval_"), []).append((int(line["step"]), value))
    losses = [(int(line["step"]), line["loss"]) for line in history if "loss" in line]
    return _report.Report(
        title=f"{config.kind}: {config.output.name}",
        results=[result],
        losses=losses,
        evaluations=curves,
        data=[_note(account) for account in accounts],
        settings={k: v for k, v in config.model_dump(mode="json").items() if v not in (None, {}, [], ())},
    )


def _note(account: Account) -> _report.DataNote:
    dropped: dict[str, int] = {}
    for _, reason in account.dropped:
        dropped[reason] = dropped.get(reason, 0) + 1
    return _report.DataNote(account.name, account.used, dropped, len(account.cut), len(account.tied))
