"""Which replica a request goes to: the same for the same prompt, as long as that one is not far fuller than the others.

Rendezvous hashing (Thaler and Ravishankar 1998) with bounded loads (Mirrokni, Thorup and Zadimoghaddam 2018). It knows
no cluster, and of a body only where dialects put what comes before an answer.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pydantic_core

FULLER = 2.0  # times the mean of the replicas, beyond which a request goes to the next one
FREE = 8  # requests that a replica may have whatever the others have
LARGE = 1 << 20  # bytes beyond which a body is not read for its prompt: it has many, or takes long to read twice
TEXT = 512  # characters of a finished text, whose prompt nobody can tell from the answer

# Where a prompt may stand, first the places that hold it alone.
_PLACES = (
    *("prompt", "prompts", "query", "queries", "text_1", "data_1", "messages"),
    *("items", "text", "input", "inputs", "input_ids"),
)
_TEXTS = {"messages", "text", "input", "inputs", "input_ids"}


def key_of(body: bytes) -> bytes:
    """What requests with the same prompt have in common; empty where none is found, so that any replica will do.

    >>> key_of(b'{"prompt": "7*8?", "candidates": ["56"]}') == key_of(b'{"candidates": ["54"], "prompt": "7*8?"}')
    True
    """
    if len(body) > LARGE:
        return hashlib.sha256(body[:TEXT]).digest()
    try:
        given = pydantic_core.from_json(body)
    except ValueError:
        return b""  # who answers it will say what is wrong
    found = _prompt(given) if isinstance(given, Mapping) else None
    return hashlib.sha256(json.dumps(found).encode()).digest() if found else b""


def _prompt(body: Any) -> Any:
    """The first prompt of a body, or of an item of it; what is none is its own."""
    if not isinstance(body, Mapping):
        return body
    place = next((name for name in _PLACES if body.get(name)), "")
    value: Any = body.get(place)
    if _is_conversation(value):
        return value[:-1] if len(value) > 1 and value[-1].get("role") == "assistant" else value
    first = _prompt(value[0]) if isinstance(value, list) and place != "input_ids" else value
    return first[:TEXT] if place in _TEXTS and isinstance(first, str | list) else first


def _is_conversation(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(turn, Mapping) and "role" in turn for turn in value)


def order(key: bytes, replicas: Iterable[str]) -> list[str]:
    """Replicas as a key prefers them: when one comes or goes, only its own keys move.

    >>> three = order(b"a prompt", ["x", "y", "z"])
    >>> order(b"a prompt", [name for name in "xyz" if name != three[0]]) == three[1:]
    True
    """
    return sorted(replicas, key=lambda name: hashlib.sha256(key + name.encode()).digest())


def choose(key: bytes, fill: Mapping[str, float], tried: Sequence[str] = ()) -> list[str]:
    """Replicas in the order in which a request should try them; `fill` is how many requests each has.

    Without a key the emptiest comes first; replicas that were `tried` come last.
    """
    room = max(FREE, FULLER * sum(fill.values()) / max(len(fill), 1))
    preferred = order(key, fill)
    if not key:
        preferred.sort(key=lambda name: fill[name])
    return sorted(preferred, key=lambda name: (name in tried, bool(key) and fill[name] >= room))
