"""A reward model behind HTTP: the methods of a local one, asked of a `karat serve`.

Only 429, 5xx and broken connections are tried again. An answer that gets no reward is `Unscored`, whatever the reason.
"""

import asyncio
import math
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

import httpx

from karat.rewards._examples import as_one, as_texts, as_two, preferred
from karat.rewards.base import Output, Ranked
from karat.types import BadInput, Example, Prompt, Refused, Result, Reward, Unscored, as_messages

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

CHUNK = 32  # answers to a request
TRIES, WAIT, LONGEST = 6, 0.25, 30.0  # tries of a request; seconds before the second, and before any at most
_MENDS = {
    401: "give api_key",
    403: "give an api_key that may",
    404: "check the URL",
    421: "start it with --allowed-host",
}


class ServerError(Exception):
    """A request that was not answered, after all tries; its text says why."""


class Remote:
    """A model at a URL; see `RewardModel` for its methods. It can be pickled, and used by many threads."""

    def __init__(
        self,
        url: str,
        api_key: str | None = None,
        model: str | None = None,
        options: Mapping[str, Any] | None = None,
        concurrency: int = 8,
        timeout: float = 120.0,
    ) -> None:
        """`options` are those of /v1/reward, such as `weights`. `timeout`: seconds for one try."""
        _check_url(url)
        if not isinstance(concurrency, int) or concurrency < 1:
            raise BadInput(f"concurrency is {concurrency!r}, but it has to be a whole number from 1 up")
        if not isinstance(timeout, int | float) or not 0 < timeout < math.inf:
            raise BadInput(f"timeout is {timeout!r}, but it has to be seconds above 0")
        self.url, self.model, self.options = url.rstrip("/"), model, dict(options or {})
        self.concurrency, self.timeout, self._key = concurrency, timeout, api_key
        self._client = self._opened()
        self._about = self._describe()

    def _opened(self) -> httpx.Client:
        return httpx.Client(**self._settings())

    def _settings(self) -> dict[str, Any]:
        key = {"Authorization": f"Bearer {self._key.strip()}".encode()} if self._key else {}
        limits = httpx.Limits(max_connections=self.concurrency, max_keepalive_connections=self.concurrency)
        # A proxy of the environment is not asked: texts go to the server that was named, and nowhere else.
        return {"headers": key, "timeout": self.timeout, "limits": limits, "trust_env": False}

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_client"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._client = self._opened()

    def _describe(self) -> dict[str, Any]:
        try:
            known = {own["id"]: own for own in self._asked("GET", "/v1/models")["data"] if own["output"]}
        except ServerError as error:
            raise Refused(str(error)) from None
        except (KeyError, TypeError):
            raise Refused(f"{self.url} does not answer as karat serve does; check the URL") from None
        if not known:
            raise Refused(f"{self.url} serves no reward model; check the URL")
        if self.model is None and len(known) > 1:
            raise Refused(f"{self.url} serves {', '.join(known)}; give model")
        if self.model is not None and self.model not in known:
            raise Refused(f"{self.url} does not serve {self.model!r}, but {', '.join(known)}; give one of them")
        found: dict[str, Any] = known[self.model or next(iter(known))]
        return found

    @property
    def output(self) -> Output:
        """What its rewards are."""
        found: Output = self._about["output"]
        return found

    @property
    def at_steps(self) -> bool:
        """Whether its rewards come with those of an answer's steps."""
        return bool(self._about["at_steps"])

    @property
    def compares(self) -> bool:
        """Whether it has no reward for one answer, only for one beside another."""
        return bool(self._about["compares"])

    @property
    def fingerprint(self) -> str:
        """What decides a score beside the text, as the server says it."""
        return f"{self._about['fingerprint']} {sorted(self.options.items())}"

    # The methods of a reward model

    def score(self, prompt: Prompt, responses: Sequence[str], *, strict: bool = False) -> list[Result]:
        """One result per response, in order."""
        messages = as_messages(prompt)
        return list(self.score_many([Example(messages, own) for own in as_texts(responses)], strict=strict))

    def score_many(self, examples: Iterable[Any], *, strict: bool = False) -> Iterator[Result]:
        """One result per example, in order; a few requests are under way at a time."""
        if isinstance(examples, str | Mapping | Example):
            raise BadInput(f"give a list of rows; this is {examples!r:.80}, so put it into a list if it is a row")
        return _strictly(self._in_order(self._chunk, examples), strict)

    def compare_many(self, examples: Iterable[Any], *, strict: bool = False) -> Iterator[Result]:
        """For each example with an `other` answer, the probability that its own is preferred, as the value."""
        return _strictly(self._in_order(self._pairs, examples), strict)

    async def score_async(self, prompt: Prompt, responses: Sequence[str], *, strict: bool = False) -> list[Result]:
        """`score` for programs with an event loop, which goes on meanwhile."""
        return await asyncio.to_thread(partial(self.score, prompt, responses, strict=strict))

    def score_steps(self, prompt: Prompt, steps: Sequence[str]) -> Result:
        """The reward of one answer that is given in steps, with a reward for each of them in `steps`."""
        if not self.at_steps:
            raise Refused("this model has one reward for a whole answer; use score")
        return self._chunk([Example.of_steps(prompt, steps)])[0]

    def compare(self, prompt: Prompt, a: str, b: str) -> float:
        """Probability that `a` is preferred to `b`."""
        return preferred(self.compare_many, prompt, a, b)

    def rank(self, prompt: Prompt, responses: Sequence[str]) -> list[Ranked]:
        """The responses, best first; unscored ones come last, in the order given."""
        responses = as_texts(responses)
        body = {"prompt": _messages(as_messages(prompt)), "candidates": responses, "options": self.options}
        places: list[Ranked] = []

        def read(data: Any) -> list[Result]:
            places.extend(Ranked(own["index"], _result(own, "reward")) for own in data)
            return [own.result for own in places]

        found = self._answered("/v1/rank", body, read, len(responses))
        if sorted(own.number for own in places) == list(range(len(responses))):
            return places
        return [Ranked(place, result) for place, result in enumerate(found)]

    def score_text(self, text: str) -> Result:
        """Score a finished, templated text; its control tokens are read."""
        return self._answered("/v1/reward", {"text": text, "options": self.options}, _rewards, 1)[0]

    def embed(self, texts: Iterable[str]) -> "npt.NDArray[np.float32]":
        """Vectors of texts, float32 [B, D].

        Raises:
            Refused: the model has none, or the server did not give them.
        """
        import numpy as np

        found = self._posted("/v1/embeddings", {"input": list(texts)})
        if isinstance(found, Unscored):
            raise Refused(found.reason)
        return np.array([own["embedding"] for own in found["data"]], dtype=np.float32)

    def close(self) -> None:
        """Let go of the connections; the next request makes new ones."""
        self._client.close()
        self._client = self._opened()

    def __del__(self) -> None:
        if client := self.__dict__.get("_client"):
            client.close()

    # Requests

    def _in_order(self, ask: Callable[[list[Any]], list[Result]], rows: Iterable[Any]) -> Iterator[Result]:
        """Results of rows, chunk by chunk; as many chunks under way as `concurrency`."""
        left = iter(rows)
        with ThreadPoolExecutor(self.concurrency) as threads:
            running: list[Future[list[Result]]] = []
            while True:
                while len(running) < self.concurrency and (chunk := list(islice(left, CHUNK))):
                    running.append(threads.submit(ask, chunk))
                if not running:
                    return
                yield from running.pop(0).result()

    def _chunk(self, rows: list[Any]) -> list[Result]:
        def ask(good: list[Example]) -> list[Result]:
            body = {"items": [_item(own) for own in good], "options": self.options}
            return self._answered("/v1/reward", body, _rewards, len(good))

        return _merged([_example(row) for row in rows], ask)

    def _pairs(self, rows: list[Any]) -> list[Result]:
        def ask(good: list[Example]) -> list[Result]:
            items = [{"prompt": _messages(own.prompt), "a": own.response, "b": own.other} for own in good]
            body = {"items": items, "options": self.options}
            return self._answered("/v1/compare", body, _probabilities, len(good))

        return _merged([_example(as_two(row)) for row in rows], ask)

    def _answered(
        self, path: str, body: dict[str, Any], read: Callable[[Any], list[Result]], count: int
    ) -> list[Result]:
        """`count` results, whatever comes back."""
        found = self._posted(path, body)
        if isinstance(found, Unscored):
            return [found] * count
        try:
            results = read(found["data"])
        except (ValueError, KeyError, TypeError, IndexError, AttributeError):
            results = []
        if len(results) == count:
            return results
        told = f"{self.url} does not answer as karat serve does; check the URL, and both versions"
        return [Unscored(told, failed=True)] * count

    def _posted(self, path: str, body: dict[str, Any]) -> Any:
        """The reply; Unscored where there is none.

        Raises:
            Refused: the server says that no such request can be answered.
        """
        try:
            return self._asked("POST", path, {**body, **({"model": self.model} if self.model else {})})
        except _NoReward as error:
            return error.unscored
        except ServerError as error:
            return Unscored(str(error), failed=True)

    def _asked(self, method: str, path: str, body: Any = None) -> Any:
        for attempt in range(TRIES):
            told = 0.0
            try:
                reply = self._client.request(method, self.url + path, json=body)
            except httpx.HTTPError as error:
                why = f"{self.url} did not answer ({type(error).__name__}); check that the server runs"
            else:
                if reply.status_code == 200:
                    return _read(reply)
                why, told = self._problem(reply), _seconds(reply)
            if attempt + 1 < TRIES:
                time.sleep(min(LONGEST, max(told, WAIT * 2**attempt) * random.uniform(1.0, 1.5)))
        raise ServerError(why)

    def _problem(self, reply: httpx.Response) -> str:
        """What the server says where another try may help; what will not be otherwise is raised."""
        try:
            error = reply.json()["error"]
            said, code = str(error["message"]), error.get("code")
        except (ValueError, KeyError, TypeError):
            said, code = f"{self.url} answered {reply.status_code} and is no karat server", None
        if reply.status_code == 429 or reply.status_code >= 500:
            return said
        if code in ("unscored", "context_length_exceeded"):
            raise _NoReward(Unscored(said, code == "context_length_exceeded"))
        mend = _MENDS.get(reply.status_code)
        raise Refused(f"{said}{f'; {mend}' if mend and mend not in said else ''}")


