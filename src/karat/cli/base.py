"""The `karat` command: verbs are the files of this folder; errors are one sentence and exit code 1, bad usage 2.

Importing a verb is light: what it calls is imported when it runs.
"""

import logging
import os
import sys

import typer

from karat import members
from karat.cli._options import spelled
from karat.types import KaratError


def app() -> typer.Typer:
    """The command with all its verbs."""
    made = typer.Typer(
        name="karat",
        help="One home for reward models: train, score and evaluate by one description of how text becomes a reward.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
    for name, line in members.describe("cli").items():
        verb = members.load("cli", name, "verb")
        made.command(name, short_help=line.partition(": ")[2], **getattr(verb, "SETTINGS", {}))(verb.command)
    made.callback()(_callback)
    return made


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        print(f"karat {version('karat')}")
        raise typer.Exit


def _callback(
    version: bool = typer.Option(
        False, "--version", help="Show the version and exit.", callback=_version, is_eager=True
    ),
) -> None:
    """One home for reward models: train, score and evaluate by one description of how text becomes a reward."""


def main() -> None:
    """Run the command; the process's exit code is 0 (done), 1 (failed) or 2 (bad usage)."""
    # Progress and warnings of libraries would drown karat's own words; errors still come through.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    try:
        app()()
    except KaratError as error:
        fail(spelled(str(error)))
    except KeyboardInterrupt:
        fail("stopped")
    except MemoryError:
        fail("out of memory; use a smaller model, batch_size or max_length")
    except BrokenPipeError:
        # The reader of our output has gone, as `karat score … | head` does.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:  # the last resort: whatever comes is told in one sentence
        if os.environ.get("KARAT_TRACEBACK"):
            raise
        line = (str(error).strip() or "no message").splitlines()[0]
        fail(
            f"{type(error).__name__}: {line}; this is a fault of karat: KARAT_TRACEBACK=1 shows where, please report it"
        )


def fail(message: str, code: int = 1) -> None:
    """Say why on stderr and exit."""
    print(f"karat: {message}", file=sys.stderr)
    sys.exit(code)
