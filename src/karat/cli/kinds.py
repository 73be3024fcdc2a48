"""`karat kinds`: the kinds of reward."""

import json

import typer

from karat.cli import _options, _tables


def command(as_json: bool = _options.JSON, name: str = typer.Argument(None, help="Show the options of one.")) -> None:
    """The kinds of reward that there are, one line each."""
    from karat.rewards.base import kinds, option_names

    if name is not None:
        options = option_names(name)
        print(json.dumps(options)) if as_json else _tables.table(
            ("option", "default"), [(f"--{n.replace('_', '-')}", str(v)) for n, v in options.items()]
        )
        return
    print(json.dumps(kinds())) if as_json else _tables.table(("kind", "what it is"), list(kinds().items()))
