r"""Preference pairs as Anthropic's HH has them: whole dialogues with "Human:" and "Assistant:" turns.

A turn starts with two line ends, the speaker, a colon and one space; everything else is content and kept as it is, so
that writing gives back the same text. The last assistant turn is the response. Turns of one speaker may follow each
other and stay apart.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from karat.formats._columns import text
from karat.formats._pairs import PAIR_OPTIONAL, Side, as_pair, is_transcript, pair, pair_extras
from karat.types import BadInput, Example, Item, Message, Pair

NEEDED = (("chosen",), ("rejected",))
OPTIONAL = PAIR_OPTIONAL
COLUMNS = f'chosen, rejected, both starting with "\\n\\nHuman: "; optional {", ".join(OPTIONAL)}'

_ROLES = {"Human": "user", "Assistant": "assistant"}
_SPEAKERS = {role: speaker for speaker, role in _ROLES.items()}
_TURN = re.compile(r"\n\n(Human|Assistant):(?: |(?=\n\n(?:Human|Assistant):)|\Z)")


def detect(sample: Mapping[str, Any]) -> bool:
    """Both sides are text that starts with a human turn."""
    return is_transcript(sample.get("chosen")) and is_transcript(sample.get("rejected"))


def read(row: Mapping[str, Any], origin: str) -> list[Item]:
    """One pair; the prompts of its sides may differ."""
    return [pair(row, _side(row, "chosen"), _side(row, "rejected"), origin)]


def _side(row: Mapping[str, Any], name: str) -> Side:
    messages = _turns(text(row, name))
    if not messages:
        raise BadInput(f"`{name}` has to start with two line ends and Human: or Assistant:")
    if messages[-1].role != "assistant":
        raise BadInput(f"`{name}` ends with a human turn, but its last turn has to be the assistant's")
    return messages[:-1], messages[-1].content


def _turns(dialogue: str) -> tuple[Message, ...]:
    """The turns of a dialogue; none if it does not start with one."""
    before, *parts = _TURN.split(dialogue)
    if before:
        return ()
    return tuple(Message(_ROLES[who], what) for who, what in zip(parts[::2], parts[1::2], strict=True))


def write(item: Pair) -> dict[str, Any]:
    """The two dialogues."""
    item = as_pair(item, "hh")
    return {"chosen": _dialogue(item.chosen), "rejected": _dialogue(item.rejected), **pair_extras(item)}


def _dialogue(example: Example) -> str:
    messages = (*example.prompt, Message("assistant", example.response))
    dialogue = "".join(_turn(messages))
    if _turns(dialogue) != messages:
        raise BadInput("a message holds a line that reads as the start of a turn; write the pair as preference")
    return dialogue


def _turn(messages: Iterable[Message]) -> Iterable[str]:
    for message in messages:
        if message.role not in _SPEAKERS:
            raise BadInput(f"the format hh has no role {message.role!r}; write the pair as preference")
        yield f"\n\n{_SPEAKERS[message.role]}: {message.content}"
