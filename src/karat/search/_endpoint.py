"""An OpenAI-compatible HTTP endpoint as a policy: completions, or chat whose last message is gone on with.

One request for each sample, as many at a time as `concurrency`. Only 429 and 5xx are tried again. A sample that cannot
be had is `Missing`; what no request of this policy could mend is a PolicyError.
"""

import http.client
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from karat.search.base import Drawn, Missing, PolicyError, Sample, Sampling, Start
from karat.types import BadInput

TRIES, WAIT = 5, 0.5  # tries of a request, and seconds before the second; each later wait is twice the one before
LONGEST = 60.0  # seconds between two tries at most, whatever the server asks for
# What befalls one request; an endpoint that refuses connections, or whose name is unknown, is down.
_BROKEN = (TimeoutError, ConnectionResetError, ConnectionAbortedError, BrokenPipeError)
_MENDS = {
    401: "set OPENAI_API_KEY to a key that it takes",
    403: "set OPENAI_API_KEY to a key that may use it",
    404: "check the URL, which mostly ends in /v1, and the model's name",
    405: "check the URL, which mostly ends in /v1",
}


class Endpoint:
    """An endpoint and one of its models."""

    def __init__(
        self,
        url: str,
        sampling: Sampling,
        model: str | None = None,
        api: str = "chat",
        concurrency: int = 16,
        timeout: float = 600.0,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """`model` may be left out where the endpoint has one only; `timeout` is seconds for one sample."""
        if api not in ("chat", "completions"):
            raise BadInput(f"api is {api!r}, but it has to be chat or completions")
        if concurrency < 1:
            raise BadInput(f"concurrency is {concurrency}, but it has to be at least 1")
        self._url, self._sampling, self._api, self._concurrency = url.rstrip("/"), sampling, api, concurrency
        self._timeout, self._sleep = timeout, sleep
        self._model = model or self._only_model()
        self.fingerprint = f"{self._model} {api} {sampling}"

    def sample(self, starts: Sequence[Start]) -> list[list[Drawn]]:
        """For each start one sample or `Missing` per seed."""
        wanted = [(start, seed) for start in starts for seed in start.seeds]
        with ThreadPoolExecutor(self._concurrency) as threads:
            try:
                drawn = iter(list(threads.map(lambda one: self._one(*one), wanted)))
            except BaseException:
                threads.shutdown(wait=False, cancel_futures=True)
                raise
        return [[next(drawn) for _ in start.seeds] for start in starts]

    def _one(self, start: Start, seed: int) -> Drawn:
        path, body = self._chat(start) if self._api == "chat" else self._completion(start)
        body |= {
            "model": self._model,
            "n": 1,
            "seed": seed,
            "temperature": self._sampling.temperature,
            "top_p": self._sampling.top_p,
            "max_tokens": self._sampling.max_tokens,
        }
        found = self._asked(path, body)
        return found if isinstance(found, Missing) else _read(found, self._api)

    def _chat(self, start: Start) -> tuple[str, dict[str, Any]]:
        """The conversation; a beginning is the assistant's last message, which vLLM and SGLang then go on with."""
        messages = [{"role": m.role, "content": m.content} for m in start.prompt]
        if not start.text:
            return "/chat/completions", {"messages": messages}
        messages.append({"role": "assistant", "content": start.text})
        on = {"continue_final_message": True, "add_generation_prompt": False}
        return "/chat/completions", {"messages": messages, **on}

    def _completion(self, start: Start) -> tuple[str, dict[str, Any]]:
        """The messages and the beginning, one paragraph each, without a template."""
        return "/completions", {"prompt": "\n\n".join([*(m.content for m in start.prompt), start.text])}

    def _only_model(self) -> str:
        found = self._asked("/models", None)
        if isinstance(found, Missing):
            raise PolicyError(
                f"the endpoint {self._url} does not list its models ({found.reason}); give --policy-model"
            )
        rows = found.get("data")
        names = (
            [str(row["id"]) for row in rows if isinstance(row, dict) and "id" in row] if isinstance(rows, list) else []
        )
        if len(names) != 1:
            raise PolicyError(f"the endpoint {self._url} has {len(names)} models; choose one with --policy-model NAME")
        return names[0]

    def _asked(self, path: str, body: dict[str, Any] | None) -> dict[str, Any] | Missing:
        """The JSON object that a request is answered with."""
        missing = Missing("the endpoint was not asked", down=True)
        for attempt in range(TRIES):
            try:
                return self._sent(path, body)
            except urllib.error.HTTPError as error:
                missing = self._refused(error)
                if error.code != 429 and error.code < 500:
                    return missing
                if attempt < TRIES - 1:
                    self._sleep(_pause(error, attempt))
            except (*_BROKEN, http.client.HTTPException):
                return self._broke_off()
            except urllib.error.URLError as error:
                if isinstance(error.reason, _BROKEN):
                    return self._broke_off()
                raise PolicyError(
                    f"the endpoint {self._url} cannot be reached ({error.reason}); start it, or check the URL"
                ) from None
            except ValueError:
                return Missing("the endpoint answered with no JSON object", down=True)
        return missing

    def _broke_off(self) -> Missing:
        return Missing(f"the endpoint did not answer within {self._timeout:g} seconds, or broke off", down=True)

    def _sent(self, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get("OPENAI_API_KEY"):
            headers["Authorization"] = f"Bearer {key}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._url + path, data, headers)
        with urllib.request.urlopen(request, timeout=self._timeout) as answer:
            found = json.loads(answer.read())
        if not isinstance(found, dict):
            raise ValueError("no object")
        return found

    def _refused(self, error: urllib.error.HTTPError) -> Missing:
        """Why there is no sample; raises PolicyError where no other request would get one."""
        if error.code in _MENDS:
            raise PolicyError(f"the endpoint {self._url} answers {error.code}; {_MENDS[error.code]}")
        down = error.code == 429 or error.code >= 500
        return Missing(f"the endpoint answers {error.code}" + ("" if down else f" ({_said(error)})"), down)


def _said(error: urllib.error.HTTPError) -> str:
    """The message of an error's body, short enough for a sentence."""
    try:
        text = error.read(10_000).decode("utf-8", "replace")
    except (OSError, http.client.HTTPException):
        return str(error.reason)
    try:
        found = json.loads(text)
        found = found.get("error", found)
        text = str(found.get("message", text)) if isinstance(found, dict) else str(found)
    except (ValueError, AttributeError):
        pass
    return " ".join(text.split())[:200] or str(error.reason)


def _pause(error: urllib.error.HTTPError, attempt: int) -> float:
    """Seconds to wait: what the server asks for, else twice as long each time."""
    try:
        asked = float(error.headers.get("Retry-After", ""))
    except ValueError:
        asked = 0.0
    return float(min(max(asked, WAIT * 2.0**attempt), LONGEST))


def _read(found: dict[str, Any], api: str) -> Drawn:
    """The sample in an answer."""
    try:
        choice = found["choices"][0]
        text = choice["message"]["content"] if api == "chat" else choice["text"]
        reason = choice.get("finish_reason")
    except (KeyError, IndexError, TypeError, AttributeError):
        return Missing("the endpoint's answer has no choice", down=True)
    if not isinstance(text, str) or reason == "content_filter":
        return Missing(f"the endpoint's choice has no text (finish_reason {reason!r})")
    usage = found.get("usage")
    tokens = usage.get("completion_tokens") if isinstance(usage, dict) else None
    return Sample(text, tokens if isinstance(tokens, int) else 0, cut=reason == "length")