class _NoReward(ServerError):
    """The only answer of a request has no reward."""

    def __init__(self, unscored: Unscored) -> None:
        super().__init__(unscored.reason)
        self.unscored = unscored


def _check_url(url: Any) -> None:
    """Raise BadInput for what is no server's URL."""
    if not isinstance(url, str) or not url.startswith(("http://", "https://")):
        raise BadInput(f"a server's URL begins with http:// or https://, but got {url!r:.80}")
    try:
        fits = (httpx.URL(url).port or 1) < 65536
    except httpx.InvalidURL:
        fits = False
    if not fits:
        raise BadInput(f"{url!r:.80} is no URL that can be asked; check its host and port")


def _read(reply: httpx.Response) -> Any:
    try:
        return reply.json()
    except ValueError:
        return None  # no reply of karat serve: whoever asked will say so


def _seconds(reply: httpx.Response) -> float:
    try:
        return max(0.0, float(reply.headers.get("retry-after", 0)))
    except ValueError:
        return 0.0


def _example(row: Any) -> Example | Unscored:
    """What can be sent."""
    example = row if isinstance(row, Unscored) else as_one(row)
    if isinstance(example, Unscored):
        return example
    try:
        "".join((example.response, *example.steps, example.other or "", *(m.content for m in example.prompt))).encode()
    except UnicodeEncodeError:
        return Unscored("the text has an unpaired surrogate, which is no Unicode text; repair it")
    return example


