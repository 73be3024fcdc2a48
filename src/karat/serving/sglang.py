"""SGLang's: /classify and /encode of finished texts, /v1/score of items, /v1/embeddings that hold a reward."""

from functools import partial
from typing import Annotated, Any, Literal

from pydantic import Field

from karat.rewards._local import LocalModel
from karat.serving._readout import Label
from karat.serving._rows import Row, size_of
from karat.serving.base import (
    USAGE,
    Absent,
    ApiError,
    Gives,
    Lenient,
    Request,
    Route,
    Shape,
    Text,
    Texts,
    Usage,
    error_of_input,
    has,
    usage,
)
from karat.serving.vllm import Ids, Input, ManyIds, of_items, packed, rows_of_input
from karat.types import Example, Reward, Unscored


class TextBody(Lenient):
    """Finished texts, or their tokens."""

    text: Text | Texts | None = None
    input_ids: Ids | ManyIds | None = None

    def rows(self) -> list[Row]:
        """What is scored.

        Raises:
            ApiError: there is nothing.
        """
        given = self.text if self.text is not None else self.input_ids
        if given is None:
            raise ApiError(400, "give text or input_ids", "invalid_value", "text")
        return rows_of_input(given)

    @property
    def single(self) -> bool:
        """Whether one text is given, and no list of them."""
        return isinstance(self.text, str) or bool(self.input_ids and isinstance(self.input_ids[0], int))


async def classify(request: Request[TextBody]) -> Any:
    """Rewards of finished texts, as SGLang's engine gives them: raw."""
    rewards = await request.rewards(request.body.rows())
    found = [{"embedding": _values(own), "meta_info": _meta(request, own)} for own in rewards]
    return found[0] if request.body.single else found


def _values(reward: Reward) -> list[float]:
    return [*(reward.steps or ()), reward.value] if reward.steps is not None else [reward.value]


def _meta(request: Request[Any], reward: Reward) -> dict[str, Any]:
    return {"id": request.id, "prompt_tokens": reward.tokens, "cached_tokens": reward.cached_tokens}


class ItemsBody(Lenient):
    """Items to one query."""

    query: Text
    items: Texts
    label_token_ids: Annotated[list[Label], Field(max_length=64, fail_fast=True)] | None = None
    apply_softmax: bool = False
    item_first: bool = False


async def score(request: Request[ItemsBody]) -> Any:
    """SGLang's score: the query is the user's turn and each item an answer; of label_token_ids, a number for each."""
    body = request.body
    if body.apply_softmax and not body.label_token_ids:
        raise ApiError(400, "a softmax is over labels; give label_token_ids", "invalid_value", "apply_softmax")
    labels = body.label_token_ids
    rewards = await of_items(request, body.items, labels)
    return {
        "scores": [[*own.objectives.values()] if labels and own.objectives else [own.value] for own in rewards],
        "model": request.name,
        "object": "scoring",
        "usage": usage(rewards),
    }


class EmbeddingBody(Lenient):
    """Texts, or tokens of finished ones."""

    input: Input
    encoding_format: Literal["float", "base64"] = "float"  # openai's client asks for base64 unless told


async def embeddings(request: Request[EmbeddingBody]) -> Any:
    """Vectors of an embedding model; of a reward model, each text's reward as its last number, as verl reads it."""
    rows = rows_of_input(request.body.input)
    model = request.pipeline.inside
    if isinstance(model, LocalModel) and model.spec.head.type == "hidden":
        vectors, tokens = await embedded(request, rows)
        used = {"prompt_tokens": tokens, "total_tokens": tokens}
    else:
        rewards = await request.rewards(rows)
        vectors, used = [_values(own) for own in rewards], usage(rewards)
    shown = packed if request.body.encoding_format == "base64" else list
    data = [{"object": "embedding", "index": place, "embedding": shown(own)} for place, own in enumerate(vectors)]
    return {"object": "list", "data": data, "model": request.name, "usage": used}


async def embedded(request: Request[Any], rows: list[Row]) -> tuple[list[list[float]], int]:
    """Vectors of texts, by a model that has them, and the tokens that they took.

    Raises:
        ApiError: the model has rewards, or a row is no text or too long.
    """
    model = request.pipeline.inside
    if not isinstance(model, LocalModel) or model.spec.head.type != "hidden":
        raise ApiError(400, "this model has rewards and no embeddings; use /v1/reward", "refused")
    texts = [row for row in rows if isinstance(row, str)]
    if len(texts) != len(rows):
        raise ApiError(400, "embeddings are made of texts, not of tokens; send texts", "unsupported", "input")
    size = sum(map(size_of, texts))
    found: tuple[list[list[float]], int]
    found = await request.pipeline.call(partial(_vectors, model, texts), size, request.deadline)
    return found


def _vectors(model: LocalModel, texts: list[str]) -> tuple[list[list[float]], int]:
    sequences = []
    for place, one in enumerate(model.renderer(Example((), text) for text in texts)):
        if isinstance(one, Unscored):
            raise error_of_input(one, place, len(texts))
        sequences.append(one.sequence)
    return model.vectors(sequences).tolist(), sum(len(own.ids) for own in sequences)


class About(Shape):
    """What a reward took."""

    id: str
    prompt_tokens: int
    cached_tokens: int


class Embedded(Shape):
    """The reward of a text, behind those of its steps."""

    embedding: list[float]
    meta_info: About


class ItemScores(Shape):
    """A score for each item, or the probabilities of labels."""

    scores: list[list[float]]
    model: str
    object: Literal["scoring"]
    usage: Usage


class Embedding(Shape):
    """A vector, or in base64 its numbers as little-endian float32."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class TextUsage(Shape):
    """Tokens of texts; of rewards, also those that were not computed for this request."""

    prompt_tokens: int
    total_tokens: int
    completion_tokens: int | Absent = None
    cached_tokens: int | Absent = None


class Embeddings(Shape):
    """Vectors of texts, in order."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: TextUsage


_TEXT = {"text": ["<s>a finished, templated text</s>"]}

_ONE = {"embedding": [1.93], "meta_info": {"id": "1f0c6a3e-0", "prompt_tokens": 42, "cached_tokens": 36}}
_CLASSES = Gives(Embedded | list[Embedded], [_ONE])
_SCORES = {"scores": [[-0.41], [1.93]], "model": "my-model", "object": "scoring", "usage": USAGE}
_VECTORS = {
    "object": "list",
    "data": [{"object": "embedding", "index": 0, "embedding": [0.6, -0.8]}],
    "model": "my-model",
    "usage": {"prompt_tokens": 3, "total_tokens": 3},
}

ROUTES = (
    Route("/classify", classify, TextBody, _CLASSES, _TEXT, lambda body: "text" in body or "input_ids" in body),
    Route("/encode", classify, TextBody, _CLASSES, _TEXT),
    Route(
        "/v1/score",
        score,
        ItemsBody,
        Gives(ItemScores, _SCORES),
        {"query": "What is 7*8?", "items": ["54", "56"]},
        has("query", "items"),
    ),
    Route("/v1/embeddings", embeddings, EmbeddingBody, Gives(Embeddings, _VECTORS), {"input": "a text"}),
)
