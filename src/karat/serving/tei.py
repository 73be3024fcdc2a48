"""Text Embeddings Inference's: /predict of finished texts, /rerank of a query's texts, and /embed."""

from typing import Annotated, Any, Literal

from pydantic import Field

from karat.rewards._numbers import logistic
from karat.serving._rows import Row
from karat.serving.base import MOST, Absent, ApiError, Gives, Lenient, Request, Route, Shape, Text, Texts, has
from karat.serving.sglang import embedded
from karat.serving.vllm import example

Pair = Annotated[list[Text], Field(min_length=1, max_length=2, fail_fast=True)]


class _Body(Lenient):
    raw_scores: bool | None = None
    truncate: bool | None = None  # what is too long is an error here, and never cut

    def value(self, request: Request[Any], reward: float) -> float:
        """A reward as it is, but with --literal through TEI's sigmoid unless raw scores are asked for."""
        squashed = request.literal and not self.raw_scores and request.pipeline.model.output == "logit"
        return logistic(reward) if squashed else reward


class PredictBody(_Body):
    """A finished text, a pair of prompt and answer, or a list of either in lists."""

    inputs: Text | Annotated[list[Text | Pair], Field(min_length=1, max_length=MOST, fail_fast=True)]

    def rows(self) -> list[Row]:
        """What is scored: two texts are a prompt and its answer."""
        if isinstance(self.inputs, str):
            return [self.inputs]
        if self.pair:
            return [example(*map(str, self.inputs))]
        return [one if isinstance(one, str) else one[0] if len(one) == 1 else example(*one) for one in self.inputs]

    @property
    def pair(self) -> bool:
        """Whether the list itself is a prompt and its answer."""
        return isinstance(self.inputs, list) and len(self.inputs) == 2 and all(isinstance(i, str) for i in self.inputs)


async def predict(request: Request[PredictBody]) -> Any:
    """The reward of each input as the score of its only label."""
    body = request.body
    rewards = await request.rewards(body.rows())
    found = [[{"score": body.value(request, own.value), "label": "LABEL_0"}] for own in rewards]
    return found[0] if isinstance(body.inputs, str) or body.pair else found


class RankBody(_Body):
    """Answers to one prompt."""

    query: Text
    texts: Texts
    return_text: bool = False


async def rerank(request: Request[RankBody]) -> Any:
    """Answers to a prompt, best first."""
    body = request.body
    rewards = await request.rewards([example(body.query, text) for text in body.texts])
    order = sorted(range(len(rewards)), key=lambda place: -rewards[place].value)
    return [
        {"index": place, "score": body.value(request, rewards[place].value)}
        | ({"text": body.texts[place]} if body.return_text else {})
        for place in order
    ]


class EmbedBody(Lenient):
    """Texts."""

    inputs: Text | Texts
    normalize: Literal[True, False] | None = None


async def embed(request: Request[EmbedBody]) -> Any:
    """Vectors of texts, of an embedding model."""
    body = request.body
    if body.normalize is not None:
        raise ApiError(
            400, "vectors are as the model was loaded, with normalize or without", "unsupported", "normalize"
        )
    vectors, _ = await embedded(request, [body.inputs] if isinstance(body.inputs, str) else list(body.inputs))
    return vectors


class Label(Shape):
    """The reward as the score of the only label."""

    score: float
    label: str


class Place(Shape):
    """A text by its place in the request, with its score."""

    index: int
    score: float
    text: str | Absent = None


_PLACES = [{"index": 1, "score": 1.93}, {"index": 0, "score": -0.41}]

ROUTES = (
    Route(
        "/predict",
        predict,
        PredictBody,
        Gives(list[Label] | list[list[Label]], [{"score": 1.93, "label": "LABEL_0"}]),
        {"inputs": "<s>a finished, templated text</s>", "raw_scores": True},
    ),
    Route(
        "/rerank",
        rerank,
        RankBody,
        Gives(list[Place], _PLACES),
        {"query": "What is 7*8?", "texts": ["54", "56"]},
        has("texts"),
    ),
    Route("/embed", embed, EmbedBody, Gives(list[list[float]], [[0.6, -0.8]]), {"inputs": ["a text"]}),
)
