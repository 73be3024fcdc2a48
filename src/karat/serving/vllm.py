"""vLLM's: /classify, /pooling, /score, /generative_scoring and /rerank, as its clients and verl's reward router ask.

A finished text gets a BOS only where it lacks one. Rewards are raw; with --literal, vLLM's sigmoid or softmax is
applied where a client does not say `use_activation: false`.
"""

import base64
import struct
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from karat.rewards._numbers import logistic
from karat.serving._readout import Label, by_labels
from karat.serving._rows import Row
from karat.serving.base import (
    MOST,
    USAGE,
    Absent,
    ApiError,
    Envelope,
    Gives,
    Lenient,
    Request,
    Route,
    Shape,
    Text,
    Texts,
    Turns,
    Usage,
    enveloped,
    rows_of_conversation,
    usage,
)
from karat.types import Example, Message, Reward

Ids = Annotated[list[Annotated[int, Field(ge=0, lt=1 << 31)]], Field(min_length=1, max_length=1 << 20, fail_fast=True)]
ManyIds = Annotated[list[Ids], Field(min_length=1, max_length=MOST, fail_fast=True)]
Input = Text | Ids | Texts | ManyIds


class PoolBody(Lenient):
    """Finished texts or tokens as `input`, or one conversation as `messages`."""

    input: Input | None = None
    messages: Turns | None = None
    use_activation: bool | None = None
    activation: bool | None = None  # its older name
    encoding_format: Literal["float", "base64"] = "float"

    def rows(self) -> list[Row]:
        """What is scored.

        Raises:
            ApiError: neither or both are given.
        """
        if (self.input is None) is (self.messages is None):
            raise ApiError(400, "give either input or messages", "invalid_value", "input")
        if self.messages is not None:
            return [Example(*rows_of_conversation(self.messages))]
        return rows_of_input(self.input or "")

    @property
    def raw(self) -> bool:
        """Whether the client asks for no activation."""
        return self.use_activation is False or self.activation is False


def rows_of_input(given: Input) -> list[Row]:
    """Texts as they are, and tokens as tuples."""
    if isinstance(given, str):
        return [given]
    if isinstance(given[0], int):
        return [tuple(given)]
    return [one if isinstance(one, str) else tuple(one) for one in given]


def _activated(request: Request[Any], value: float) -> float:
    """A reward as the client wants it: as it is, or with --literal through vLLM's sigmoid."""
    raw = isinstance(request.body, PoolBody) and request.body.raw
    return logistic(value) if request.literal and not raw and request.pipeline.model.output == "logit" else value


async def classify(request: Request[PoolBody]) -> Any:
    """Classification: `probs` holds the reward, raw unless the server was started with --literal."""
    rewards = await request.rewards(request.body.rows())
    data = [_classified(request, place, own) for place, own in enumerate(rewards)]
    return {**request.envelope("classify"), "data": data, "usage": usage(rewards)}


def _classified(request: Request[Any], place: int, reward: Reward) -> dict[str, Any]:
    names = list(reward.objectives or {})
    probs = [*(reward.objectives or {}).values(), reward.value]
    return {
        "index": place,
        "label": [*names, "LABEL_0"][-1],
        "probs": [_activated(request, p) for p in probs],  # the reward is the last: what verl reads
        "num_classes": len(probs),
    }


async def pooling(request: Request[PoolBody]) -> Any:
    """Pooling: for each input the reward, or of a process reward model a row for each step."""
    rewards = await request.rewards(request.body.rows())
    data = [{"index": place, "object": "pooling", "data": _pooled(request, own)} for place, own in enumerate(rewards)]
    return {**request.envelope("pooling"), "data": data, "usage": usage(rewards)}


def _pooled(request: Request[PoolBody], reward: Reward) -> Any:
    if request.body.encoding_format == "base64":
        flat = reward.steps if reward.steps is not None else (_activated(request, reward.value),)
        return packed(flat)
    if reward.steps is None:
        return [_activated(request, reward.value)]
    probable = request.pipeline.model.output == "probability"
    return [[1 - p, p] if probable else [p] for p in reward.steps]


def packed(values: Sequence[float]) -> str:
    """Numbers as base64 of little-endian float32."""
    return base64.b64encode(struct.pack(f"<{len(values)}f", *values)).decode()


