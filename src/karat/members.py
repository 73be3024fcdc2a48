"""The members of a room: files of its folder that are neither its contract (`base.py`) nor shared help (`_x.py`).

A member's file name is the word that users type, and the first line of its docstring is its description.
"""

import ast
import pkgutil
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from karat.types import BadInput, nearest


@cache
def describe(room: str) -> dict[str, str]:
    """The members of a room such as "rewards" and their one-line descriptions, read without importing them."""
    folder = Path(__file__).parent / room
    names = sorted(m.name for m in pkgutil.iter_modules([str(folder)]) if m.name != "base" and m.name[0] != "_")
    return {name: _first_line(folder / f"{name}.py") for name in names}


def load(room: str, name: str, what: str) -> Any:
    """The module of a member; `what` is the word for such members, for the message.

    Raises:
        BadInput: there is none of that name; names the nearest.
    """
    known = describe(room)
    if name not in known:
        raise BadInput(f"no {what} {name!r}{nearest(name, known)}")
    return import_module(f"karat.{room}.{name}")


def _first_line(path: Path) -> str:
    return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n")[0]
