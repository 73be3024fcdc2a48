"""OpenAI's chat completions, by the weights of a language model that is served with --generate."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import Annotated, Any, Literal, NamedTuple, Self

import pydantic_core
from pydantic import Field, model_validator

from karat.engine._load import WorkError
from karat.serving._generator import GREEDY, USUAL, Generator, Sampling
from karat.serving._readout import Name
from karat.serving.base import ApiError, Gives, Reply, Request, Route, Shape, Strict, Turns, as_error, enveloped
from karat.types import Message

_MOST = f"tokens of an answer; where nothing is said {USUAL}, or as many as there is room for"
Nothing = Annotated[float, Field(ge=0, le=0)]
Stop = Annotated[str, Field(min_length=1, max_length=256)]


class StreamOptions(Strict):
    """What a stream ends with."""

    include_usage: bool = False


class ChatBody(Strict):
    """A conversation, and how its answers are drawn. What changes answers and is not here is refused."""

    model: Name | None = None
    messages: Turns
    max_tokens: int | None = Field(default=None, ge=1, le=1 << 24, description=_MOST)
    max_completion_tokens: int | None = Field(default=None, ge=1, le=1 << 24, description="max_tokens by its new name")
    temperature: float = Field(
        default=1.0, ge=0, le=100, description=f"below {GREEDY}: the most probable token each time"
    )
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=1, le=1 << 24)
    n: int = Field(default=1, ge=1, le=128)
    stop: Stop | Annotated[list[Stop], Field(max_length=16, fail_fast=True)] | None = None
    include_stop_str_in_output: bool = Field(default=False, description="vLLM's word: the answer keeps its stop text")
    no_stop_trim: bool = Field(default=False, description="SGLang's word for the same")
    continue_final_message: bool = Field(
        default=False, description="vLLM's word: the last message is the beginning of the answer, which goes on with it"
    )
    add_generation_prompt: bool = Field(default=True, description="false with continue_final_message, and only then")
    seed: int | None = Field(
        default=None,
        ge=-(1 << 63),
        lt=1 << 63,
        description="changes nothing: answers are drawn together with those of other callers",
    )
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    user: str | None = Field(default=None, max_length=512)  # is not looked at
    # What clients send whether or not they want anything by it.
    logprobs: Literal[False] | None = Field(default=None, description="there are none")
    presence_penalty: Nothing | None = Field(default=None, description="there is none")
    frequency_penalty: Nothing | None = Field(default=None, description="there is none")

    @model_validator(mode="after")
    def _goes_on(self) -> Self:
        if self.continue_final_message == self.add_generation_prompt:
            raise ValueError("set add_generation_prompt to the opposite of continue_final_message")
        if self.continue_final_message and (len(self.messages) < 2 or self.messages[-1].role != "assistant"):
            raise ValueError("continue_final_message wants a last message of the role assistant, behind another")
        return self

    @property
    def opening(self) -> tuple[list[Message], str]:
        """The messages before the answer, and its beginning."""
        messages = [turn.message() for turn in self.messages]
        return (messages[:-1], messages[-1].content) if self.continue_final_message else (messages, "")

    @property
    def keeps_stop(self) -> bool:
        """Whether an answer ends behind its stop text, and not before."""
        return self.include_stop_str_in_output or self.no_stop_trim

    @property
    def sampling(self) -> Sampling:
        """How tokens are drawn."""
        return Sampling(self.max_completion_tokens or self.max_tokens, self.temperature, self.top_p, self.top_k)

    @property
    def stops(self) -> list[str]:
        """Texts before which an answer ends."""
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or [])


class Piece(NamedTuple):
    """A part of an answer."""

    place: int  # of the answer, from 0
    text: str
    tokens: int = 0
    finish: str | None = None  # why it ended, at its end


async def chat(request: Request[ChatBody]) -> Any:
    """Answers to a conversation, whole or as they are drawn (server-sent events)."""
    body, generator = request.body, request.pipeline.generator
    if generator is None:
        raise ApiError(400, "this server scores and does not generate; start it with --generate", "unsupported")
    asked, drawn = await generator.answers(*body.opening, body.n, body.sampling, request.deadline)
    read = len(asked)
    pieces = _merged([_pieces(i, generator, body, ids) for i, ids in enumerate(drawn)])
    first = await anext(pieces)  # what fails before anything is drawn has its own status
    if body.stream:
        return Reply(_streamed(request, read, first, pieces), "text/event-stream", {"cache-control": "no-cache"})
    return await _whole(request, read, first, pieces)


async def _whole(request: Request[ChatBody], read: int, first: Piece, pieces: AsyncIterator[Piece]) -> dict[str, Any]:
    texts, ends, tokens = [""] * request.body.n, [""] * request.body.n, 0
    async for piece in _from(first, pieces):
        texts[piece.place] += piece.text
        ends[piece.place] = piece.finish or ""
        tokens += piece.tokens
    choices = [
        {"index": i, "message": {"role": "assistant", "content": text}, "logprobs": None, "finish_reason": end}
        for i, (text, end) in enumerate(zip(texts, ends, strict=True))
    ]
    return {**_envelope(request, "chat.completion"), "choices": choices, "usage": _usage(read, tokens)}


async def _streamed(
    request: Request[ChatBody], read: int, first: Piece, pieces: AsyncIterator[Piece]
) -> AsyncIterator[bytes]:
    envelope, tokens, begun = _envelope(request, "chat.completion.chunk"), 0, set()
    try:
        async for piece in _from(first, pieces):
            tokens += piece.tokens
            delta = {} if piece.place in begun else {"role": "assistant", "content": ""}
            begun.add(piece.place)
            delta |= {"content": piece.text} if piece.text else {}
            if delta or piece.finish:
                choice = {"index": piece.place, "delta": delta, "logprobs": None, "finish_reason": piece.finish}
                yield _event({**envelope, "choices": [choice]})
    except WorkError as error:
        yield _event({"error": as_error(error).as_json()})
        return
    if request.body.stream_options.include_usage:
        yield _event({**envelope, "choices": [], "usage": _usage(read, tokens)})
    yield b"data: [DONE]\n\n"


async def _from(first: Piece, rest: AsyncIterator[Piece]) -> AsyncIterator[Piece]:
    async with aclosing(rest):  # type: ignore[type-var]
        yield first
        async for piece in rest:
            yield piece


def _event(value: dict[str, Any]) -> bytes:
    return b"data: " + pydantic_core.to_json(value) + b"\n\n"


def _envelope(request: Request[Any], kind: str) -> dict[str, Any]:
    return {**request.envelope("chatcmpl"), "object": kind}


def _usage(read: int, tokens: int) -> dict[str, int]:
    return {"prompt_tokens": read, "completion_tokens": tokens, "total_tokens": read + tokens}


async def _merged(answers: Sequence[AsyncIterator[Piece]]) -> AsyncIterator[Piece]:
    """The pieces of several answers as they come; the first failure is that of all."""
    told: asyncio.Queue[Piece | Exception | None] = asyncio.Queue()

    async def tell(own: AsyncIterator[Piece]) -> None:
        try:
            async with aclosing(own):  # type: ignore[type-var]
                async for piece in own:
                    told.put_nowait(piece)
        except Exception as error:
            told.put_nowait(error)
        told.put_nowait(None)

    tasks = [asyncio.create_task(tell(own)) for own in answers]
    try:
        left = len(tasks)
        while left:
            found = await told.get()
            if isinstance(found, Exception):
                raise found
            if found is None:
                left -= 1
            else:
                yield found
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _pieces(
    place: int, generator: Generator, body: ChatBody, drawn: AsyncIterator[list[int]]
) -> AsyncIterator[Piece]:
    """The text of an answer, held back where it may be the beginning of a character or of a stop."""
    text, held, stops = _Text(generator.tokenizer), "", body.stops
    longest = max(map(len, stops), default=1) - 1
    last = -1
    async with aclosing(drawn):  # type: ignore[type-var]
        async for ids in drawn:
            last = ids[-1]
            held += text.more(ids)
            if at := [(held.index(stop), stop) for stop in stops if stop in held]:
                begin, stop = min(at)
                yield Piece(place, held[: begin + len(stop) * body.keeps_stop], len(ids), "stop")
                return
            sure = len(held) - longest
            yield Piece(place, held[: max(0, sure)], len(ids))
            held = held[max(0, sure) :]
    yield Piece(place, held + text.rest(), 0, "stop" if last in generator.ends else "length")


class _Text:
    """Tokens → text, as much of it as no later token changes."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer, self._ids = tokenizer, list[int]()
        self._from = self._read = 0  # ids behind which text is decoded, and up to which it was given

    def more(self, ids: Sequence[int]) -> str:
        """What is sure of the text of further tokens."""
        self._ids += ids
        before, now = self._decoded(self._read), self._decoded(len(self._ids))
        if len(now) <= len(before) or now.endswith("\ufffd"):
            return ""  # a character is made of several tokens
        self._from, self._read = self._read, len(self._ids)
        return now[len(before) :]

    def rest(self) -> str:
        """What was held back, at the end."""
        return self._decoded(len(self._ids))[len(self._decoded(self._read)) :]

    def _decoded(self, stop: int) -> str:
        return str(self._tokenizer.decode(self._ids[self._from : stop], skip_special_tokens=True))


class Answer(Shape):
    """The assistant's message."""

    role: Literal["assistant"]
    content: str


class Choice(Shape):
    """One answer, and why it ended."""

    index: int
    message: Answer
    logprobs: None
    finish_reason: Literal["stop", "length"]


class Used(Shape):
    """Tokens of the conversation and of all answers."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Completion(Shape):
    """Answers to a conversation."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[Choice]
    usage: Used


_CHOICE = {"index": 0, "message": {"role": "assistant", "content": "56"}, "logprobs": None, "finish_reason": "stop"}
_COMPLETION = {
    **enveloped("chatcmpl"),
    "object": "chat.completion",
    "choices": [_CHOICE],
    "usage": {"prompt_tokens": 21, "completion_tokens": 3, "total_tokens": 24},
}

ROUTES = (
    Route(
        "/v1/chat/completions",
        chat,
        ChatBody,
        Gives(Completion, _COMPLETION, "text/event-stream"),
        {"messages": [{"role": "user", "content": "What is 7*8?"}], "max_tokens": 16},
    ),
)