class ScoreBody(Lenient):
    """Prompts and answers, one to one, one to many, or many to many."""

    text_1: Text | Texts | None = None
    text_2: Text | Texts | None = None
    queries: Text | Texts | None = None
    documents: Text | Texts | None = None
    items: Text | Texts | None = None
    data_1: Text | Texts | None = None
    data_2: Text | Texts | None = None

    def pairs(self) -> list[tuple[str, str]]:
        """Prompt and answer of each.

        Raises:
            ApiError: there are none, or their numbers do not fit.
        """
        first = _listed(next((v for v in (self.text_1, self.queries, self.data_1) if v is not None), []))
        second = _listed(next((v for v in (self.text_2, self.documents, self.items, self.data_2) if v is not None), []))
        if not first or not second:
            told = "give two: text_1 and text_2, queries and documents or items, or data_1 and data_2"
            raise ApiError(400, told, "invalid_value")
        if len(first) == 1:
            first = first * len(second)
        if len(first) != len(second):
            raise ApiError(400, "Input lengths must be either 1:1, 1:N or N:N", "invalid_value")
        return list(zip(first, second, strict=True))


def _listed(texts: Text | Sequence[str]) -> list[str]:
    return [texts] if isinstance(texts, str) else list(texts)


def example(prompt: str, answer: str) -> Example:
    """A prompt and its answer, for shapes that call them query and document."""
    return Example((Message("user", prompt),), answer)


async def score(request: Request[ScoreBody]) -> Any:
    """Scores: the first text is the user's turn, the second the assistant's, by the model's own template."""
    rewards = await request.rewards([example(*pair) for pair in request.body.pairs()])
    data = [
        {"index": place, "object": "score", "score": _activated(request, own.value)}
        for place, own in enumerate(rewards)
    ]
    return {**request.envelope("score"), "data": data, "usage": usage(rewards)}


class LabelsBody(Lenient):
    """Items to one query, and tokens whose probabilities behind each are compared."""

    query: Text
    items: Text | Texts
    label_token_ids: Annotated[list[Label], Field(min_length=1, max_length=64, fail_fast=True)]
    apply_softmax: bool = True
    item_first: bool = False


async def of_items(request: Request[Any], items: Sequence[str], labels: Sequence[int] | None) -> list[Reward]:
    """Rewards of items to the body's query; by the probabilities of labels behind each, where there are any.

    Raises:
        ApiError: a query is to come behind its items, the model reads no labels, or an item has no reward.
    """
    body = request.body
    if body.item_first:
        raise ApiError(400, "the query is the user's turn; leave item_first out", "unsupported", "item_first")
    model = await by_labels(request, labels, body.apply_softmax) if labels else None
    return await request.rewards([example(body.query, item) for item in items], model)


async def generative_score(request: Request[LabelsBody]) -> Any:
    """Scores by tokens of a language model: how probable the first is among label_token_ids."""
    body = request.body
    rewards = await of_items(request, _listed(body.items), body.label_token_ids)
    data = [{"index": place, "object": "score", "score": own.value} for place, own in enumerate(rewards)]
    return {**request.envelope("score"), "data": data, "usage": usage(rewards)}


class RerankBody(Lenient):
    """Answers to one prompt, as rerankers call them."""

    query: Text
    documents: Annotated[list[Text | dict[str, Any]], Field(min_length=1, max_length=MOST, fail_fast=True)]
    top_n: Annotated[int, Field(ge=0, le=MOST)] | None = None
    return_documents: bool | None = None
    raw_scores: bool | None = None

    def texts(self) -> list[str]:
        """The documents' texts.

        Raises:
            ApiError: one has none.
        """
        found = [document.get("text") if isinstance(document, dict) else document for document in self.documents]
        for place, text in enumerate(found):
            if not isinstance(text, str):
                raise ApiError(400, f"document {place} has no text", "invalid_value", f"documents.{place}")
        return found  # type: ignore[return-value]


async def reranked(request: Request[RerankBody]) -> tuple[list[tuple[int, float]], dict[str, int]]:
    """Places and scores, best first, and the tokens that they took."""
    body = request.body
    rewards = await request.rewards([example(body.query, text) for text in body.texts()])
    order = sorted(range(len(rewards)), key=lambda place: -rewards[place].value)
    values = [(place, _activated(request, rewards[place].value)) for place in order]
    return values[: body.top_n or None], usage(rewards)


