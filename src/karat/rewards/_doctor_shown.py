"""What a model reads of an example, for people: its text, the tokens around each read, BOS, and what does not fit."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

from karat import types
from karat.models.render import Rendered, Renderer
from karat.rewards._local import LocalModel
from karat.types import Example, Message, Unscored

_AROUND = 3  # tokens that are shown on either side of a read
_SHOWN = 4  # reads that are shown to people; all of them are in the details
_TEXT = 400  # characters of a text that are shown to people
_SHORT = 80
_PROMPT = (Message("user", "What is 7*8+1?"),)
_STEPS = ("7*8 is 56.", "So it is 57.")


class Finding(NamedTuple):
    """One check."""

    check: str
    ok: bool
    found: str
    details: Mapping[str, Any] = {}  # what a program wants to know of it


@dataclass(frozen=True)
class _Expected:
    """The token that a read should be at, None where any may be, and who says so."""

    id: int | None
    by: str


@dataclass(frozen=True)
class Shown:
    """An example as a model reads it, beside what it should read."""

    local: LocalModel
    example: Example
    rendered: Rendered
    whole: Rendered  # as it is without a limit
    refused: str = ""  # why it has no score: it is too long

    def findings(self) -> list[Finding]:
        """Text, BOS, reads and length."""
        return [self._text(), self._bos(), self._read(), self._length()]

    @property
    def _ids(self) -> tuple[int, ...]:
        return self.rendered.sequence.ids

    def _text(self) -> Finding:
        tokens = list(map(self._token, self._ids))
        text = str(self.local.parts.tokenizer.decode(list(self._ids)))
        details = {"text": text, "ids": [*self._ids], "tokens": tokens}
        return Finding("text", True, f"{len(tokens)} tokens: {shortened(text, _TEXT)}", details)

    def _token(self, number: int) -> str:
        """As text, or by its name where it is a part of a character."""
        tokenizer = self.local.parts.tokenizer
        text = str(tokenizer.decode([number]))
        return str(tokenizer.convert_ids_to_tokens(number)) if "\ufffd" in text else text

    # BOS

    def _bos(self) -> Finding:
        tokenizer = self.local.parts.tokenizer
        bos, count = tokenizer.bos_token_id, 0
        while count < len(self._ids) and self._ids[count] == bos:
            count += 1
        adds = bos is not None and tokenizer("", add_special_tokens=True)["input_ids"][:1] == [bos]
        details = {"count": count, "bos_token_id": bos, "tokenizer_adds": adds, "in_template": self._written}
        if bos is not None and self._written > 1:
            return Finding(
                "BOS",
                False,
                "the chat template writes it twice: karat reads one, other tools two; take one out of it",
                details,
            )
        return Finding("BOS", count <= 1, _said_of_bos(bos, count, adds, self._written), details)

    @cached_property
    def _written(self) -> int:
        """How often a chat template writes BOS before anything else."""
        bos = str(self.local.parts.tokenizer.bos_token or "")
        if self.local.spec.render.layout != "chat" or not bos:
            return 0
        text, count = self._applied([*self.example.prompt, Message("assistant", self.example.response)]), 0
        while text.startswith(bos * (count + 1)):
            count += 1
        return count

    def _applied(self, messages: Sequence[Message]) -> str:
        """What transformers makes of messages by the template."""
        turns = [{"role": m.role, "content": m.content} for m in messages]
        template = self.local.spec.render.template
        return str(self.local.parts.tokenizer.apply_chat_template(turns, chat_template=template, tokenize=False))

    # Reads

    def _read(self) -> Finding:
        said, reads, sound = [], [], True
        for name in self.local.spec.reads:
            read = self.rendered.sequence.reads[name]
            if isinstance(read, types.Span):
                said.append(f"the mean of {read.stop - read.start} tokens")
                reads.append({"name": name, "start": read.start, "stop": read.stop})
                continue
            expected = self._expected(name)
            rows = [self._row(name, at, expected) for at in read]
            sound = sound and all(row["as_expected"] for row in rows)
            said += self._lines(name, rows, expected)
            reads += rows
        return Finding("read", sound, "\n".join(said), {"reads": reads})

    def _row(self, name: str, at: int, expected: _Expected) -> dict[str, Any]:
        own = self._ids[at]
        around = range(max(0, at - _AROUND), min(len(self._ids), at + _AROUND + 1))
        return {
            "name": name,
            "at": at,
            "id": own,
            "token": self._token(own),
            "expected_id": expected.id,
            "expected_by": expected.by,
            "as_expected": expected.id is None or own == expected.id or self._holds(own, expected.id),
            "around": [{"at": n, "id": self._ids[n], "token": self._token(self._ids[n])} for n in around],
        }

    def _holds(self, own: int, expected: int) -> bool:
        """Whether a token is the expected one, merged with what stands before it."""
        wanted = self._token(expected)
        return bool(wanted) and self._token(own).endswith(wanted)

    def _lines(self, name: str, rows: Sequence[Mapping[str, Any]], expected: _Expected) -> list[str]:
        several = len(rows) > 1
        named = name if len(self.local.spec.reads) > 1 or several else "reads"
        lines = [
            f"{named}{f' {n}' if several else ''} at {row['at']}: {self._said(row, expected)}"
            for n, row in enumerate(rows[:_SHOWN], 1)
        ]
        return [*lines, f"and {len(rows) - _SHOWN} more"] if len(rows) > _SHOWN else lines

    def _said(self, row: Mapping[str, Any], expected: _Expected) -> str:
        own = f"{row['token']!r} ({row['id']})"
        before = _listed(a for a in row["around"] if a["at"] < row["at"])
        behind = _listed(a for a in row["around"] if a["at"] > row["at"])
        stands = (f"; behind {before}" if before else "") + (f"; before {behind}" if behind else "")
        if row["id"] == expected.id or expected.id is None:
            return f"{own}, {expected.by}{stands}"
        wanted = f"{self._token(expected.id)!r} ({expected.id})"
        if row["as_expected"]:
            return f"{own}, {expected.by} {wanted} merged with what stands before it{stands}"
        return f"{own}, but {expected.by} is {wanted}{stands}"

    def _expected(self, name: str) -> _Expected:
        """By the spec, or by what transformers' own template writes."""
        part, tokenizer = self.local.spec.render, self.local.parts.tokenizer
        if name == "prompt_end":
            return _Expected(self._end_of(self.example.prompt), "the prompt's last token that is no blank")
        if name == "step":
            mark = tokenizer(part.step_token or "", add_special_tokens=False)["input_ids"]
            return _Expected(mark[-1] if mark else None, "the mark of steps" if mark else "the step's own last token")
        if part.pair_tokens and name in ("source", "first", "second"):
            token = part.pair_tokens[("source", "first", "second").index(name)]
            return _Expected(self._id(token), f"the token of the {'prompt' if name == 'source' else name + ' answer'}")
        if name == "cls":
            return _Expected(tokenizer.cls_token_id, "the CLS token" if tokenizer.cls_token_id else "the first token")
        return self._last() if name == "last" else _Expected(None, _OTHERWISE.get(name, "one of the answer's own"))

    def _id(self, token: str) -> int | None:
        number = token.removeprefix("#")
        if token.startswith("#") and number.isdigit():
            return int(number)
        found: int | None = self.local.parts.tokenizer.get_vocab().get(token)
        return found

    def _last(self) -> _Expected:
        part, tokenizer = self.local.spec.render, self.local.parts.tokenizer
        if part.append:
            return _Expected(self._id(part.append), "the token that is put behind the text")
        if part.eos != "as_is":
            return _Expected(tokenizer.eos_token_id, "EOS")
        if part.pair_template:
            return _Expected(None, "the token before the label")
        tail = self._tail
        return _Expected(
            tail[-1] if tail else None, "the template's last token" if tail else "the text's own last token"
        )

    @cached_property
    def _tail(self) -> list[int]:
        """Ids that are the same behind every answer."""
        others = self.local.renderer(
            [replace(self.example, response=text, steps=()) for text in ("1", "It is so.", "a")]
        )
        ends = [r.sequence.ids[::-1] for r in others if isinstance(r, Rendered)]
        shared: list[int] = []
        for column in zip(*ends, strict=False):
            if len({*column}) > 1:
                break
            shared.append(column[0])
        return shared[::-1] if len(ends) == 3 else []

    def _end_of(self, prompt: Sequence[Message]) -> int | None:
        """The last id of a prompt by itself."""
        text = self._applied(prompt).rstrip()
        ids: list[int] = self.local.parts.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids[-1] if ids else None

    # Length

    def _length(self) -> Finding:
        """What the longest text is, and what of a longer one is cut: of this one, if it is, else of its like."""
        most, policy = self.local.renderer.max_length, self.local.spec.render.over_length
        count = len(self.whole.sequence.ids)
        details = {"tokens": count, "max_length": most, "over_length": policy}
        if most is None:
            return Finding("length", True, f"{count} tokens, of any number", details)
        if self.refused:
            return Finding("length", False, self.refused, details)
        said = f"{count} of at most {most} tokens"
        if len(self._ids) < count:
            lost = self._lost(self.rendered)
            return Finding("length", True, f"{said}; this one loses {_said_of(lost)}", {**details, **lost})
        short = Renderer(self.local.parts.tokenizer, _limited(self.local, len(self._ids) - 3), None)
        (cut,) = short([self.example])
        if isinstance(cut, Unscored):
            return Finding("length", True, f"{said}; a longer one has no score (over_length={policy!r})", details)
        return Finding("length", True, f"{said}; one that is 3 longer loses {_said_of(self._lost(cut))}", details)

    def _lost(self, cut: Rendered) -> dict[str, Any]:
        """The tokens of the whole that a cut one lacks."""
        whole, own = self.whole.sequence.ids, cut.sequence.ids
        start = next((i for i, (a, b) in enumerate(zip(whole, own, strict=False)) if a != b), len(own))
        lost = whole[start : start + len(whole) - len(own)]
        return {"lost": str(self.local.parts.tokenizer.decode(list(lost))), "lost_tokens": len(lost)}


