"""Cohere's rerank at its own paths, with the prefix that its clients are given as a base URL or without."""

from typing import Any

from karat.serving.base import Gives, Request, Route, Shape
from karat.serving.vllm import RESULTS, InputTokens, Relevance, RerankBody, reranked

_EXAMPLE = {"model": "any", "query": "What is 7*8?", "documents": ["54", "56"], "top_n": 1}


async def rerank(request: Request[RerankBody]) -> Any:
    """Answers to a prompt, best first, as Cohere gives them."""
    values, used = await reranked(request)
    texts = request.body.texts()
    shown = request.body.return_documents
    return {
        "id": request.id,
        "results": [
            {"index": place, "relevance_score": value, **({"document": {"text": texts[place]}} if shown else {})}
            for place, value in values
        ],
        "meta": {
            "api_version": {"version": "2"},
            "billed_units": {"search_units": 1},
            "tokens": {"input_tokens": used["prompt_tokens"]},
        },
    }


class Version(Shape):
    """Of Cohere's API."""

    version: str


class Searches(Shape):
    """What Cohere bills."""

    search_units: int


class CohereMeta(Shape):
    """What Cohere tells of a request."""

    api_version: Version
    billed_units: Searches
    tokens: InputTokens


class CohereRanking(Shape):
    """Documents, best first."""

    id: str
    results: list[Relevance]
    meta: CohereMeta


_META = {"api_version": {"version": "2"}, "billed_units": {"search_units": 1}, "tokens": {"input_tokens": 42}}
_GIVES = Gives(CohereRanking, {"id": "1f0c6a3e-0", "results": RESULTS, "meta": _META})

ROUTES = (
    Route("/cohere/v1/rerank", rerank, RerankBody, _GIVES, _EXAMPLE),
    Route("/cohere/v2/rerank", rerank, RerankBody, _GIVES, _EXAMPLE),
)
