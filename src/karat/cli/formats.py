"""`karat formats`: the data formats."""

import json

from karat.cli import _options, _tables


def command(as_json: bool = _options.JSON) -> None:
    """The data formats that there are, one line each, with the columns they expect."""
    from karat.formats import base

    found = base.describe()
    if as_json:
        print(json.dumps(found))
        return
    _tables.table(("format", "what it is", "columns"), [(n, text, base.get(n).COLUMNS) for n, text in found.items()])
