"""`karat doctor`: is this model wired as it was trained?"""

import json

import typer

from karat.cli import _options, _tables

SETTINGS = _options.OPEN


def command(
    context: typer.Context,
    model: str = typer.Argument(help="Folder or hub id of a reward model."),
    device: str = _options.DEVICE,
    dtype: str = _options.DTYPE,
    parity: str = typer.Option("", help="A file of texts with the score that others have, or: transformers."),
    tolerance: float = typer.Option(0.01, help="By which these may differ, of max(1, |score|)."),
    example: str = typer.Option("", help="A file whose first row is shown as the model reads it; else one is made up."),
    as_json: bool = _options.JSON,
) -> None:
    """Check a reward model's wiring: golden scores, text, tokens read, BOS, length, and that padding does not matter.

    With --parity, its scores are compared with those of a file, whose rows have text (finished), or prompt and
    response, and score; where they differ, the classic mistake is named that explains it. With --parity transformers,
    they are compared with its own class for sequences. Further options are the spec's (--spec, --kind, …).
    """
    from karat.rewards._doctor import examine

    options = _options.extra(context, _options.spec_fields())
    findings = examine(model, device, dtype, parity, tolerance, example, **options)
    if as_json:
        print(json.dumps([f._asdict() for f in findings]))
    else:
        _tables.table(
            ("check", "", "what was found"), [(f.check, "ok" if f.ok else "WRONG", f.found) for f in findings]
        )
    if not all(f.ok for f in findings):
        raise typer.Exit(1)
