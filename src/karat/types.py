"""What travels between the rooms: messages, examples, labels and results. Standard library only.

Nothing here knows about tokens, tensors or files. Units and ranges of every number are stated where it is declared.
"""

import difflib
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias


class KaratError(Exception):
    """Base of karat's errors. Its text is one sentence with the mend."""


class Refused(KaratError, ValueError):
    """Something cannot be decided safely; the message names the options that would settle it."""


class BadInput(KaratError, ValueError):
    """Data or an option that cannot be used; the message says where it is and what was expected."""


class CheckpointError(KaratError):
    """A checkpoint cannot be written or does not hold what its spec says."""


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` where a known word is close, else the list of them.

    >>> nearest("poling", ["pooling", "head"])
    "; did you mean 'pooling'?"
    """
    words = sorted(known)
    close = difflib.get_close_matches(name, words, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known are {', '.join(words)}"


_DETAIL = re.compile(r"'[^']*'|\"[^\"]*\"|[-+\d][\d.e+-]*")  # quotations and numbers


def grouped(reasons: Iterable[str]) -> dict[str, list[int]]:
    """The places of reasons that say the same but for numbers and quotations, most first; what differs is `…`.

    >>> grouped(["label 7 is not in 0 to 1", "no text", "label 8 is not in 0 to 1"])
    {'label … is not in 0 to 1': [0, 2], 'no text': [1]}
    """
    places: dict[str, list[int]] = {}
    texts = list(reasons)
    for place, text in enumerate(texts):
        places.setdefault(_DETAIL.sub("…", text), []).append(place)
    ordered = sorted(places.values(), key=len, reverse=True)
    return {_shared([texts[place] for place in group]): group for group in ordered}


def _shared(texts: list[str]) -> str:
    """Texts that differ in details alone, as one."""
    details = list(zip(*map(_DETAIL.findall, texts), strict=True))
    same = iter(found[0] if len(set(found)) == 1 else "…" for found in details)
    return _DETAIL.sub(lambda _: next(same), texts[0])


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: str  # "system", "user", "assistant", or any role the chat template knows
    content: str


Prompt: TypeAlias = str | Iterable[Message | Mapping[str, Any]]


def as_messages(prompt: Prompt) -> tuple[Message, ...]:
    """A prompt as messages: a string is one user message, mappings need `role` and `content`.

    >>> as_messages("What is 7*8?")
    (Message(role='user', content='What is 7*8?'),)

    Raises:
        BadInput: a message is no mapping with string `role` and `content`.
    """
    if isinstance(prompt, str):
        return (Message("user", prompt),)
    if not isinstance(prompt, Iterable):
        raise BadInput(f"a prompt is a text or a list of messages, but got {prompt!r:.80}")
    return tuple(m if isinstance(m, Message) else _message(m) for m in prompt)


def _message(raw: Any) -> Message:
    role, content = (raw.get("role"), raw.get("content")) if isinstance(raw, Mapping) else (None, None)
    if not (isinstance(role, str) and isinstance(content, str)):
        raise BadInput(f"a message needs a text `role` and a text `content`, but got {raw!r:.80}")
    return Message(role, content)


@dataclass(frozen=True, slots=True)
class Example:
    """One answer to one prompt: what a reward is a reward of."""

    prompt: tuple[Message, ...]
    response: str  # the assistant's last message
    context: Mapping[str, Any] = field(default_factory=dict, hash=False)
    steps: tuple[str, ...] = ()  # the answer in its parts, where it was given in parts
    other: str | None = None  # the answer that it is compared with, for models that read two

    @classmethod
    def of_steps(cls, prompt: Prompt, steps: Iterable[str], context: Mapping[str, Any] | None = None) -> "Example":
        """An answer in steps; its text is theirs, one paragraph each."""
        parts = tuple(steps)
        return cls(as_messages(prompt), "\n\n".join(parts), context or {}, parts)


@dataclass(frozen=True, slots=True)
class Pair:
    """Two answers of which one was preferred."""

    chosen: Example
    rejected: Example
    preference: float = 1.0  # probability that `chosen` is the better one, in [0, 1]; 0.5 is a tie
    margin: float = 0.0  # logits by which chosen should lead, unbounded
    weight: float = 1.0  # how much the row counts, >= 0
    origin: str = field(default="", compare=False)  # "file:line"

    def __post_init__(self) -> None:
        _in_range(self.origin, "preference", self.preference, 0.0, 1.0)
        _in_range(self.origin, "margin", self.margin, -math.inf, math.inf)
        _in_range(self.origin, "weight", self.weight, 0.0, math.inf)


@dataclass(frozen=True, slots=True)
class Labelled:
    """One answer with an outcome: a probability of being right, or a rating."""

    example: Example
    label: float  # finite; in [0, 1] where it is a probability
    weight: float = 1.0  # how much the row counts, >= 0
    origin: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        _in_range(self.origin, "label", self.label, -math.inf, math.inf)
        _in_range(self.origin, "weight", self.weight, 0.0, math.inf)


@dataclass(frozen=True, slots=True)
class Ranking:
    """K answers to one prompt, ordered by someone."""

    candidates: tuple[Example, ...]
    ranks: tuple[int, ...]  # 1 is best; equal ranks are ties
    weight: float = 1.0  # how much the row counts, >= 0
    origin: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        if len(self.candidates) != len(self.ranks) or len(self.ranks) < 2:
            raise BadInput(
                f"{self.origin or 'a ranking'}: {len(self.candidates)} answers and {len(self.ranks)} ranks;"
                " a ranking needs one rank for each of at least two answers"
            )
        _in_range(self.origin, "weight", self.weight, 0.0, math.inf)


@dataclass(frozen=True, slots=True)
class Stepped:
    """Answers to one prompt whose steps are labelled. Several are the branches of a tree, that share first steps."""

    branches: tuple[Example, ...]  # each in steps
    # By branch and step: a probability of being right in [0, 1], or a class of -1 (wrong), 0 (neutral), 1 (right).
    # None says nothing; in a tree, a step that branches share is labelled in the first of them alone.
    labels: tuple[tuple[float | None, ...], ...]
    weight: float = 1.0  # how much each of its labels counts, >= 0
    origin: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        where = self.origin or "an answer in steps"
        if not self.branches or len(self.branches) != len(self.labels):
            raise BadInput(f"{where}: {len(self.branches)} answers and {len(self.labels)} lists of labels")
        for branch, labels in zip(self.branches, self.labels, strict=True):
            if len(branch.steps) != len(labels):
                raise BadInput(
                    f"{where}: {len(branch.steps)} steps and {len(labels)} labels; give each step one, or null for none"
                )
            for label in labels:
                if label is not None:
                    _in_range(self.origin, "label", label, -1.0, 1.0)
        _in_range(self.origin, "weight", self.weight, 0.0, math.inf)

    def first(self, counts: Iterable[int]) -> "Stepped":
        """The same with so many first steps of each branch."""
        kept = list(zip(self.branches, self.labels, counts, strict=True))
        branches = tuple(_cut(branch, count) for branch, _, count in kept)
        return replace(self, branches=branches, labels=tuple(labels[:count] for _, labels, count in kept))


@dataclass(frozen=True, slots=True)
class Attributed:
    """One answer with ratings of some of its attributes."""

    example: Example
    attributes: Mapping[str, float | None] = field(hash=False)  # by name, each finite; None is not rated
    weight: float = 1.0  # how much the row counts, >= 0
    origin: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        if all(rating is None for rating in self.attributes.values()):
            raise BadInput(f"{self.origin or 'an answer'}: no attribute is rated; give at least one rating")
        for name, rating in self.attributes.items():
            if rating is not None:
                _in_range(self.origin, name, rating, -math.inf, math.inf)
        _in_range(self.origin, "weight", self.weight, 0.0, math.inf)


Item: TypeAlias = Pair | Labelled | Ranking | Stepped | Attributed


def answers_of(item: Item) -> tuple[Example, ...]:
    """The answers of an item: chosen and rejected, the one, the candidates, or the branches."""
    if isinstance(item, Pair):
        return (item.chosen, item.rejected)
    if isinstance(item, Stepped):
        return item.branches
    return item.candidates if isinstance(item, Ranking) else (item.example,)


def _cut(branch: Example, count: int) -> Example:
    """An answer's first steps, without what its context says of later ones."""
    first_error = branch.context.get("first_error")
    lost = isinstance(first_error, int) and first_error >= count
    context = {name: value for name, value in branch.context.items() if not (lost and name == "first_error")}
    return replace(branch, steps=branch.steps[:count], context=context)


@dataclass(frozen=True, slots=True)
class Span:
    """A read that is the mean over the positions from `start` up to, not including, `stop`."""

    start: int
    stop: int


Read: TypeAlias = tuple[int, ...] | Span


@dataclass(frozen=True, slots=True)
class Sequence:
    """Token ids and where hidden states are read, by name. All that an engine needs to know."""

    ids: tuple[int, ...]
    reads: Mapping[str, Read] = field(hash=False)
    type_ids: tuple[int, ...] | None = None  # of each token: which of two texts it is of, where the model is told

    @classmethod
    def from_padded(cls, ids: Iterable[int], mask: Iterable[int | bool]) -> "Sequence":
        """The real tokens of a padded row, wherever its pads lie, read at the last one.

        The mask decides; the value of a pad id never does.
        """
        kept = tuple(i for i, real in zip(ids, mask, strict=True) if real)
        return cls(kept, {"last": (len(kept) - 1,)})


def _in_range(origin: str, name: str, value: float, low: float, high: float) -> None:
    if not (math.isfinite(value) and low <= value <= high):
        where = f"{origin}: " if origin else ""
        wanted = "a finite number" if math.isinf(low) else f"a number from {low:g} to {high:g}"
        raise BadInput(f"{where}{name} is {value}, but it has to be {wanted}")


@dataclass(frozen=True, slots=True)
class Reward:
    """A scored answer.

    `value` is raw float32 unless the model's spec names an activation; higher is better. Values of one model for
    one prompt may be compared; across prompts only if the model was centred, and across models never.
    """

    value: float
    steps: tuple[float, ...] | None = None  # one reward per step, for process reward models
    objectives: Mapping[str, float] | None = None  # one reward per attribute, for multi-objective models
    gate: Mapping[str, float] | None = None  # the weight of each objective; weighted, they sum to the value
    orders: tuple[float, float] | None = None  # of a comparison: the value with this answer first, and second
    tokens: int = 0  # tokens of the rendered sequence
    cached_tokens: int = field(default=0, compare=False)  # of those, how many were not computed for this answer
    truncated: bool = False  # part of the prompt was cut
    flags: tuple[str, ...] = ()  # "empty_answer", "empty_prompt", "no_eos", "over_length_cut", "below_" an objective

    @property
    def contributions(self) -> dict[str, float]:
        """What each objective adds to the value; none where there are no weights."""
        weights, objectives = self.gate or {}, self.objectives or {}
        return {name: weight * objectives[name] for name, weight in weights.items()}


@dataclass(frozen=True, slots=True)
class Unscored:
    """An answer that has no reward, and why. Never 0.0, never NaN."""

    reason: str
    over_length: bool = False  # it is only too long: another max_length would score it
    failed: bool = False  # not for anything in the answer: what computes rewards did not give one


Result: TypeAlias = Reward | Unscored
