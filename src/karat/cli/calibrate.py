"""`karat calibrate`: corrects a reward model's rewards afterwards, and shows on held-out rows what that changes."""

from typing import Any

import typer

from karat.cli import _options, _tables
from karat.types import BadInput

SETTINGS = _options.OPEN


def command(
    context: typer.Context,
    model: str = typer.Argument(help="Folder or hub id of a reward model."),
    data: str = typer.Argument(help="Pairs for temperature and length, labelled answers else: PATH[START:STOP]."),
    method: str = typer.Option(..., help="temperature, platt, isotonic or length."),
    output: list[str] = typer.Option(..., help="A new folder. A number or [weights] is the spec's."),
    held_out: float = typer.Option(0.5, help="Share of the prompts that it is judged on and not fitted on; 0: none."),
    format: str = typer.Option(None, help="Format of the data; else told from the columns."),
    seed: int = typer.Option(0, help="Of what is held out, and of the bootstrap."),
    device: str = _options.DEVICE,
    dtype: str = _options.DTYPE,
    deterministic: bool = _options.DETERMINISTIC,
    as_json: bool = _options.JSON,
) -> None:
    """Fit a calibration; the folder holds its numbers and names the model, which stays where it is.

    temperature: leads become log-odds of a preference. platt, isotonic: rewards become probabilities of being right.
    length: what an answer's length explains is taken off. Use data that the model was not trained on. Further options
    are the spec's (--kind, --max-length, …).
    """
    import json

    from karat import load
    from karat.evaluation._files import check_output
    from karat.rewards import calibrated
    from karat.rewards._wrapped import save_spec

    folder, own = _options.outputs(output)
    options = {**_options.extra(context, _options.spec_fields()), **own}
    if folder is None:
        raise BadInput("--output is a number; give the folder to write as well")
    check_output(folder)
    items = calibrated.read_items(data, method, format)
    rm = load(model, device=device, dtype=dtype, deterministic=deterministic, **options)
    found = calibrated.calibrate(rm, items, method, data, held_out, seed)
    save_spec(found.spec(model, folder, options), folder)
    if as_json:
        print(json.dumps({"output": str(folder), **found.summary()}))
    else:
        _show(found)
        print(f"{method} fitted on {found.fitted.rows} rows of {found.fitted.prompts} prompts, in {folder}")
    _tell(found.unscored)


def _show(found: Any) -> None:
    rows = [
        (c.name, _number(c.before), _ends(c.before_interval), _number(c.after), _ends(c.after_interval))
        for c in found.changes
    ]
    columns = ("figure", "before", "95 % interval", "after", "95 % interval")
    if rows:
        _tables.table(columns, rows, f"on {found.fitted.held_out} rows of other prompts")
    if found.verdict:
        print(found.verdict)


def _number(value: float | None) -> str:
    return "" if value is None else _tables.number(value)


def _ends(interval: Any) -> str:
    return "" if interval is None else f"{interval.low:.4f} … {interval.high:.4f}"


def _tell(unscored: dict[str, int]) -> None:
    """Say on stderr which rows were not used and why."""
    import sys

    for reason, count in unscored.items():
        print(f"unscored {count}: {_options.spelled(reason)}", file=sys.stderr)
