"""What is checked of a request before anything is done for it, and how its body is read. It knows no model."""

import asyncio
import hashlib
import hmac
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import pydantic_core

from karat.serving.base import ApiError

T = TypeVar("T")

_PATIENCE = 0.25  # seconds before a request is watched for its client leaving: most are answered before
_SLOW_BODY = 30.0  # seconds that a body may take to arrive
_NESTED = 500_000  # brackets in a body: what takes far longer to read than its size says
_ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)


@dataclass(frozen=True)
class Settings:
    """How the server is run."""

    key: str | None = None  # that clients have to show; None: nobody has to
    hosts: frozenset[str] | None = None  # names that it may be called by; None: any
    max_body: int = 8 << 20  # bytes
    timeout: float = 120.0  # seconds that a request may take, where it does not say
    literal: bool = False  # answer dialects as their own servers do, where that differs
    log_requests: bool = False

    @cached_property
    def digest(self) -> bytes:
        """Of the key."""
        return hashlib.sha256((self.key or "").encode()).digest()


class Gone(Exception):
    """The client has left."""


class Incoming:
    """A request as it comes in."""

    def __init__(self, scope: Any, receive: Callable[[], Awaitable[Any]]) -> None:
        self.began = time.monotonic()
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        self.receive = receive

    def number(self, else_: str) -> str:
        """What the request calls itself, where that may be written down."""
        said = self.headers.get("x-request-id", "")
        return said if _ID.fullmatch(said) else else_

    @property
    def size(self) -> int:
        """Bytes that the body is said to have; 0 where nothing is said."""
        told = self.headers.get("content-length", "")
        return int(told[:20]) if told.isdigit() else 0

    @property
    def seconds(self) -> float:
        """Since it came in."""
        return time.monotonic() - self.began

    def check_key(self, settings: Settings) -> None:
        """Raise ApiError where the key is not shown. Digests are compared: in constant time, whatever was sent."""
        if settings.key is None:
            return
        scheme, _, shown = self.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            shown = self.headers.get("x-api-key", "")
        if not hmac.compare_digest(hashlib.sha256(shown.strip().encode("latin-1")).digest(), settings.digest):
            raise ApiError(
                401,
                "the key is missing or wrong; send it as Authorization: Bearer KEY",
                "invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )

    def check_host(self, settings: Settings) -> None:
        """Raise ApiError for a name that is not ours: what a web page does that has its name point here."""
        if settings.hosts is None:
            return
        name = re.sub(r":\d*$", "", self.headers.get("host", "").lower())
        if name not in settings.hosts:
            raise ApiError(421, "this server is not called by that name; start it with --allowed-host", "wrong_host")

    def check_method(self, wanted: str) -> None:
        """Raise ApiError for another method; HEAD asks as GET does, and uvicorn leaves the body away."""
        if self.method != wanted and (self.method, wanted) != ("HEAD", "GET"):
            raise ApiError(405, f"use {wanted} here", "method_not_allowed", headers={"Allow": wanted})

    def deadline(self, settings: Settings) -> float:
        """The time of the monotonic clock until which it is to be answered."""
        try:
            seconds = float(self.headers.get("x-request-timeout", settings.timeout))
        except ValueError:
            seconds = -1.0
        if not 0 < seconds <= 86400:
            raise ApiError(400, "X-Request-Timeout is seconds, above 0 and up to 86400", "invalid_value")
        return self.began + min(seconds, settings.timeout)

    async def body(self, settings: Settings) -> dict[str, Any]:
        """The body, which has to be a JSON object."""
        media = self.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media != "application/json":
            raise ApiError(415, "send JSON, with Content-Type: application/json", "unsupported_media_type")
        if self.headers.get("content-encoding", "identity").lower() != "identity":
            raise ApiError(415, "send the body as it is, without Content-Encoding", "unsupported_media_type")
        raw = await self.raw(settings)
        if raw.count(b"[") + raw.count(b"{") > _NESTED:
            raise ApiError(413, "the body has too many lists and objects; send fewer at a time", "too_large")
        try:
            body = pydantic_core.from_json(raw, allow_inf_nan=False)
        except ValueError as error:
            raise ApiError(400, f"the body is no JSON: {str(error)[:200]}", "invalid_json") from None
        if not isinstance(body, dict):
            raise ApiError(400, "the body has to be a JSON object", "invalid_json")
        return body

    async def raw(self, settings: Settings) -> bytes:
        """The body's bytes."""
        if self.size > settings.max_body:
            raise _too_large(settings)
        task, late = asyncio.current_task(), list[bool]()
        assert task is not None
        # asyncio.timeout takes a hundredth of what a small request takes in all.
        timer = asyncio.get_running_loop().call_later(_SLOW_BODY, lambda: late.append(task.cancel()))
        try:
            return await self._parts(settings)
        except asyncio.CancelledError:
            if not late:
                raise
            raise ApiError(408, "the body did not arrive in time", "timeout") from None
        finally:
            timer.cancel()

    async def _parts(self, settings: Settings) -> bytes:
        parts: list[bytes] = []
        size, more = 0, True
        while more:
            event = await self._event()
            parts.append(event.get("body", b""))
            size += len(parts[-1])
            if size > settings.max_body:
                raise _too_large(settings)
            more = event.get("more_body", False)
        return b"".join(parts)

    async def _event(self) -> dict[str, Any]:
        event: dict[str, Any] = await self.receive()
        if event["type"] == "http.disconnect":
            raise Gone
        return event

    async def unless_left(self, work: Awaitable[T]) -> T:
        """What the work gives, which is cancelled when the client leaves before.

        Raises:
            Gone: it has left.
        """
        task = asyncio.current_task()
        assert task is not None
        watching: list[asyncio.Task[None]] = []
        left = False

        async def watch() -> None:
            nonlocal left
            while (await self.receive())["type"] != "http.disconnect":
                pass
            left = True
            task.cancel()

        loop = asyncio.get_running_loop()
        timer = loop.call_later(_PATIENCE, lambda: watching.append(loop.create_task(watch())))
        try:
            return await work
        except asyncio.CancelledError:
            if left:
                raise Gone from None
            raise
        finally:
            timer.cancel()
            for own in watching:
                own.cancel()


def _too_large(settings: Settings) -> ApiError:
    return ApiError(413, f"the body is longer than {settings.max_body} bytes; send less at a time", "too_large")
