"""Options that verbs share, and those that only a kind, a spec or transformers' Trainer knows."""

from collections.abc import Collection
from typing import Any

import typer

DEVICE = typer.Option("auto", help="auto, cpu, cuda, cuda:1, …")
DTYPE = typer.Option("auto", help="auto (float32 on a CPU, the checkpoint's own on a GPU), float32, bfloat16, …")
JSON = typer.Option(False, "--json", help="Print JSON on stdout, for programs.")

# A verb with these settings takes further `--name value` options and sorts them out itself.
OPEN = {"context_settings": {"allow_extra_args": True, "ignore_unknown_options": True}}


def extra(context: typer.Context, known: Collection[str]) -> dict[str, Any]:
    """The `--some-name value` pairs that the verb itself does not know as `{"some_name": value}`; a name alone is true.

    Raises:
        typer.BadParameter: a name that is not in `known` (the nearest is named), or a word without a name.
    """
    import yaml

    found: dict[str, Any] = {}
    words = list(context.args)
    while words:
        word = words.pop(0)
        if not word.startswith("--"):
            raise typer.BadParameter(f"{word!r} is left over; options are written --name value")
        name, equals, value = word[2:].partition("=")
        name = name.replace("-", "_")
        if name not in known:
            from karat.spec import nearest

            own = {str(parameter.name) for parameter in context.command.params}
            hint = nearest(name, own | set(known)).replace("_", "-")
            raise typer.BadParameter(f"no option {word.partition('=')[0]}{hint}")
        if not equals:
            value = words.pop(0) if words and not words[0].startswith("--") else "true"
        found[name] = yaml.safe_load(value)
    return found


def spec_fields() -> set[str]:
    """The spec options that a user may give by name."""
    from karat.spec import Render, RewardSpec

    kept = {"golden", "tokenizer_sha256", "options", "render", "template"}
    return ({*RewardSpec.model_fields, *Render.model_fields}) - kept
