"""`karat bench`: speed here, beside plain transformers."""

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from karat.cli import _options, _tables

if TYPE_CHECKING:
    from karat.rewards._speed import Row, Speed

SETTINGS = _options.OPEN
# Cells of two lines, so that a row fits into 80 characters.
_COLUMNS = ("", "side", "seconds", "over\nkarat", "tokens\nneeded\ncomputed", "of\nrate", "peak\nMiB", "score\nmoves")
_PLAIN = "transformers, "


def command(
    context: typer.Context,
    model: str = typer.Argument(help="Folder or hub id of a reward model."),
    repeats: int = typer.Option(5, min=1, help="Turns that are measured, after one that warms."),
    plot: Path = typer.Option(None, help="A picture of it: .svg, .png or .html."),
    device: str = _options.DEVICE,
    dtype: str = _options.DTYPE,
    deterministic: bool = _options.DETERMINISTIC,
    compiled: bool = _options.COMPILED,
    as_json: bool = _options.JSON,
) -> None:
    """Measure how fast a model scores here: karat, beside plain transformers on the same weights, by turns.

    Four workloads are made of built-in texts. Further options are the spec's (--max-length, --layout, …).
    """
    import json

    from karat.rewards import _local, _speed, _speed_picture

    options = _options.extra(context, _options.spec_fields())
    if plot is not None:
        _speed_picture.check_picture(plot)
    found = _speed.bench(_local.load(model, device, dtype, deterministic, compiled, **options), repeats)
    try:
        if plot is not None:
            _speed_picture.picture(found, plot)
    finally:  # a full disk does not take the figures along
        print(json.dumps(found.summary())) if as_json else _shown(found)


def _shown(found: "Speed") -> None:
    _tables.table(_COLUMNS, map(_cells, found.rows), "karat, and plain transformers in a loop and in sorted batches")
    for name, what in found.workloads.items():
        print(f"{name}: {what}")
    machine = found.machine
    print(f"karat: {machine['engine']}, {machine['dtype']} on {machine['device']}, threads {machine['threads']}")
    if (rate := machine["matrix_flop_per_second"]) is not None:
        print(f"rate: {rate / 1e9:.0f} GFLOP/s in products of this model's shapes; 100% is the needed tokens' alone")
    if not machine["peak_is_of_each_run"]:
        print("peak: the highest of all runs so far, as it cannot be reset here")


def _cells(row: "Row") -> tuple[str, ...]:
    return (
        row.workload,
        row.side.removeprefix(_PLAIN),
        f"{row.median:.3g}\n{row.min:.3g} … {row.max:.3g}",
        f"{row.ratio:.2f}\n{row.ratio_min:.2f} … {row.ratio_max:.2f}",
        f"{row.needed}\n{'?' if row.computed is None else row.computed}",
        "?" if row.of_matrix_rate is None else f"{row.of_matrix_rate:.1%}",
        f"{row.peak_MiB:.0f}",
        "?" if row.moves_a_score_by is None else f"{row.moves_a_score_by:.0e}",
    )
