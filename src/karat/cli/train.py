"""`karat train`: data and a model to a checkpoint with its spec, golden scores and report."""

from pathlib import Path
from typing import Any

import typer

from karat.cli import _options
from karat.cli._training import settings

SETTINGS = _options.OPEN


def command(
    context: typer.Context,
    kind: str = typer.Argument(None, help="bradley_terry, outcome, …: see `karat kinds`."),
    model: str = typer.Option(None, help="Folder, hub id, or `scratch` for a small new decoder."),
    data: list[str] = typer.Option(None, help="PATH[START:STOP][@WEIGHT] or hub id; may be given several times."),
    output: list[str] = typer.Option(None, help="Folder to be written. A number or [weights] is the spec's."),
    eval: list[str] = typer.Option(None, help="Held-out files, or the share of prompts to hold out (0.1)."),
    format: str = typer.Option(None, help="Format of the data: see `karat formats`; else told from the columns."),
    method: str = typer.Option(None, help="full, lora, or frozen (the head alone)."),
    features: Path = typer.Option(None, help="Folder that keeps a frozen model's hidden states for the next runs."),
    stream: int = typer.Option(None, help="Rows to shuffle at a time, of data that memory does not hold."),
    learning_rate: float = typer.Option(None, help="Peak learning rate (1e-5; lora 1e-4; frozen and scratch 1e-3)."),
    epochs: float = typer.Option(None, help="Passes over the data (1; frozen 20)."),
    batch_size: int = typer.Option(None, help="Rows per optimiser step, all devices together (32)."),
    seed: int = typer.Option(None, help="Of data order, new weights and samples (0)."),
    config: Path = typer.Option(None, help="YAML file of settings; options given here win over it."),
    as_json: bool = _options.JSON,
) -> None:
    """Train a reward model; the same command goes on with a run that was stopped.

    Further options are those of the kind (`karat kinds bradley_terry` lists them with their defaults), of the spec
    (--max-length, --over-length error|drop|cut_prompt|cut_end, --layout, --pooling, --step-token, --add-step-token)
    and of transformers' TrainingArguments (--bf16, --gradient-accumulation-steps, --report-to tensorboard,
    --max-steps, …). TRL's own names of settings are understood.
    """
    made = settings(context)
    from karat.training import run

    trained = run.run(made)
    if trained.first:  # of several processes, one speaks
        _show(trained, as_json)


def _show(trained: Any, as_json: bool) -> None:
    import json

    if as_json:
        from karat.evaluation.base import summary

        found = summary(trained.result) if trained.result else {}
        print(json.dumps({"folder": str(trained.folder), **found}))
        return
    from karat.cli import _tables

    if trained.result:
        _tables.result(trained.result)
    print(f"saved {trained.folder}" + (f"; open {trained.folder / 'report.html'}" if trained.result else ""))
