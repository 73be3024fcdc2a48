"""The only place where text becomes tokens: an example → token ids with named read positions.

It knows layouts, BOS, EOS and length; it knows nothing about weights or rewards.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import date
from functools import cached_property
from typing import Any

from transformers import PreTrainedTokenizerBase

from karat import types
from karat.models._layouts import PLAIN, chat_template, cut_left, misspelt, render_part, tokenizer_hash, unfit
from karat.models._literal import LiteralEncoder
from karat.models._pairs import Pairs, Segments, token_id
from karat.models._prompt_end import PromptEnd
from karat.models._steps import Draft, Steps, reads
from karat.models._template import check_template
from karat.models.backbone import first_line
from karat.spec import RewardSpec
from karat.types import Example, Message, Refused, Unscored

__all__ = ["PLAIN", "Rendered", "Renderer", "chat_template", "cut_left", "render_part", "tokenizer_hash"]

# A reward may not change from day to day: templates that write the date get this one.
_DAY = date(2024, 7, 26)
_DATES = "".join(f" | replace({d!r}, {_DAY.strftime(d)!r})" for d in ("%d", "%b", "%B", "%Y", "%y", "%m", "%A", "%a"))
_FIXED_DATE = "{%- macro strftime_now(format) %}{{ format" + _DATES + " }}{% endmacro %}\n"


@dataclass(frozen=True, slots=True)
class Rendered:
    """One example as the engine takes it."""

    sequence: types.Sequence
    truncated: bool = False
    flags: tuple[str, ...] = ()
    start: int = 0  # where the answer begins, where it is in steps


class Renderer:
    """Examples → sequences, by the rules of a spec's render part and pooling."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, spec: RewardSpec, positions: int | None) -> None:
        """`positions` is the model's own limit in tokens (None: it has none)."""
        self.tokenizer = tokenizer
        self.part = spec.render
        self.pooling = spec.pooling
        limits = [n for n in (spec.render.max_length, positions) if n is not None]
        self.max_length = min(limits) if limits else None
        self._most = positions
        self._literal = LiteralEncoder(tokenizer)
        self._check(spec.at_steps or spec.of_tokens)
        self._of_tokens = spec.of_tokens
        self._append = self._appended()
        in_steps = spec.render.step_token is not None
        self._steps = Steps(tokenizer, spec, self._literal, self._apply) if in_steps else None
        self._pairs = Pairs(spec.render) if spec.render.pair_template else None
        self._segments = Segments(tokenizer, spec.render, self._literal) if spec.render.pair_tokens else None
        if bool(self._segments) != (spec.pooling == "source"):
            raise Refused("pair_tokens and pooling='source' belong together; give both, or neither")
        self._prompt_end = (
            PromptEnd(self._written, str(tokenizer.eos_token or "")) if "prompt_end" in spec.reads else None
        )
        if self._pairs:
            self._check_opening()

    def _check(self, in_steps: bool) -> None:
        if self.part.eos != "as_is" and self.tokenizer.eos_token_id is None:
            raise Refused(
                f"the spec says eos={self.part.eos!r}, but the tokenizer has no EOS token;"
                " give the tokenizer one or use eos='as_is'"
            )
        if not self.part.template:
            raise Refused("the spec has no template; build it with render_part()")
        check_template(self.part.template)
        if self.part.over_length == "cut_end" and self.part.step_token is None:
            raise Refused("over_length='cut_end' cuts steps, and this reward has none; use 'cut_prompt'")
        if (self.part.step_token is None) == in_steps:
            raise Refused("pooling='step' and step_token belong together; give both, or neither")
        if in_steps and self.part.eos != "as_is":
            raise Refused(f"eos={self.part.eos!r} is for answers as a whole, and this reward reads steps; leave it out")
        if self.part.pair_template and (in_steps or self.part.eos == "append"):
            raise Refused("pair_template reads where an answer would begin; leave step_token and eos out")

    def _appended(self) -> list[int]:
        """The id of the token that stands behind every text.

        Raises:
            Refused: it is not one token, or something else is read.
        """
        token = self.part.append
        if not token:
            return []
        if self.pooling != "last" or self.part.step_token is not None or self.part.pair_template:
            raise Refused(
                f"append={token!r} is a token that is read last, and this reward is read elsewhere; leave it out"
            )
        number = token_id(self.tokenizer, self._literal, token)
        if number is None:
            raise Refused(f"append={token!r} is no token of this tokenizer; give one, or its id as #id")
        return [number]

    def _check_opening(self) -> None:
        """Raise Refused where a label would not stand right behind what is read."""
        start = self._apply([Message("user", "x")], opened=True)
        whole = self._apply([Message("user", "x"), Message("assistant", "A")])
        if isinstance(start, Unscored) or isinstance(whole, Unscored) or not whole.startswith(start + "A"):
            raise Refused(
                "the chat template does not write an answer right behind its generation prompt, so the place of the"
                " label is not known; give a template that does"
            )

    def __call__(self, examples: Iterable[Example]) -> list[Rendered | Unscored]:
        """One result per example, in order; what cannot be rendered is `Unscored` with the reason."""
        examples = [self._in_steps(e) for e in examples]
        return [self._fit(e, draft) for e, draft in zip(examples, self._drafts(examples), strict=True)]

    def _in_steps(self, example: Example) -> Example:
        if not self._steps or example.steps:
            return example
        return replace(example, steps=(example.response,)) if self._of_tokens else self._steps.split(example)

    def _drafts(self, examples: Sequence[Example]) -> list[Draft | Unscored]:
        """Tokens, however many they are."""
        if self._steps:
            return [self._unusable(e) or self._steps(e) for e in examples]
        if self._segments:
            return [self._unusable(e) or self._segments(e) for e in examples]
        if self.part.layout == "pair":
            return [self._unusable(e) or self._two(e) for e in examples]
        texts = [self._text(e) for e in examples]
        good = [i for i, text in enumerate(texts) if isinstance(text, str)]
        encoded = self._encode([str(texts[i]) for i in good], [self._messages(examples[i]) for i in good])
        ids: dict[int, list[int] | Unscored] = dict(zip(good, encoded, strict=True))
        return [self._draft(e, text, ids.get(i)) for i, (e, text) in enumerate(zip(examples, texts, strict=True))]

    def _two(self, example: Example) -> Draft | Unscored:
        """Prompt and answer as two segments."""
        prompt = self._apply(example.prompt)
        if isinstance(prompt, Unscored):
            return prompt
        try:
            ids, kinds = self._literal.encode_pair(prompt, example.response)
        except Refused as error:
            return Unscored(str(error))
        return Draft(ids, types=tuple(kinds) if any(kinds) else None)

    def _draft(self, example: Example, text: str | Unscored, ids: list[int] | Unscored | None) -> Draft | Unscored:
        if isinstance(text, Unscored):
            return text
        if isinstance(ids, Unscored) or not ids or not self._prompt_end:
            return ids if isinstance(ids, Unscored) else Draft(self._ended(ids or []))
        ended = self._ended(ids)
        start = self._prompt_end.place(example.prompt, text, ended)
        return start if isinstance(start, Unscored) else Draft(ended, start=start)

    def text(self, example: Example) -> str:
        """The rendered text, for people to look at. Raises Refused where the template refuses."""
        if self._steps or self._segments or self.part.layout == "pair":
            draft = self._drafts([self._in_steps(example)])[0]
            if isinstance(draft, Unscored):
                raise Refused(draft.reason)
            return str(self.tokenizer.decode(draft.ids))
        text = self._text(example)
        if isinstance(text, Unscored):
            raise Refused(text.reason)
        return text

    def finished(self, text: str) -> Rendered | Unscored:
        """A text that the caller has templated: its control tokens are read, and a BOS is added if it lacks one."""
        if broken := _surrogate(text):
            return Unscored(broken)
        if self._segments or self.part.layout == "pair":
            return Unscored("this model reads segments of its own, so a finished text is none; give prompt and answers")
        ids = list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
        bos = self.tokenizer.bos_token_id
        if bos is not None and ids[:1] != [bos] and self._adds_bos:
            ids = [bos, *ids]
        closed = self._closed(ids)
        if too_long := self._too_long(len(closed), "give a shorter text: one that is finished is not cut"):
            return too_long
        marks = self._steps.find(ids) if self._steps else ()
        start = self._prompt_end.find(ids) if self._prompt_end else 0
        if isinstance(marks, Unscored) or isinstance(start, Unscored):
            return marks if isinstance(marks, Unscored) else start  # type: ignore[return-value]
        return self._measured(Draft(closed, marks, start), ())

    @cached_property
    def _adds_bos(self) -> bool:
        start: list[int] = self.tokenizer("", add_special_tokens=True)["input_ids"][:1]
        return start == [self.tokenizer.bos_token_id]

    # Rendering to text

    def _text(self, example: Example) -> str | Unscored:
        if unusable := self._unusable(example):
            return unusable
        return self._apply(self._messages(example), opened=self._pairs is not None)

    def _messages(self, example: Example) -> list[Message]:
        """What the template is applied to."""
        if self._pairs:
            return [self._pairs.message(example)]
        return [*example.prompt, Message("assistant", example.response)]

    def _written(self, messages: Sequence[Message], opened: bool) -> tuple[str, list[int]] | Unscored:
        """Text and ids of messages, if `opened` with the beginning of the assistant's turn; no blanks at its end."""
        text = self._apply(messages, opened)
        if isinstance(text, Unscored):
            return text
        if not opened:
            text = text.rstrip()
        ids = self._encode([text], [messages])[0]
        return ids if isinstance(ids, Unscored) else (text, self._one_bos(ids))

    def _names(self, role: str) -> bool:
        """Whether the template compares roles with this one; most write any."""
        template = self.part.template or ""
        return any(f"{quote}{role}{quote}" in template for quote in "'\"")

    def _unusable(self, example: Example) -> Unscored | None:
        """Why an example has no text of this layout."""
        answers = (example.response, *example.steps, *([] if example.other is None else [example.other]))
        for message in (*example.prompt, *(Message("assistant", part) for part in answers)):
            if broken := _surrogate(message.content) or _surrogate(message.role) or unfit(message.role):
                return Unscored(broken)
            if (meant := misspelt(message.role)) and not self._names(message.role):
                what = "the chat template" if self.part.layout == "chat" else f"layout {self.part.layout!r}"
                return Unscored(f"{what} has no role {message.role!r:.40}; did you mean {meant!r}?")
        if self.part.layout in ("concat", "pair") and len(example.prompt) > 1 and not self._pairs:
            return Unscored(
                f"layout {self.part.layout!r} takes one prompt message and got {len(example.prompt)};"
                " use layout='dialogue' or a tokenizer with a chat template"
            )
        if self._pairs:
            return self._pairs.unusable(example)
        return (
            None
            if example.other is None or self._segments
            else Unscored("this model reads one answer, and there are two; use score")
        )

    def _apply(self, messages: Sequence[Message], opened: bool = False) -> str | Unscored:
        template = self.part.template
        if "strftime_now" in template:
            template = _FIXED_DATE + template
        raw = [{"role": m.role, "content": m.content} for m in messages]
        try:
            text: Any = self.tokenizer.apply_chat_template(
                raw, chat_template=template, tokenize=False, add_generation_prompt=opened
            )
        except Exception as error:  # a template is a program: whatever it raises is about this conversation
            return Unscored(f"the template refuses this conversation: {first_line(error)}")
        return str(text)

    # Text to ids

    def _encode(self, texts: list[str], written: Sequence[Sequence[Message]]) -> list[list[int] | Unscored]:
        """Ids of texts that the template wrote of these messages."""
        plain = [i for i, (text, m) in enumerate(zip(texts, written, strict=True)) if not self._spells(text, m)]
        encoded = self._literal.encode([texts[i] for i in plain], add_special_tokens=self._by_tokenizer)
        ids = dict(zip(plain, encoded, strict=True))
        return [ids[i] if i in ids else self._masked(texts[i], m) for i, m in enumerate(written)]

    @property
    def _by_tokenizer(self) -> bool:
        """Does the tokenizer add its own special tokens? A chat template writes them itself."""
        return self.part.layout != "chat"

    def _spells(self, text: str, messages: Sequence[Message]) -> bool:
        """Does user text spell a control token? A plain layout writes none, so there the whole text counts."""
        if self.part.layout != "chat":
            return self._literal.holds_control(text)
        return any(self._literal.holds_control(m.content) or self._literal.may_join(m.content) for m in messages)

    def _masked(self, text: str, messages: Sequence[Message]) -> list[int] | Unscored:
        """Ids of a text in which a message spells a control token, or may with what stands beside it."""
        literal = self._literal
        if self.part.layout != "chat":
            masked: str | Unscored = literal.mask(text)
        else:
            guarded = [replace(m, content=literal.mask_message(m.content)) for m in messages]
            masked = self._apply(guarded, opened=self._pairs is not None)
        blanks = "" if isinstance(masked, Unscored) else masked[len(masked.rstrip()) :]
        if isinstance(masked, Unscored) or literal.unmask(masked) not in (text, text + blanks):
            return Unscored("a message holds a control token and the template looks into it, so its text is not read")
        masked = masked if literal.unmask(masked) == text else masked.rstrip()
        try:
            return literal.encode_masked(masked, add_special_tokens=self._by_tokenizer)
        except Refused as error:
            return Unscored(str(error))

    def _one_bos(self, ids: list[int]) -> list[int]:
        bos = self.tokenizer.bos_token_id
        while bos is not None and ids[:2] == [bos, bos]:
            ids = ids[1:]
        return ids

    def _ended(self, ids: list[int]) -> list[int]:
        ids, eos = self._one_bos(ids), self.tokenizer.eos_token_id
        return self._closed([*ids, eos] if self.part.eos == "append" and ids[-1:] != [eos] else ids)

    def _closed(self, ids: list[int]) -> list[int]:
        """With the token that is read, once."""
        return ids if ids[-1:] == self._append else [*ids, *self._append]

    # Length and reads

    def _fit(self, example: Example, draft: Draft | Unscored) -> Rendered | Unscored:
        if isinstance(draft, Unscored):
            return draft
        flags = _flags(example)
        if self.part.over_length == "cut_end":
            return self._measured(*self._cut_end(draft, flags))
        if self.max_length is None or len(draft.ids) <= self.max_length or self.part.over_length == "error":
            return self._measured(draft, flags)
        return self._cut(example, flags)

    def _cut_end(self, draft: Draft, flags: tuple[str, ...]) -> tuple[Draft, tuple[str, ...], bool]:
        """Only the first tokens, and of the marks those that are whole."""
        longest = [n for n in (self.max_length, self._completion_end(draft)) if n is not None]
        ids = draft.ids[: min(longest)] if longest else draft.ids
        marks = tuple(m for m in draft.marks if m[1] < len(ids))
        cut = len(ids) < len(draft.ids)
        return Draft(ids, marks, draft.start), (*flags, "over_length_cut") if cut else flags, cut

    def _completion_end(self, draft: Draft) -> int | None:
        most = self.part.max_completion_length
        return None if most is None else draft.start + most

    def _cut(self, example: Example, flags: tuple[str, ...]) -> Rendered | Unscored:
        """Remove as few characters as possible from the left of the prompt; system messages and the answer stay."""
        assert self.max_length is not None
        low, high = 0, sum(len(m.content) for m in example.prompt if m.role != "system")
        fitting = self._without(example, high)
        if isinstance(fitting, Unscored):
            return fitting
        if len(fitting.ids) > self.max_length:
            return Unscored(
                f"the answer needs more than max_length={self.max_length} tokens even without its prompt;"
                " raise max_length",
                over_length=True,
            )
        while low < high:
            middle = (low + high) // 2
            draft = self._without(example, middle)
            if not isinstance(draft, Unscored) and len(draft.ids) <= self.max_length:
                fitting, high = draft, middle
            else:
                low = middle + 1
        return self._measured(fitting, (*flags, "over_length_cut"), truncated=True)

    def _without(self, example: Example, characters: int) -> Draft | Unscored:
        return self._drafts([replace(example, prompt=cut_left(example.prompt, characters))])[0]

    def _too_long(self, count: int, mend: str) -> Unscored | None:
        if self.max_length is None or count <= self.max_length:
            return None
        raised = "; raise it, or" if self.max_length != self._most else ", which is all that the model takes;"
        return Unscored(f"{count} tokens are more than max_length={self.max_length}{raised} {mend}", over_length=True)

    def _measured(self, draft: Draft, flags: tuple[str, ...], truncated: bool = False) -> Rendered | Unscored:
        ids = draft.ids
        if not ids:
            return Unscored("prompt and answer are empty and the tokenizer adds no token, so there is nothing to read")
        if too_long := self._too_long(len(ids), "use over_length='cut_prompt' to cut the prompt from the left"):
            return too_long
        if self._steps:
            if self._of_tokens and not draft.start:
                return Unscored("no token stands before the answer, so its first has no probability; give a prompt")
            if not draft.marks:
                return Unscored(f"no step ends within max_length={self.max_length}; raise it", over_length=True)
            return Rendered(types.Sequence(tuple(ids), reads(draft, self.pooling)), truncated, flags, draft.start)
        eos = self.tokenizer.eos_token_id
        if self.part.eos == "require" and ids[-1] != eos:
            return Unscored("the text does not end in the EOS token that the spec requires; use eos='append' to add it")
        plain = self.part.layout in ("concat", "dialogue") and not self._append
        if self.part.eos == "as_is" and plain and eos is not None and ids[-1] != eos:
            flags = (*flags, "no_eos")
        found: dict[str, types.Read] = {self.pooling: self._read(len(ids))}
        if self._segments:
            found = {name: (at,) for name, (at, _) in zip(("source", "first", "second"), draft.marks, strict=True)}
        if self._prompt_end:
            found["prompt_end"] = (draft.start - 1,)
        return Rendered(types.Sequence(tuple(ids), found, draft.types), truncated, flags)

    def _read(self, length: int) -> types.Read:
        if self.pooling == "mean":
            return types.Span(0, length)
        return (0,) if self.pooling == "cls" else (length - 1,)


def _flags(example: Example) -> tuple[str, ...]:
    empty_prompt = not any(m.content for m in example.prompt)
    return ("empty_prompt",) * empty_prompt + ("empty_answer",) * (not example.response)


def _surrogate(text: str) -> str | None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return f"the text has an unpaired surrogate at character {error.start}, which is no Unicode text; repair it"
    return None
