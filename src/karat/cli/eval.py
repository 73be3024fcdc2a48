"""`karat eval`: figures with intervals, beside null baselines."""

import json

import typer

from karat.cli import _options, _tables

SETTINGS = _options.OPEN


def command(
    context: typer.Context,
    model: str = typer.Argument(help="Folder or hub id of a reward model."),
    data: list[str] = typer.Argument(
        help="Files, or hub ids OWNER/NAME[:CONFIG]:SPLIT, of pairs, rankings, labels or steps."
    ),
    train_data: list[str] = typer.Option(None, help="What the model was trained on; the n-gram null learns from it."),
    output: list[str] = typer.Option(
        None, help="A new folder for the report and the run's record. A number or [weights] is the spec's."
    ),
    benchmark: str = typer.Option(None, help="A benchmark with rules of its own, such as llmbar: all data as one."),
    format: str = typer.Option(None, help="Format of the data; else told from the columns."),
    seed: int = typer.Option(0, help="Of the bootstrap."),
    device: str = _options.DEVICE,
    dtype: str = _options.DTYPE,
    deterministic: bool = _options.DETERMINISTIC,
    compiled: bool = _options.COMPILED,
    engine: str = _options.ENGINE,
    as_json: bool = _options.JSON,
) -> None:
    """Evaluate a reward model on held-out data; further options are the spec's (--max-length, --over-length, …)."""
    from karat import load
    from karat.evaluation import base
    from karat.evaluation._files import check_output, evaluate_files, write_run

    folder, own = _options.outputs(output or [])
    options = {**_options.extra(context, _options.spec_fields()), **own}
    if folder is not None:
        check_output(folder)
    how = {"deterministic": deterministic, "compiled": compiled}
    rm = load(model, device=device, dtype=dtype, engine=engine, **how, **options)
    results = evaluate_files(rm, data, train_data or [], format, seed, name=benchmark)
    try:
        if folder is not None:
            settings = {"model": model, "data": data, **how, **options}
            settings |= {"benchmark": benchmark} if benchmark else {}
            write_run(folder, f"{model} on {benchmark or ', '.join(data)}", results, settings)
    finally:  # neither a full disk nor a reader that has gone takes the figures along
        if as_json:
            print(json.dumps([base.summary(r) for r in results]))
        else:
            for result in results:
                _tables.result(result)
