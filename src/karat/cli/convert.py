"""`karat convert`: pickled weights as safetensors, without running code; or a backbone alone, for an engine."""

import json
from pathlib import Path

import typer

from karat.cli import _options


def command(
    model: str = typer.Argument(help="Folder or hub id of a model, mostly with pickled weights (*.bin, *.pt)."),
    output: Path = typer.Argument(help="Folder to write; it may not be there yet."),
    backbone: bool = typer.Option(
        False, "--backbone", help="Write the backbone alone instead, as vLLM loads it for --engine."
    ),
    as_json: bool = _options.JSON,
) -> None:
    """Write pickled weights as safetensors, and a reward_spec.json where the files decide how the model is read."""
    if backbone:
        from karat.models._alone import write_alone

        tensors = write_alone(model, output)
        print(json.dumps({"folder": str(output), "tensors": tensors}) if as_json else f"{tensors} tensors in {output}")
        return
    from karat.models.convert import convert

    done = convert(model, output)
    if as_json:
        print(json.dumps({**done._asdict(), "folder": str(done.folder)}))
        return
    print(f"{done.tensors} tensors in {done.folder}")
    print(f"read as: {done.family}" if done.family else f"open: {_options.spelled(done.question)}")
