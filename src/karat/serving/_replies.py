"""Replies on their way out: what is told of an error, and how a reply is sent, whole or as it comes."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import Any

import pydantic_core
from pydantic import ValidationError

from karat.engine._load import WorkError
from karat.engine._work import Closed
from karat.serving._sentences import TOLD, problems
from karat.serving.base import ApiError, Reply, as_error
from karat.types import KaratError

_LOG = logging.getLogger("karat.serving")


_ENDS = as_error(Closed("the server ends before this was done; ask again later"))


def of_error(error: BaseException, number: str) -> Reply:
    """What is told of an exception: of karat's own their text, of others nothing but that there was one."""
    if isinstance(error, ApiError):
        told = error
    elif isinstance(error, WorkError):
        told = as_error(error)
    elif isinstance(error, asyncio.CancelledError):
        told = _ENDS
    elif isinstance(error, KaratError):
        told = ApiError(400, str(error), "refused")
    else:
        _LOG.error("request %s failed: %s", number, type(error).__name__, exc_info=error)
        told = ApiError(500, f"a fault of the server; its log has it under {number}", "internal_error")
    return Reply({"error": told.as_json()}, headers=told.headers, status=told.status)


def unreadable(
    error: ValidationError, body: Mapping[str, Any] | None = None, keys: Mapping[str, str] | None = None
) -> ApiError:
    """What is wrong with a body, of many faults the first few; without the body only its own keys are named.

    `keys` are those that it may have, and where each belongs.
    """
    found = problems(error, body or {}, keys)
    said = [f"{path[:100]}: {sentence}" if path else sentence for path, sentence in found[:TOLD]]
    more = f"; and {len(found) - TOLD} more" if len(found) > TOLD else ""
    return ApiError(400, "; ".join(said)[:600] + more, "invalid_value", found[0][0][:100] or None)


async def send(reply: Reply, send: Callable[[Any], Awaitable[None]], headers: Mapping[str, str]) -> None:
    """A reply, whole or as its parts come."""
    streamed = isinstance(reply.body, AsyncIterator)
    body = b"" if streamed else encoded(reply.body)
    told = {"content-type": reply.media, "x-content-type-options": "nosniff", **headers, **reply.headers}
    if not streamed:
        told["content-length"] = str(len(body))
    if reply.status in (408, 413):
        told["connection"] = "close"  # what is left of the body is not read
    said = [(name.lower().encode(), value.encode()) for name, value in told.items()]
    await send({"type": "http.response.start", "status": reply.status, "headers": said})
    if streamed:
        async with aclosing(reply.body) as parts:
            try:
                async for part in parts:
                    await send({"type": "http.response.body", "body": part, "more_body": True})
            except asyncio.CancelledError:
                await send({"type": "http.response.body", "body": _cut(reply.media)})
                raise
    await send({"type": "http.response.body", "body": body})


def _cut(media: str) -> bytes:
    """What a stream ends with that is given up."""
    told = encoded({"error": _ENDS.as_json()})
    return b"data: " + told + b"\n\n" if media == "text/event-stream" else told + b"\n"


def encoded(body: Any) -> bytes:
    """JSON, or bytes as they are."""
    return body if isinstance(body, bytes) else pydantic_core.to_json(body, inf_nan_mode="null")
