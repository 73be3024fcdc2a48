"""`karat selftrain`: few labelled pairs and many unlabelled ones to a model, in rounds (SSRM); resumable."""

from pathlib import Path
from typing import Any

import typer

from karat.cli import _options
from karat.cli._training import settings

SETTINGS = _options.OPEN
_HELD_OUT = "0.2"  # more than when training alone: labels are calibrated on it, and rounds are judged


def command(
    context: typer.Context,
    kind: str = typer.Argument(None, help="bradley_terry, odin or pairwise."),
    model: str = typer.Option(None, help="Folder, hub id, or `scratch` for a small new decoder."),
    data: list[str] = typer.Option(None, help="Labelled pairs: PATH[START:STOP][@WEIGHT]; may be given several times."),
    unlabelled: str = typer.Option(..., help="Pairs whose preference is not used: PATH[START:STOP]."),
    output: list[str] = typer.Option(None, help="Folder to be written. A number or [weights] is the spec's."),
    rounds: int = typer.Option(3, help="After the one on labelled pairs alone."),
    confidence: float = typer.Option(None, help="Above which a label is kept, from 0 to below 1 (0.8)."),
    precision: float = typer.Option(None, help="Or: how right kept labels are to be, judged on held-out pairs."),
    restart: str = typer.Option("base", help="What each round is trained from: base (--model) or previous."),
    eval: list[str] = typer.Option(None, help="Held-out files, or the share of prompts to hold out (0.2)."),
    format: str = typer.Option(None, help="Format of the data: see `karat formats`; else told from the columns."),
    method: str = typer.Option(None, help="full, lora, or frozen (the head alone)."),
    learning_rate: float = typer.Option(None, help="Peak learning rate (1e-5; lora 1e-4; frozen and scratch 1e-3)."),
    epochs: float = typer.Option(None, help="Passes over the data in each round (1; frozen 20)."),
    batch_size: int = typer.Option(None, help="Rows per optimiser step (32)."),
    seed: int = typer.Option(None, help="Of data order, new weights and samples (0)."),
    config: Path = typer.Option(None, help="YAML file of karat train's settings; options given here win over it."),
    as_json: bool = _options.JSON,
) -> None:
    """Train a preference model on what it is itself sure of; the same command goes on with a run that was stopped.

    Each round labels all unlabelled pairs with the last model, calibrated on held-out labelled pairs, keeps the sure
    labels, and is trained on these and on the labelled pairs. It stops when held-out pairs say that it drifts; the
    best round's model is in OUTPUT. Further options are those of karat train.
    """
    made = settings(context, eval=_HELD_OUT)
    from karat.training._selftraining_run import selftrain
    from karat.training.selftraining import Plan

    _show(selftrain(made, unlabelled, Plan(rounds, confidence, precision, restart)), as_json)


def _show(found: Any, as_json: bool) -> None:
    import json

    from karat.cli import _tables

    told = found.summary
    _tell(told["rounds"])
    if as_json:
        print(json.dumps(told))
        return
    every = told["rounds"]
    rows = [(name, *(cell(one) for one in every)) for name, cell in _cells()]
    columns = ("round", *(f"{one['round']}{' (best)' * (one['round'] == told['best'])}" for one in every))
    title = f"{told['labelled']} labelled pairs, {told['held_out']} held out, {told['unlabelled']} unlabelled"
    _tables.table(columns, rows, title)
    if (longer := told["longer_preferred_labelled"]) is not None:
        print(f"labelled pairs prefer the longer answer: {_number(longer)}")
    if told["stopped"]:
        print(f"stopped: {told['stopped']}")
    print(f"saved {found.folder}, the model of round {told['best']}")


def _tell(rounds: Any) -> None:
    """Say on stderr which pairs no round's model scores, and why."""
    import sys

    for one in rounds:
        for what, name in (("held-out", "unscored"), ("unlabelled", "unlabelled_unscored")):
            for reason, count in one.get(name, {}).items():
                print(
                    f"round {one['round']}: {what} pairs unscored {count}: {_options.spelled(reason)}", file=sys.stderr
                )


def _cells() -> list[tuple[str, Any]]:
    """What the table says of each round: the name of a figure, and how it is found."""
    return [
        ("labels kept", lambda one: str(one.get("kept", ""))),
        ("  of the unlabelled", lambda one: _number(one.get("kept_share"))),
        ("  surer than", lambda one: _number(one.get("threshold"))),
        ("  at temperature", lambda one: _number(one.get("label_temperature"))),
        ("  right, of held-out labels", lambda one: _number(one.get("threshold_precision"))),
        ("    95 % interval", lambda one: _ends(one.get("threshold_precision_ci"))),
        ("  right by the file", lambda one: _number(one.get("label_accuracy"))),
        ("    of all labels", lambda one: _number(one.get("label_accuracy_all"))),
        ("  longer preferred", lambda one: _number(one.get("longer_preferred"))),
        ("    of all labels", lambda one: _number(one.get("longer_preferred_all"))),
        ("  file's first preferred", lambda one: _number(one.get("first_preferred"))),
        ("held-out accuracy", lambda one: _number(one["accuracy"])),
        ("  95 % interval", lambda one: _ends(one["accuracy_ci"])),
        ("  gain over round 0", lambda one: _number(one["gain"])),
        ("    95 % interval", lambda one: _ends(one["gain_ci"])),
        ("negative log likelihood", lambda one: _number(one["nats"])),
    ]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _ends(interval: Any) -> str:
    return "" if interval is None else f"{interval[0]:.3f} … {interval[1]:.3f}"
