"""Values of a row by the name of their column, each refused in one sentence if it is missing or of the wrong type."""

import difflib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from karat.formats._reading import Cell
from karat.types import BadInput, Example, Message, as_messages

QUESTIONS = ("prompt", "problem", "question")  # what the column of a problem may be called
_OTHERS = ("content", "contexts", "subject")  # as near as a slip to `context` or `subset`, but other columns
_UNSUPPORTED = ("tools", "chat_template_kwargs")  # columns of TRL that change how a prompt is rendered


class Missing(BadInput):
    """A column, or each of several of which one is needed, has no value."""

    def __init__(self, *names: str) -> None:
        super().__init__(f"{_either(names)} is missing")
        self.names = names


def is_nan(value: Any) -> bool:
    """Whether a number, or a cell of a table, says NaN."""
    return isinstance(value, float | Cell) and str(value).strip().lower() == "nan"


def unsupported(row: Mapping[str, Any]) -> None:
    """Refuses a row with a column that would change its meaning and that karat does not read yet."""
    for name in _UNSUPPORTED:
        if not _is_empty(row.get(name)):
            raise BadInput(f"`{name}` is not supported yet; remove the column or this row")


def _is_empty(value: Any) -> bool:
    value = _from_cell(value)
    return not value or (isinstance(value, Mapping) and all(_is_empty(v) for v in value.values()))


def _from_cell(value: Any) -> Any:
    """What the JSON text of a cell says; any other value as it is."""
    if not isinstance(value, Cell):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def renames(columns: Iterable[str], known: Iterable[str]) -> str:
    """`promt to prompt, chosn to chosen`: columns that are not known beside the nearest that is and is not there."""
    there, words = list(columns), set(known)
    near = {
        c: difflib.get_close_matches(c.lower(), sorted(words - set(there)), 1, 0.75)
        for c in there
        if c not in words and c not in _OTHERS
    }
    return ", ".join(f"{column} to {found[0]}" for column, found in near.items() if found)


def slip(columns: Iterable[str], words: Iterable[str], loose: bool = False) -> tuple[str, str] | None:
    """The first column that is surely one of `words` misspelt, and that word; a word that is there is not missed.

    It starts with the same letter, and differs by capitals, by a letter too many or too few, or by two neighbours
    turned round. `loose` also takes another letter (pronpt) and an s at the end (prompts). No longer name (prompt_id)
    is a slip.
    """
    there = list(columns)
    missing = sorted(set(words) - set(there))
    return next(((c, w) for c in there if c not in _OTHERS for w in missing if _slipped(c.lower(), w, loose)), None)


def _slipped(column: str, word: str, loose: bool) -> bool:
    if column[:1] != word[0] or column + "s" == word:  # rank for ranks
        return False
    if column.startswith(word):
        return column == word or (loose and column == word + "s")
    if len(column) != len(word):
        return column in _without_a_letter(word) or word in _without_a_letter(column)
    off = [i for i, (a, b) in enumerate(zip(column, word, strict=True)) if a != b]
    turned = sorted(column) == sorted(word) and off[-1] - off[0] == 1
    return turned or (loose and len(off) == 1)


def _without_a_letter(word: str) -> set[str]:
    return {word[:i] + word[i + 1 :] for i in range(len(word))}


def present(row: Mapping[str, Any], name: str) -> Any:
    """The value of a column; raises BadInput if it is missing."""
    value = row.get(name)
    if value is None:
        raise Missing(name)
    return value


def only(row: Mapping[str, Any], names: Iterable[str]) -> str:
    """The one of several columns that has a value; raises BadInput if none or several do."""
    found = [name for name in names if row.get(name) is not None]
    if len(found) > 1:
        raise BadInput(f"`{found[0]}` and `{found[1]}` both have a value; keep the one that is meant")
    if not found:
        given = [name for name in names if name in row]
        raise Missing(*(given or names))
    return found[0]


def _either(names: Iterable[str]) -> str:
    return " or ".join(f"`{name}`" for name in names)


def text(row: Mapping[str, Any], name: str) -> str:
    """A column's text; it may be empty."""
    return as_text(present(row, name), name)


