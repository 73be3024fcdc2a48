"""vLLM's /pooling over HTTP: rows of token ids go there, an array for each comes back, or an error that says why not.

It knows bytes and status codes; nothing of what the arrays mean.
"""

import json
import math
import random
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import httpx
import torch
from torch import Tensor

from karat.engine.base import EngineError
from karat.types import BadInput, KaratError, Refused

TRIES, WAIT, LONGEST = 6, 0.5, 30.0  # tries of a request; seconds before the second, and before any at most
_PATH = "/pooling"
# The activation is a length of 1 for embeddings; the bytes say their shape, which base64 does not.
_ASKED = {"use_activation": False, "encoding_format": "bytes", "embed_dtype": "float32", "endianness": "little"}
_MENDS = {
    401: "set VLLM_API_KEY to a key that it takes",
    403: "set VLLM_API_KEY to a key that may",
    404: "check the URL, and that it is vLLM started with --runner pooling --convert embed",
    501: "start vLLM with --runner pooling --convert embed",
}


class EngineLost(KaratError):
    """The server of an engine does not answer any more, or not as it did; nothing is scored without it."""


class Served(NamedTuple):
    """A model of a server."""

    name: str
    root: str  # the folder or hub id that it was loaded from, as far as the server says it
    longest: int | None  # tokens of a sequence that it takes


class Pooling:
    """A server, and one of its models once `model` is set. Many threads may ask it."""

    def __init__(
        self,
        url: str,
        key: str | None = None,
        connections: int = 8,
        timeout: float = 600.0,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """`timeout`: seconds for one try.

        Raises:
            BadInput: the URL is none.
        """
        if not url.startswith(("http://", "https://")):
            raise BadInput(f"the engine is a server's URL, which begins with http:// or https://, but got {url!r:.80}")
        self.url = url.rstrip("/").removesuffix("/v1")
        self.model = ""
        self._sleep, self._lost = sleep, False
        limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        # A proxy of the environment is not asked: texts go to the server that was named, and nowhere else.
        self._client = httpx.Client(headers=headers, timeout=timeout, limits=limits, trust_env=False)
        weakref.finalize(self, self._client.close)

    def served(self) -> list[Served]:
        """The models that the server says it has.

        Raises:
            EngineLost: it does not answer, or not as vLLM does.
        """
        try:
            rows = self._asked("GET", "/v1/models").json()["data"]
            return [
                Served(str(own["id"]), str(own.get("root") or ""), _whole(own.get("max_model_len"))) for own in rows
            ]
        except (ValueError, KeyError, TypeError, AttributeError):
            raise self._strange("lists no models") from None

    def arrays(self, rows: Sequence[Sequence[int]]) -> list[Tensor]:
        """An array, float32, for each row of token ids; one of its dimensions, or two, is for the model to say.

        Raises:
            EngineError: the server refuses these rows.
            EngineLost: it does not answer, or with something else than an array for each token that was sent.
        """
        reply = self._asked("POST", _PATH, {**_ASKED, "model": self.model, "input": [[*row] for row in rows]})
        try:
            said = json.loads(reply.headers["metadata"])
            read, found = int(said["usage"]["prompt_tokens"]), _arrays(said["data"], reply.content)
        except (ValueError, KeyError, TypeError, IndexError):
            raise self._strange("sends no arrays of float32 with their shapes") from None
        if len(found) != len(rows):
            raise self._strange(f"sends {len(found)} arrays for {len(rows)} rows")
        if read != (sent := sum(map(len, rows))):
            raise self._strange(f"read {read} tokens where {sent} were sent, so it adds or cuts some")
        return found

    def _strange(self, what: str) -> EngineLost:
        return EngineLost(f"the engine at {self.url} {what}; check that it is vLLM 0.30 or newer, and nothing between")

    def _asked(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> httpx.Response:
        """The reply; after the server was lost, a request is tried once until one is answered again."""
        why = ""
        for attempt in range(tries := 1 if self._lost else TRIES):
            told = 0.0
            try:
                reply = self._client.request(method, self.url + path, json=body)
            except httpx.InvalidURL as error:
                raise BadInput(f"{self.url} is no URL ({error}); write http://HOST:PORT") from None
            except httpx.HTTPError as error:
                why = f"did not answer ({type(error).__name__}); see whether it still runs, and come again"
            else:
                self._lost = False
                if reply.status_code == 200:
                    return reply
                why, told = self._problem(reply), _seconds(reply)
            if attempt + 1 < tries:
                self._sleep(min(LONGEST, max(told, WAIT * 2**attempt) * random.uniform(1.0, 1.5)))
        self._lost = True
        raise EngineLost(f"the engine at {self.url} {why}")

    def _problem(self, reply: httpx.Response) -> str:
        """What the server says where another try may help; what will not be otherwise is raised."""
        said, code = _said(reply), reply.status_code
        if code == 429 or (code >= 500 and code not in _MENDS):
            return f"answers {code} ({said}); see its log"
        if code in _MENDS:
            raise Refused(f"the engine at {self.url} answers {code}; {_MENDS[code]}")
        raise EngineError(f"the engine at {self.url} refuses this: {said}")


def _arrays(items: Sequence[Mapping[str, Any]], content: bytes) -> list[Tensor]:
    """The arrays that a body's bytes are, as its items say.

    Raises:
        ValueError: the items are not one after the other, not all of the body, or not what was asked for.
    """
    items = sorted(items, key=lambda own: int(own["index"]))
    edges, found = [0, *(int(own["end"]) for own in items)], []
    if edges[-1] != len(content):
        raise ValueError("another length")
    for own, (start, end) in zip(items, pairwise(edges), strict=True):
        shape = [int(size) for size in own["shape"]]
        if (own["embed_dtype"], own["endianness"], int(own["start"])) != ("float32", "little", start):
            raise ValueError("another type or place")
        if end - start != 4 * math.prod(shape) or min(shape, default=0) < 1:
            raise ValueError("another size")
        found.append(torch.frombuffer(bytearray(content[start:end]), dtype=torch.float32).reshape(shape))
    return found


def _said(reply: httpx.Response) -> str:
    """The message of an error, short enough for a sentence."""
    try:
        found = reply.json()
        found = found.get("error", found)
        text = str(found.get("message", found)) if isinstance(found, Mapping) else str(found)
    except (ValueError, AttributeError):
        text = reply.text
    return " ".join(text.split())[:200] or reply.reason_phrase


def _seconds(reply: httpx.Response) -> float:
    """What the server asks to wait."""
    try:
        asked = float(reply.headers.get("Retry-After", ""))
    except ValueError:
        return 0.0
    return asked if 0 <= asked < math.inf else 0.0


def _whole(number: Any) -> int | None:
    return number if isinstance(number, int) and number > 0 else None
