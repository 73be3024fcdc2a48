"""An OpenAI-compatible HTTP endpoint as a language model: completions, or chat whose last message is gone on with.

One request for each sample, as many at a time as `concurrency`. Only 429 and 5xx are tried again. A sample that cannot
be had is `Missing`; what no request of this policy could mend is a PolicyError.
"""

import http.client
import json
import math
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from karat.progress import track
from karat.rewards._sampling import Chances, Drawn, Missing, PolicyError, Sample, Sampling, Start
from karat.types import BadInput

TRIES, WAIT = 5, 0.5  # tries of a request, and seconds before the second; each later wait is twice the one before
LONGEST = 60.0  # seconds between two tries at most, whatever the server asks for
TOP = 20  # most probable tokens that are asked for: what OpenAI and vLLM give at most
# What befalls one request; an endpoint that refuses connections, or whose name is unknown, is down.
_BROKEN = (TimeoutError, ConnectionResetError, ConnectionAbortedError, BrokenPipeError)
_MENDS = {
    401: "set OPENAI_API_KEY to a key that it takes",
    403: "set OPENAI_API_KEY to a key that may use it",
    404: "check the URL, which mostly ends in /v1, and the model's name",
    405: "check the URL, which mostly ends in /v1",
}

T = TypeVar("T")
U = TypeVar("U")


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
        self.fingerprint = f"{self._url} {self._model} {api} {sampling}"

    def sample(self, starts: Sequence[Start]) -> list[list[Drawn]]:
        """For each start one sample or `Missing` per seed."""
        wanted = [(start, seed) for start in starts for seed in start.seeds]
        drawn = iter(self._each(lambda one: self._one(*one), wanted))
        return [[next(drawn) for _ in start.seeds] for start in starts]

    def chances(self, starts: Sequence[Start], words: Sequence[str]) -> list[Chances | Missing]:
        """For each start, the probabilities of words as its first token, as far as they are among the likeliest 20."""
        if self._api != "chat":
            raise PolicyError("probabilities of words are asked of chat endpoints; use api='chat'")
        return self._each(lambda start: self._chances(start, words), starts)

    def _each(self, ask: Callable[[T], U], wanted: Sequence[T]) -> list[U]:
        """Answers to all requests, `concurrency` under way at a time; one that fails for good ends the others."""
        with ThreadPoolExecutor(self._concurrency) as threads:
            try:
                return list(track(threads.map(ask, wanted), len(wanted), "asked"))
            except BaseException:
                threads.shutdown(wait=False, cancel_futures=True)
                raise

    def _chances(self, start: Start, words: Sequence[str]) -> Chances | Missing:
        path, body = self._chat(start)
        # Of a temperature of 1 every server gives the model's own probabilities.
        asked = {"model": self._model, "n": 1, "max_tokens": 1, "temperature": 1.0}
        found = self._asked(path, {**body, **asked, "logprobs": True, "top_logprobs": TOP})
        return found if isinstance(found, Missing) else _read_chances(found, words)

    def _one(self, start: Start, seed: int) -> Drawn:
        path, body = self._chat(start) if self._api == "chat" else self._completion(start)
        body |= {
            "model": self._model,
            "n": 1,
            "seed": seed,
            "temperature": 0.0 if start.greedy else self._sampling.temperature,
            "top_p": self._sampling.top_p,
            "max_tokens": self._sampling.max_tokens,
        }
        if start.stop:  # vLLM's word for keeping the stop text, and SGLang's
            body |= {"stop": list(start.stop), "include_stop_str_in_output": True, "no_stop_trim": True}
        found = self._asked(path, body)
        return found if isinstance(found, Missing) else _read(found, self._api, start.stop)

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
            raise PolicyError(
                f"the endpoint {self._url} has {len(names)} models; choose one with --policy-model NAME,"
                " or of a judge with --name NAME"
            )
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
        why = f"the endpoint {self._url} did not answer within {self._timeout:g} seconds, or broke off"
        return Missing(f"{why}; see whether it still runs", down=True)

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


def check_scheme(word: str) -> None:
    """Raise BadInput for the address of an endpoint without http:// before it."""
    if re.fullmatch(r"[\w.-]+:\d+(/\S*)?", word):
        raise BadInput(f"{word} is neither a folder nor a URL; for an endpoint write http://{word}")


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
    return float(min(max(0.0 if math.isnan(asked) else asked, WAIT * 2.0**attempt), LONGEST))


def _read(found: dict[str, Any], api: str, stop: tuple[str, ...] = ()) -> Drawn:
    """The sample in an answer."""
    try:
        choice = found["choices"][0]
        text = choice["message"]["content"] if api == "chat" else choice["text"]
        reason = choice.get("finish_reason")
    except (KeyError, IndexError, TypeError, AttributeError):
        return Missing("the endpoint's answer has no choice", down=True)
    if not isinstance(text, str) or reason == "content_filter":
        return Missing(f"the endpoint's choice has no text (finish_reason {reason!r})")
    text += _left_out(choice, text, stop)
    tokens, read = (_usage(found, name) for name in ("completion_tokens", "prompt_tokens"))
    return Sample(text, tokens or 0, reason == "length", read or 0, counted=tokens is not None).up_to(stop)


def _left_out(choice: dict[str, Any], text: str, stop: tuple[str, ...]) -> str:
    """The stop text that ended a choice and is not in it.

    vLLM and SGLang say which it was. Servers that do not: if there is a text, it may have been the first, and a policy
    that had ended says nothing when it is asked to go on.
    """
    if choice.get("finish_reason") != "stop" or not stop or any(word in text for word in stop):
        return ""
    for name in ("stop_reason", "matched_stop"):
        if name in choice:
            return str(choice[name]) if choice[name] in stop else ""
    return stop[0] if text.strip() else ""


def _usage(found: dict[str, Any], name: str) -> int | None:
    """Tokens by an answer's own count; None where it has none."""
    usage = found.get("usage")
    tokens = usage.get(name) if isinstance(usage, dict) else None
    return tokens if isinstance(tokens, int) else None


def _read_chances(found: dict[str, Any], words: Sequence[str]) -> Chances | Missing:
    """The probabilities in an answer."""
    try:
        likely = found["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        by_text = [(str(one["token"]).strip(), math.exp(min(0.0, float(one["logprob"])))) for one in likely]
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        return Missing("the endpoint gives no probabilities of tokens (logprobs); read the verdict as text")
    return Chances(
        tuple(sum(p for text, p in by_text if text == word) for word in words), _usage(found, "prompt_tokens") or 0
    )