_OTHERWISE = {
    "before_step": "the token before the mark of a step",
    "token": "before each of the answer's tokens",
    "answer": "before each of the answer's tokens",
    "all": "every token",
}


def made_up(local: LocalModel) -> Example:
    """An example that a model of this spec can read."""
    if local.at_steps:
        return Example(_PROMPT, "\n\n".join(_STEPS), steps=_STEPS)
    return Example(_PROMPT, "It is 57.", other="It is 58." if local.compares else None)


def shown(local: LocalModel, example: Example) -> Shown | Unscored:
    """How an example is read, or why it is not."""
    (found,) = local.renderer([example])
    if isinstance(found, Unscored) and not found.over_length:
        return found
    (whole,) = Renderer(local.parts.tokenizer, _limited(local, None), None)([example])
    if isinstance(whole, Unscored):
        return whole
    return (
        Shown(local, example, whole, whole, found.reason)
        if isinstance(found, Unscored)
        else Shown(local, example, found, whole)
    )


def _limited(local: LocalModel, most: int | None) -> Any:
    """A spec with another longest text; without one, nothing is cut."""
    changed = {"max_length": None, "over_length": "error"} if most is None else {"max_length": max(1, most)}
    return local.spec.model_copy(update={"render": local.spec.render.model_copy(update=changed)})


def shortened(text: str, most: int) -> str:
    """A text in quotes, without its middle where it is long."""
    half = most // 2
    return repr(text) if len(text) <= most else f"{text[:half]!r} … {text[-half:]!r}"


def _said_of(lost: Mapping[str, Any]) -> str:
    return f"{lost['lost_tokens']} tokens of its prompt: {shortened(lost['lost'], _SHORT)}"


def _listed(tokens: Any) -> str:
    return " ".join(f"{own['token']!r} ({own['id']})" for own in tokens)


def _said_of_bos(bos: int | None, count: int, adds: bool, written: int) -> str:
    if bos is None:
        return "none: the tokenizer has no BOS token"
    if adds and written:
        return f"{count} at the start; the tokenizer adds one more to a rendered text, unless it is told not to"
    if adds and not count:
        return "0 at the start, though the tokenizer adds one to a text: look whether it was trained with it"
    return f"{count} at the start of a rendered answer"
