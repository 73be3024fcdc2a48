"""`karat score`: a file of answers to a file of rewards, resumable."""

from typing import Any

import typer

from karat.cli import _options
from karat.types import grouped

SETTINGS = _options.OPEN
_LINES = 5  # of reasons


def command(
    context: typer.Context,
    model: str = typer.Argument(help="Folder or hub id of a reward model."),
    data: str = typer.Argument(help="Rows with prompt and response, or messages: PATH[START:STOP]."),
    output: list[str] = typer.Option(
        None,
        help="A .parquet, .jsonl or .jsonl.gz file; else JSON lines on stdout. A number or [weights] is the spec's.",
    ),
    device: str = _options.DEVICE,
    dtype: str = _options.DTYPE,
    deterministic: bool = _options.DETERMINISTIC,
    compiled: bool = _options.COMPILED,
    engine: str = _options.ENGINE,
    ray: str = typer.Option(None, help="A Ray cluster: HOST:PORT, or local for one on this machine."),
    replicas: int = typer.Option(None, min=1, help="Of the model on the cluster; else one for each GPU, or node."),
    as_json: bool = _options.JSON,
) -> None:
    """Score answers; rows keep their order and columns, and the same command goes on where a killed one stopped.

    Adds the columns reward, unscored (why there is none), tokens, truncated and flags; for process reward models
    step_rewards, and for models with several objectives objectives and gate. The exit code is 1 where no row could be
    scored. Further options are the spec's (--spec, --kind, --max-length, --over-length cut_prompt, --layout, --pooling,
    --head, --activation, --step-token, …).
    """
    from karat import load
    from karat.formats.base import json_line
    from karat.rewards import _offline

    file, own = _options.outputs(output or [])
    options = {**_options.extra(context, _options.spec_fields()), **own}
    if ray is not None:
        if file is None:
            raise typer.BadParameter("a cluster scores into a file; give --output")
        if engine is not None:
            raise typer.BadParameter("the models of a cluster run there; give --ray or --engine")
        from karat.scaling import _shards, ray_score

        opened = _shards.Open(model, device, dtype, deterministic, compiled, options)
        _report(ray_score.score_file(opened, data, file, ray, replicas), as_json)
        return
    if replicas is not None:
        raise typer.BadParameter("--replicas are of a cluster; give --ray too")
    if file is not None:
        _offline.check_output(file)
    how: dict[str, Any] = {
        "device": device,
        "dtype": dtype,
        "deterministic": deterministic,
        "compiled": compiled,
        "engine": engine,
    }
    rm = load(model, **how, **options)
    if file is None:
        scored, unscored = False, []
        for row in _offline.score_rows(rm, data):
            print(json_line(row))
            if row["reward"] is None:
                unscored.append(row["unscored"])
            else:
                scored = True
        _end(scored, {reason: len(places) for reason, places in grouped(unscored).items()})
        return
    settings = {"model": model, "deterministic": deterministic, **options}
    _report(_offline.score_file(rm, data, file, settings), as_json)


def _report(found: dict[str, Any], as_json: bool) -> None:
    import json

    text = f"scored {found['scored']} of {found['rows']} rows to {found['output']}"
    print(json.dumps(found) if as_json else text)
    _end(found["scored"] > 0, found["unscored"])


def _end(scored: bool, unscored: dict[str, int]) -> None:
    """Say on stderr why rows have no reward; a file without any reward is a failure."""
    import sys

    listed = list(unscored.items())
    shown = listed if len(listed) <= _LINES else listed[: _LINES - 1]
    for reason, count in shown:
        print(f"unscored {count}: {_options.spelled(reason)}", file=sys.stderr)
    if rest := listed[len(shown) :]:
        print(f"unscored {sum(count for _, count in rest)}: {len(rest)} other reasons, by row", file=sys.stderr)
    if not scored:
        raise typer.Exit(1)
