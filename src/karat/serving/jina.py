"""Jina's rerank, under a base URL of its own; at /v1/rerank vLLM's shape holds the same keys."""

from typing import Any, Literal

from karat.serving.base import Gives, Request, Route, Shape
from karat.serving.vllm import RESULTS, Relevance, RerankBody, reranked


async def rerank(request: Request[RerankBody]) -> Any:
    """Answers to a prompt, best first, as Jina gives them."""
    values, used = await reranked(request)
    texts = request.body.texts()
    shown = request.body.return_documents is not False
    return {
        "model": request.name,
        "object": "list",
        "usage": {"total_tokens": used["total_tokens"], "prompt_tokens": used["prompt_tokens"]},
        "results": [
            {"index": place, "relevance_score": value, **({"document": {"text": texts[place]}} if shown else {})}
            for place, value in values
        ],
    }


class Tokens(Shape):
    """Tokens as Jina counts them."""

    total_tokens: int
    prompt_tokens: int


class JinaRanking(Shape):
    """Documents, best first."""

    model: str
    object: Literal["list"]
    usage: Tokens
    results: list[Relevance]


_USAGE = {"total_tokens": 42, "prompt_tokens": 42}
_GIVES = Gives(JinaRanking, {"model": "my-model", "object": "list", "usage": _USAGE, "results": RESULTS})

ROUTES = (Route("/jina/v1/rerank", rerank, RerankBody, _GIVES, {"query": "What is 7*8?", "documents": ["54", "56"]}),)