async def rerank(request: Request[RerankBody]) -> Any:
    """Answers to a prompt, best first; Cohere's, Jina's and vLLM's shape in one."""
    values, used = await reranked(request)
    texts = request.body.texts()
    shown = request.body.return_documents is not False
    return {
        "id": f"score-{request.id}",
        "model": request.name,
        "results": [
            {"index": place, **({"document": {"text": texts[place]}} if shown else {}), "relevance_score": value}
            for place, value in values
        ],
        "usage": used,
        "meta": {
            "billed_units": {"total_tokens": used["total_tokens"]},
            "tokens": {"input_tokens": used["prompt_tokens"]},
        },
    }


class Classified(Shape):
    """The reward of an input: the last of `probs`, behind its objectives."""

    index: int
    label: str
    probs: list[float]
    num_classes: int


class Classes(Envelope):
    """Rewards as vLLM's classes."""

    data: list[Classified]
    usage: Usage


class Pooled(Shape):
    """The reward of an input, or a row for each step; or its numbers in base64, as little-endian float32."""

    index: int
    object: Literal["pooling"]
    data: list[float] | list[list[float]] | str


class Pools(Envelope):
    """Rewards as vLLM's pooled data."""

    data: list[Pooled]
    usage: Usage


class OneScore(Shape):
    """The score of one pair."""

    index: int
    object: Literal["score"]
    score: float


class Scores(Envelope):
    """Scores of pairs."""

    data: list[OneScore]
    usage: Usage


class Document(Shape):
    """A document of the request."""

    text: str


class Relevance(Shape):
    """A document by its place in the request, with its score."""

    index: int
    document: Document | Absent = None
    relevance_score: float


class Billed(Shape):
    """Tokens as Jina bills them."""

    total_tokens: int


class InputTokens(Shape):
    """Tokens as Cohere counts them."""

    input_tokens: int


class Meta(Shape):
    """Tokens in the words of others."""

    billed_units: Billed
    tokens: InputTokens


class Reranked(Shape):
    """Documents, best first."""

    id: str
    model: str
    results: list[Relevance]
    usage: Usage
    meta: Meta


_CLASSES = {
    **enveloped("classify"),
    "data": [{"index": 0, "label": "LABEL_0", "probs": [1.93], "num_classes": 1}],
    "usage": USAGE,
}
_POOLS = {**enveloped("pooling"), "data": [{"index": 0, "object": "pooling", "data": [1.93]}], "usage": USAGE}
_SCORES = {**enveloped("score"), "data": [{"index": 0, "object": "score", "score": 1.93}], "usage": USAGE}
RESULTS = [{"index": 1, "document": {"text": "56"}, "relevance_score": 1.93}]
_BEST = {
    "id": "score-1f0c6a3e-0",
    "model": "my-model",
    "results": RESULTS,
    "usage": USAGE,
    "meta": {"billed_units": {"total_tokens": 42}, "tokens": {"input_tokens": 42}},
}
_RANKED = {"query": "What is 7*8?", "documents": ["54", "56"], "top_n": 1}
_POOLED = {"input": "<s>a finished, templated text</s>", "use_activation": False}

ROUTES = (
    Route("/classify", classify, PoolBody, Gives(Classes, _CLASSES), _POOLED),
    Route("/pooling", pooling, PoolBody, Gives(Pools, _POOLS), _POOLED),
    Route("/score", score, ScoreBody, Gives(Scores, _SCORES), {"text_1": "What is 7*8?", "text_2": ["54", "56"]}),
    Route(
        "/v1/score", score, ScoreBody, Gives(Scores, _SCORES), {"queries": "What is 7*8?", "documents": ["54", "56"]}
    ),
    Route(
        "/generative_scoring",
        generative_score,
        LabelsBody,
        Gives(Scores, _SCORES),
        {"query": "Is 56 = 7*8?", "items": ["Yes"], "label_token_ids": [9693, 2152]},
    ),
    *(
        Route(path, rerank, RerankBody, Gives(Reranked, _BEST), _RANKED)
        for path in ("/rerank", "/v1/rerank", "/v2/rerank")
    ),
)
