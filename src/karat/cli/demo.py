"""`karat demo`: the main job end to end on built-in data."""

from pathlib import Path

import typer

from karat.cli import _options, _tables


def command(
    output: Path = typer.Option(Path("demo"), help="Folder for the model, report.html and summary.json."),
    seed: int = typer.Option(0, help="Of data and training."),
    as_json: bool = _options.JSON,
) -> None:
    """Train a small reward model on arithmetic, judge it on unseen problems, and choose the best of n answers."""
    from karat.training import demo

    found = demo.run_demo(output, seed)
    curve = demo.best_of_n(found.best_of)
    if as_json:
        print((output / "summary.json").read_text(encoding="utf-8"))
        return
    _tables.result(found.pairs)
    falls = demo.falls(curve)
    rows = [(str(row.pop("n")), *(_tables.number(v) for v in row.values())) for row in curve]
    _tables.table(("n", *curve[0]), rows, "best of n answers")
    main = found.best_of.figure(found.best_of.headline)
    if main is not None:
        print(f"right from wrong answers: {main.name} {_tables.number(main.value)}  {_tables.interval(main)}".rstrip())
    if falls:
        print("best-of-n falls after n = 8: that is real, as docs/decisions/0003-built-in-data.md explains")
    print(f"{found.seconds:.0f} s; open {output / 'report.html'}")
