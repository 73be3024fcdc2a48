"""`karat score`: a file of answers to a file of rewards, resumable."""

from pathlib import Path

import typer

from karat.cli import _options

SETTINGS = _options.OPEN


def command(
    context: typer.Context,
    model: str = typer.Argument(help="Folder or hub id of a reward model."),
    data: str = typer.Argument(help="Rows with prompt and response, or messages: PATH[START:STOP]."),
    output: Path = typer.Option(None, help="A .parquet, .jsonl or .jsonl.gz file; without one, JSON lines on stdout."),
    device: str = _options.DEVICE,
    dtype: str = _options.DTYPE,
    as_json: bool = _options.JSON,
) -> None:
    """Score answers; rows keep their order and columns, and the same command goes on where a killed one stopped.

    Adds the columns reward, unscored (why there is none), tokens, truncated and flags. Further options are the
    spec's (--max-length, --over-length cut_prompt, --layout, --pooling, --activation, …).
    """
    import json

    from karat import load
    from karat.rewards import _offline

    options = _options.extra(context, _options.spec_fields())
    if output is not None:
        _offline.check_output(output)
    rm = load(model, device=device, dtype=dtype, **options)
    if output is None:
        for row in _offline.score_rows(rm, data):
            print(json.dumps(row, ensure_ascii=False))
        return
    found = _offline.score_file(rm, data, output, {"model": model, **options})
    print(json.dumps(found) if as_json else f"scored {found['scored']} of {found['rows']} rows to {output}")