def _messages(prompt: Iterable[Any]) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in prompt]


def _merged(read: list[Example | Unscored], ask: Callable[[list[Example]], list[Result]]) -> list[Result]:
    """Results of what could be read, among what could not."""
    good = [own for own in read if isinstance(own, Example)]
    found = iter(ask(good) if good else [])
    return [next(found) if isinstance(own, Example) else own for own in read]


def _rewards(data: Any) -> list[Result]:
    return [_result(item["candidates"][0], "reward") for item in data]


def _probabilities(data: Any) -> list[Result]:
    return [_result(own, "probability") for own in data]


def _item(example: Example) -> dict[str, Any]:
    answer: Any = {"steps": list(example.steps)} if example.steps else example.response
    return {"prompt": _messages(example.prompt), "candidates": [answer]}


def _result(found: Mapping[str, Any], value: str) -> Result:
    if error := found.get("error"):
        too_long, failed = error.get("code") == "context_length_exceeded", error.get("type") == "server_error"
        return Unscored(str(error["message"]), too_long, failed)
    steps, orders, number = found.get("steps"), found.get("orders"), float(found[value])
    if not all(map(math.isfinite, (number, *(steps or ())))):
        raise ValueError(f"{number} is no reward")
    return Reward(
        number,
        None if steps is None else tuple(steps),
        found.get("objectives"),
        found.get("gate"),
        None if orders is None else (orders[0], orders[1]),
        tokens=found["tokens"],
        cached_tokens=found["cached_tokens"],
        truncated=found["truncated"],
        flags=tuple(found["flags"]),
    )


def _strictly(results: Iterator[Result], strict: bool) -> Iterator[Result]:
    for result in results:
        if strict and isinstance(result, Unscored):
            raise Refused(result.reason)
        yield result