def as_text(value: Any, name: str) -> str:
    """The value as plain text; raises BadInput if it is none or cannot be encoded."""
    if not isinstance(value, str):
        raise BadInput(f"`{name}` has to be text, but it is {_shown(value)}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise BadInput(f"`{name}` holds half of a surrogate pair, which is no character; remove it") from None
    return str(value)


def number(row: Mapping[str, Any], name: str, default: float | None = None) -> float:
    """A column's finite number, true and false being 1 and 0; `default`, unless None, if it is missing."""
    value = row.get(name)
    if _is_missing_number(value) and default is not None:
        return default
    if _is_missing_number(value):
        raise Missing(name)
    return as_number(value, name)


def optional_number(row: Mapping[str, Any], name: str) -> float | None:
    """A column's finite number, None if it is missing or NaN."""
    value = row.get(name)
    return None if _is_missing_number(value) or is_nan(value) else as_number(value, name)


def _is_missing_number(value: Any) -> bool:
    return value is None or (isinstance(value, Cell) and value.strip().lower() in ("", "nan", "null"))


def as_number(value: Any, name: str) -> float:
    """The value as a finite float; raises BadInput if it is none."""
    if isinstance(value, Cell):
        value = _cell_number(value)
    if not isinstance(value, int | float):
        raise BadInput(f"`{name}` has to be a number, but it is {_shown(value)}")
    if not abs(value) <= 1.7976931348623157e308:
        raise BadInput(f"`{name}` has to be a finite number, but it is {_shown(value)}")
    return float(value)


def _cell_number(cell: Cell) -> Any:
    word = cell.strip().lower()
    if word in ("true", "false"):
        return word == "true"
    try:
        return float(word)
    except ValueError:
        return cell


def probability(row: Mapping[str, Any], name: str) -> float:
    """A column's number from 0 to 1, or its boolean."""
    value = number(row, name)
    if not 0.0 <= value <= 1.0:
        raise BadInput(f"`{name}` is {value:g}, but it has to be true, false or a number from 0 to 1")
    return value


def values(row: Mapping[str, Any], name: str, empty: bool = False) -> list[Any]:
    """A column's list, which may not be empty unless `empty`."""
    value = json_value(row, name)
    if not isinstance(value, list):
        raise BadInput(f"`{name}` has to be a list, but it is {_shown(value)}")
    if not value and not empty:
        raise BadInput(f"`{name}` is an empty list")
    return value


def steps(row: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """A column's list of steps, at least one."""
    return tuple(as_step(value, f"step {place} of `{name}`") for place, value in enumerate(values(row, name), 1))


def as_step(value: Any, where: str) -> str:
    """The value as the text of a step, which may not be blank; `where` is what the error message calls it."""
    if not isinstance(value, str):
        raise BadInput(f"{where} has to be text, but it is {_shown(value)}")
    if not value.strip():
        raise BadInput(f"{where} is empty; remove it, and its label where it has one")
    return as_text(value, where.replace("`", ""))


def json_value(row: Mapping[str, Any], name: str) -> Any:
    """The value of a column; that of its JSON text in a table."""
    return _from_cell(present(row, name))


def mapping(value: Any) -> Mapping[str, Any] | None:
    """The value as a mapping, None if it is none."""
    value = _from_cell(value)
    return value if isinstance(value, Mapping) else None


def context(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """The mapping in `context`, {} without one."""
    value = row.get("context")
    found = {} if value is None else mapping(value)
    if found is None:
        raise BadInput(f"`context` has to be a mapping, but it is {_shown(value)}; rename the column if it is another")
    return found


def prompt(row: Mapping[str, Any]) -> tuple[Message, ...]:
    """The messages in `prompt`; a text is one user message, an empty list is no prompt."""
    found = text_or_messages(row, "prompt")
    return as_messages(found) if isinstance(found, str) else found


def asked(row: Mapping[str, Any]) -> tuple[Message, ...]:
    """The messages of a problem, by whichever of its names the column has; `prompt` goes before the others."""
    name = "prompt" if row.get("prompt") is not None else only(row, QUESTIONS)
    found = text_or_messages(row, name)
    return as_messages(found) if isinstance(found, str) else found


def text_or_messages(row: Mapping[str, Any], name: str) -> str | tuple[Message, ...]:
    """A column's text, or its messages."""
    value = present(row, name)
    if isinstance(value, Cell) and _is_conversation(_from_cell(value)):
        value = _from_cell(value)
    return as_text(value, name) if isinstance(value, str) else _messages(value, name)


def _is_conversation(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(m, dict) and "role" in m for m in value)


def _messages(value: Any, name: str) -> tuple[Message, ...]:
    if not isinstance(value, list):
        raise BadInput(f"`{name}` has to be text or a list of messages, but it is {_shown(value)}")
    if any(isinstance(m, Mapping) and m.get("tool_calls") for m in value):
        raise BadInput(f"`{name}` holds `tool_calls`, which are not supported yet; remove this row")
    found = as_messages(value)
    for message in found:
        as_text(message.content, name)
    return found


def conversation(row: Mapping[str, Any], name: str) -> tuple[tuple[Message, ...], str]:
    """The messages of a column as (prompt, response): the last one has to be the assistant's."""
    found = _messages(_from_cell(present(row, name)), name)
    return cut(found, name)


def cut(messages: tuple[Message, ...], name: str) -> tuple[tuple[Message, ...], str]:
    """Messages as (prompt, response)."""
    if not messages:
        raise BadInput(f"`{name}` is an empty list")
    if messages[-1].role != "assistant":
        raise BadInput(f"the last message of `{name}` has to be the assistant's, but its role is {messages[-1].role!r}")
    return messages[:-1], messages[-1].content


def question(one: Example, format: str, other: str) -> str:
    """The text of a prompt that is one user message; raises BadInput that names the `other` format if it is not."""
    if len(one.prompt) != 1 or one.prompt[0] != Message("user", one.prompt[0].content):
        raise BadInput(f"the format {format} holds one user message as its prompt; use {other}")
    return one.prompt[0].content


def example(row: Mapping[str, Any]) -> Example:
    """The example in `prompt` and `response`, else in `prompt` and `steps`, else in `messages`, with its `context`."""
    if "steps" in row and row.get("response") is None and row.get("messages") is None:
        return Example.of_steps(prompt(row), steps(row, "steps"), context(row))
    if "messages" in row and any(row.get(name) is None for name in ("prompt", "response")):
        return Example(*conversation(row, "messages"), context(row))
    parts = row.get("steps")
    given = isinstance(parts, list) and all(isinstance(part, str) for part in parts)
    return Example(prompt(row), text(row, "response"), context(row), tuple(parts) if given and parts else ())


def has_example(columns: Iterable[str]) -> bool:
    """Whether these columns can hold an example."""
    names = set(columns)
    return "messages" in names or ("prompt" in names and not names.isdisjoint(("response", "steps")))


def as_rows(messages: Iterable[Message]) -> list[dict[str, str]]:
    """Messages as JSON's objects."""
    return [{"role": m.role, "content": m.content} for m in messages]


def whole(one: Example) -> list[dict[str, str]]:
    """Prompt and response as JSON's objects."""
    return as_rows((*one.prompt, Message("assistant", one.response)))


def answer(one: Example) -> dict[str, Any]:
    """The columns that `example` reads back: the whole conversation, or the prompt and the steps."""
    if not one.steps:
        return {"messages": whole(one)}
    if one != Example.of_steps(one.prompt, one.steps, one.context):
        raise BadInput("the text of an answer is not that of its steps, one paragraph each; leave out one of the two")
    return {"prompt": as_rows(one.prompt), "steps": list(one.steps)}


def stepless(one: Example, format: str) -> Example:
    """The example, if it is not in steps; raises BadInput otherwise, as the format would lose them."""
    if one.steps:
        raise BadInput(f"the format {format} has no place for the steps of an answer; use outcome or stepwise")
    return one


def extras(one: Example, **numbers: tuple[float, float]) -> dict[str, Any]:
    """The optional columns that are needed: `context` if there is one, and each number that is not its default.

    Args:
        one: whose context is written.
        numbers: name=(value, default).
    """
    row: dict[str, Any] = {name: float(value) for name, (value, default) in numbers.items() if value != default}
    if one.context:
        row["context"] = _plain(one.context)
    return row


def _plain(found: Mapping[str, Any]) -> dict[str, Any]:
    plain = dict(found)
    try:
        if json.loads(json.dumps(plain, allow_nan=False)) == plain:
            return plain
    except (ValueError, TypeError, RecursionError):
        pass
    raise BadInput(f"the context {_shown(plain)} would not read back the same; use only what JSON has")


def _shown(value: Any) -> str:
    return f"{value!r:.60}"
