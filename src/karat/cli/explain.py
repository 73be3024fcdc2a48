"""`karat explain`: what a model is read as, and why."""

import json
from collections.abc import Mapping
from typing import Any

import typer

from karat.cli import _options, _tables

SETTINGS = _options.OPEN


def command(
    context: typer.Context,
    model: str = typer.Argument(help="Folder or hub id of a reward model."),
    as_json: bool = _options.JSON,
) -> None:
    """Say how a model's text becomes its reward, and which evidence decided: no weights are loaded.

    Further options are those of the spec, such as --kind process; --spec takes a name, or a file, for all of them.
    """
    from karat.models.explain import explain

    lines = explain(model, _of_kind, **_options.extra(context, _options.spec_fields()))
    if as_json:
        print(json.dumps([line._asdict() for line in lines], ensure_ascii=False))
    else:
        _tables.table(("what", "said"), lines)


def _of_kind(options: Mapping[str, Any]) -> dict[str, Any]:
    """What a kind says beside these options."""
    from karat.rewards.base import defaults

    return defaults(str(options["kind"]), options) if "kind" in options else {}
