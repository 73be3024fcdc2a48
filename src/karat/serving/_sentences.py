"""What is wrong with a body, in sentences that say what to send: pydantic's own tell of Python's types."""

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, TypeAlias

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

Path: TypeAlias = tuple[int | str, ...]

TOLD = 3  # faults of a body that its sender is told of

_TYPES = {
    "string_type": "a text",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "list_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
    "none_required": "null",
}
_GIVEN = {
    str: "a text",
    bool: "true or false",
    int: "a number",
    float: "a decimal number",
    list: "a list",
    dict: "an object",
}
_VALUES = {
    "literal_error": "give {expected}",
    "greater_than_equal": "give a number from {ge} up",
    "greater_than": "give a number above {gt}",
    "less_than_equal": "give a number up to {le}",
    "less_than": "give a number below {lt}",
    "finite_number": "give a finite number",
    "too_long": "there are more than {max_length}; send fewer at a time",
    "too_short": "give at least {min_length}",
    "string_too_long": "it is longer than {max_length} characters; give a shorter text",
    "string_too_short": "it is empty; give a text",
    "missing": "it is missing; give it",
    "extra_forbidden": "there is no such key here; {mend}",
    "value_error": "{error}",
}


def problems(
    error: ValidationError, body: Mapping[str, Any], keys: Mapping[str, str] | None = None
) -> list[tuple[str, str]]:
    """The path of each place of a body that is wrong, such as `items.3.prompt`, and what to send there.

    Of a place that may be of several types, what fits best is told: the faults within it, or else all that it may be.
    A key that is none of `keys` is told with the nearest, but only as many as are told: a body may have thousands.
    """
    at: dict[Path, list[ErrorDetails]] = {}
    strangers = 0
    for own in error.errors(include_url=False):
        if own["type"] == "extra_forbidden":
            strangers += 1
            own["ctx"] = {"mend": _mend(own["loc"], (keys or {}) if strangers <= TOLD else {})}
        at.setdefault(_place(own, body), []).append(own)
    above = {path[:end] for path in at for end in range(len(path))}
    return [
        (".".join(map(str, path)), _sentence(own))
        for path, own in at.items()
        if path not in above or any(one["type"] not in _TYPES for one in own)
    ]


@cache
def keys_of(shape: type[BaseModel]) -> Mapping[str, str]:
    """All keys of a body and of what may be in it, with where each belongs: `options.activation`."""
    schema = shape.model_json_schema()
    found = {name: name for name in schema.get("properties", {})}
    for name, own in schema.get("properties", {}).items():
        for kind in re.findall(r'#/\$defs/(\w+)"', json.dumps(own)):
            for inner in schema["$defs"][kind].get("properties", {}):
                found.setdefault(inner, f"{name}.{inner}")
    return found


def _mend(path: Sequence[int | str], keys: Mapping[str, str]) -> str:
    key = str(path[-1])
    for close in difflib.get_close_matches(key[:100], keys, 1, 0.75):
        near = keys[close] if len(path) == 1 else close
        if near != key:
            return f"did you mean {near!r}?"
    return "check how it is spelled, or leave it out"


def _place(error: ErrorDetails, body: Any) -> Path:
    """Where a fault is in the body: below its own keys, pydantic puts the names of types between others."""
    first, *parts = error["loc"] or ("",)
    found, within = [first], body.get(first)
    for number, part in enumerate(parts, 1):
        if isinstance(part, int) if isinstance(within, list) else isinstance(within, dict) and part in within:
            within = within[part]
            found.append(part)
        elif error["type"] == "missing" and number == len(parts):
            found.append(part)
    return tuple(found) if error["loc"] else ()


def _sentence(errors: Sequence[ErrorDetails]) -> str:
    for own in errors:
        if own["type"] not in _TYPES:
            return _VALUES[own["type"]].format(**own.get("ctx", {})) if own["type"] in _VALUES else own["msg"]
    wanted = dict.fromkeys(_TYPES[own["type"]] for own in errors)
    given = errors[0]["input"]
    return f"give {' or '.join(wanted)}, not {'null' if given is None else _GIVEN[type(given)]}"
