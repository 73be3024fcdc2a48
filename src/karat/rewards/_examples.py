"""What users hand over, as examples; what is none is said in one sentence."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from dataclasses import replace
from typing import Any

from karat.formats.base import unsupported
from karat.types import BadInput, Example, Message, Prompt, Result, Reward, Unscored, as_messages


def as_texts(responses: Any) -> list[str]:
    """Responses as a list.

    Raises:
        BadInput: they are none.
    """
    if isinstance(responses, str | Mapping | Set) or not isinstance(responses, Iterable):
        raise BadInput("responses has to be a list of texts, which has an order; put a single answer into a list")
    found = list(responses)
    for number, response in enumerate(found, 1):
        if not isinstance(response, str):
            raise BadInput(f"responses has to be a list of texts, but number {number} is {response!r:.80}")
    return found


def as_two(row: Any) -> Example | Unscored:
    """An example with two answers, or why there is none."""
    read = as_one(row)
    if isinstance(read, Example) and read.other is None:
        return Unscored("there is no other answer to compare with; give one as `other`")
    return read


def turned(example: Example) -> Example:
    """With the two answers in the other order."""
    return replace(example, response=example.other or "", other=example.response)


def other_alone(example: Example) -> Example:
    """The other answer alone."""
    return replace(turned(example), other=None, steps=())


def as_one(row: Any) -> Example | Unscored:
    """An example, or why there is none."""
    try:
        return as_example(row)
    except BadInput as error:
        return Unscored(str(error))


def as_example(row: Any) -> Example:
    """An example from what users hand over: an `Example`, or a mapping with a prompt and response, or messages.

    Raises:
        BadInput: it is none of these.
    """
    if isinstance(row, Example):
        if not (isinstance(row.response, str) and all(isinstance(m, Message) for m in row.prompt)):
            raise BadInput(
                "an Example needs a tuple of Messages and a text; a mapping with prompt and response is easier"
            )
        return row
    if isinstance(row, Mapping):
        unsupported(row)
    if isinstance(row, Mapping) and isinstance(row.get("response"), str) and _is_conversation(row.get("prompt")):
        steps = tuple(row["steps"]) if _is_steps(row.get("steps")) else ()
        other = row["other"] if isinstance(row.get("other"), str) else None
        return Example(as_messages(row["prompt"]), row["response"], row.get("context") or {}, steps, other)
    if isinstance(row, Mapping) and row.get("messages") and _is_conversation(row["messages"]):
        *prompt, last = as_messages(row["messages"])
        return _answered(tuple(prompt), last, row.get("context") or {})
    if isinstance(row, Mapping) and _is_steps(row.get("steps")) and _is_conversation(row.get("prompt")):
        return Example.of_steps(row["prompt"], row["steps"], row.get("context"))
    raise BadInput(f"an example needs `prompt` and `response` or `steps`, or `messages`, but got {row!r:.80}")


def _is_steps(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(step, str) for step in value)


def _is_conversation(value: Any) -> bool:
    return isinstance(value, str | list | tuple)


def _answered(prompt: tuple[Message, ...], last: Message, context: Mapping[str, Any]) -> Example:
    if last.role != "assistant":
        raise BadInput(f"the last message is scored and has to be the assistant's, but its role is {last.role!r}")
    return Example(prompt, last.content, context)


def preferred(compare_many: Callable[..., Iterator[Result]], prompt: Prompt, a: str, b: str) -> float:
    """Probability that `a` is preferred to `b`, by a model's `compare_many`.

    Raises:
        BadInput: they are no texts.
        Refused: they cannot be compared.
    """
    if not (isinstance(a, str) and isinstance(b, str)):
        raise BadInput(f"compare takes a prompt and two texts, but got {a!r:.40} and {b!r:.40}")
    (found,) = compare_many([Example(as_messages(prompt), a, other=b)], strict=True)
    assert isinstance(found, Reward)  # strict has raised otherwise
    return found.value
