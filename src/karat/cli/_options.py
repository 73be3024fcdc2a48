"""Options that verbs share, and those that only a kind, a spec or transformers' Trainer knows."""

import contextlib
import difflib
import json
import math
import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand

DEVICE = typer.Option("auto", help="auto, cpu, cuda, cuda:1, …")
DTYPE = typer.Option(
    "auto",
    help="auto (float32 on a CPU, the checkpoint's own on a GPU), float32, bfloat16, …; int8, nf4 (bitsandbytes).",
)
DETERMINISTIC = typer.Option(False, "--deterministic", help="The same bits whatever is scored beside; a little slower.")
COMPILED = typer.Option(
    False, "--compiled", help="Compile first: half a minute, for layers that karat has no kernels for."
)
ENGINE = typer.Option(None, help="URL of a vLLM server that runs the backbone: http://HOST:PORT, or …#NAME.")
JSON = typer.Option(False, "--json", help="Print JSON on stdout, for programs.")


class _Open(TyperCommand):
    """A command that keeps options that it does not know, with their values, in `context.args`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Take the unknown ones out first: their values would pass for arguments."""
        known = {flag for parameter in self.params for flag in (*parameter.opts, *parameter.secondary_opts)} | {
            "--help"
        }
        own: list[str] = []
        others: list[str] = []
        words = list(args)
        while words:
            word = words.pop(0)
            if not word.startswith("--") or word.partition("=")[0] in known:
                own.append(word)
                if word in known and not _is_flag(self, word) and words:
                    own.append(words.pop(0))
                continue
            others.append(word)
            if "=" not in word and words and not words[0].startswith("--"):
                others.append(words.pop(0))
        left: list[str] = super().parse_args(ctx, own)
        ctx.args = [*left, *others]
        return list(ctx.args)


def _is_flag(command: TyperCommand, word: str) -> bool:
    return word == "--help" or any(word in p.opts and getattr(p, "is_flag", False) for p in command.params)


# A verb with these settings takes further `--name value` options and sorts them out itself.
OPEN: dict[str, Any] = {"cls": _Open}


# Texts that are taken as they are, but that \n stands for a line end.
_TEXTS = {"template", "step_token", "step_template", "between_steps", "prompt_end", "step_separator"}


def given(context: typer.Context) -> set[str]:
    """The names of the verb's own options that the command line gives."""
    return {name for name in context.params if getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE"}


def extra(
    context: typer.Context, known: Collection[str], hint: Callable[[str], str] = lambda name: ""
) -> dict[str, Any]:
    """The `--some-name value` pairs that the verb itself does not know as `{"some_name": value}`; a name alone is true.

    Args:
        context: of the command.
        known: the names that may be given.
        hint: what is said of a name that is not known, before the nearest are named.

    Raises:
        typer.BadParameter: a name that is not in `known`, or a word without a name.
    """
    found: dict[str, Any] = {}
    words = list(context.args)
    while words:
        word = words.pop(0)
        if not word.startswith("--"):
            raise typer.BadParameter(f"{word!r} is left over; options are written --name value")
        name, equals, value = word[2:].partition("=")
        name = name.replace("-", "_")
        if name not in known:
            own = {str(parameter.name) for parameter in context.command.params}
            told = hint(name) or _alike(name, own | set(known))
            raise typer.BadParameter(f"no option {word.partition('=')[0]}{told}")
        if not equals:
            value = words.pop(0) if words and not words[0].startswith("--") else "true"
        found[name] = value.replace("\\n", "\n") if name in _TEXTS else parsed(value)
    return found


def _alike(name: str, known: Collection[str]) -> str:
    """The options that read most like a name; where none does, where they are listed."""
    close = difflib.get_close_matches(name, sorted(known), n=3, cutoff=0.7)
    words = " or ".join(f"'--{word.replace('_', '-')}'" for word in close)
    return f"; did you mean {words}?" if words else "; --help says which there are"


def seconds(value: float) -> float:
    """An option that is a time to wait, as it is.

    Raises:
        typer.BadParameter: it is none.
    """
    if not 0 < value < math.inf:
        raise typer.BadParameter(f"{value:g} is no time to wait; give seconds above 0")
    return value


def outputs(given: list[str]) -> tuple[Path | None, dict[str, Any]]:
    """The file or folder to write, and the spec's output: two things that have the same name, told by their values.

    >>> outputs(["scores.jsonl", "[0, 1, 1]"])[1]
    {'output': [0, 1, 1]}

    Raises:
        typer.BadParameter: more than one of either.
    """
    found = [parsed(word) for word in given]
    places = [value for value in found if isinstance(value, str)]
    numbers = [value for value in found if not isinstance(value, str)]
    if len(places) > 1 or len(numbers) > 1:
        raise typer.BadParameter("--output is one place to write to, and one number or list of weights for the spec")
    return (Path(places[0]) if places else None), ({"output": numbers[0]} if numbers else {})


def numbers(words: list[str]) -> dict[str, float]:
    """`NAME=NUMBER` words by their names.

    >>> numbers(["safety=0.5"])
    {'safety': 0.5}

    Raises:
        typer.BadParameter: a word is none, or a name comes twice.
    """
    found: dict[str, float] = {}
    for word in words:
        name, _, value = word.rpartition("=")
        number = parsed(value)
        if not name or isinstance(number, bool) or not isinstance(number, int | float) or name in found:
            raise typer.BadParameter(f"{word!r} cannot be read; write NAME=NUMBER, each name once")
        found[name] = float(number)
    return found


def parsed(text: str) -> Any:
    """The value that an option's text stands for: a number, true or false, a JSON list or mapping, else the text.

    >>> parsed("1e-2"), parsed("true"), parsed("no"), parsed("[0.5, 1]")
    (0.01, True, 'no', [0.5, 1])
    """
    for read in (int, float, json.loads):
        with contextlib.suppress(ValueError):
            value = read(text)
            return text if isinstance(value, str) or value is None else value
    return text


def spec_fields() -> set[str]:
    """The spec options that a user may give by name; `spec`, a spec by name; and `family`, one of several that fit."""
    from karat.spec import option_names

    return option_names() | {"spec", "family"}


_OWN = {"batch_size", "method", "eval"}  # karat's settings that messages give a value to
# A word by itself, as train_layout=chat.jsonl is a file.
_SETTING = re.compile(r"""(?<![^\s(])(\w+)=(["']?)([\w-]+(?:\.\d+)?)\2(?![\w/=-]|\.\w)""")


def spelled(message: str) -> str:
    """A message with its settings spelt as on the command line; `output` stays, which is a folder there.

    So does every clause with a slash: it holds a path, such as `/tmp/my layout=chat`.

    >>> spelled("raise max_length=8, or use over_length='cut_prompt'; x=3")
    'raise --max-length 8, or use --over-length cut_prompt; x=3'
    """
    names = (spec_fields() | _OWN) - {"output"}

    def as_option(found: re.Match[str]) -> str:
        return f"--{found[1].replace('_', '-')} {found[3]}" if found[1] in names else found[0]

    clauses = re.split(r"([;:] )", message)
    return "".join(clause if "/" in clause else _SETTING.sub(as_option, clause) for clause in clauses)
