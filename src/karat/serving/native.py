"""karat's own: rewards, comparisons, rankings and what was read, with an error for each answer that has no reward."""

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Iterator
from typing import Annotated, Any, Self

import pydantic_core
from pydantic import Field, model_validator

from karat.engine._load import WorkError
from karat.rewards._among import ROUND_ROBIN, floored
from karat.rewards.base import Ranked, RewardModel
from karat.serving._readout import Name, Options, read_by, readout, scorer, shown
from karat.serving._rows import Outcome, Row, size_of
from karat.serving._shapes import COMPARISONS, MODELS, RANKING, REWARDS, Comparisons, ModelList, Ranking, Rewards
from karat.serving.base import (
    MOST,
    ApiError,
    Gives,
    Reply,
    Request,
    Route,
    Strict,
    Text,
    Texts,
    Turn,
    Turns,
    as_error,
    rows_of_conversation,
    usage,
)
from karat.types import Example, Message, Reward, as_messages

Prompt = Text | Annotated[list[Turn], Field(max_length=MOST, fail_fast=True)]


class Steps(Strict):
    """An answer in its steps."""

    steps: Texts


Candidates = Annotated[list[Text | Steps], Field(min_length=1, max_length=MOST, fail_fast=True)]


class Item(Strict):
    """A prompt and answers to it, or one whole conversation, or a finished text."""

    prompt: Prompt | None = None
    candidates: Candidates | None = None
    messages: Turns | None = None
    text: Text | None = None

    @model_validator(mode="after")
    def _complete(self) -> Self:
        self.check()
        return self

    def check(self) -> None:
        """Raise ValueError where it is not one of the three."""
        given = [name for name in ("prompt", "candidates", "messages", "text") if getattr(self, name) is not None]
        if given not in (["prompt", "candidates"], ["messages"], ["text"]):
            raise ValueError("give prompt and candidates, or messages, or text")

    def rows(self) -> list[Row]:
        """Its answers."""
        if self.text is not None:
            return [self.text]
        if self.messages is not None:
            return [Example(*rows_of_conversation(self.messages))]
        prompt = messages_of(self.prompt or "")
        return [_example(prompt, candidate) for candidate in self.candidates or ()]


class RewardBody(Item):
    """One item at the top, or several as `items`."""

    model: Name | None = None
    items: Annotated[list[Item], Field(min_length=1, max_length=MOST, fail_fast=True)] | None = None
    options: Options = Options()
    stream: bool = False

    def check(self) -> None:
        """Raise ValueError where there is neither or both, or where there are too many answers."""
        if self.items is None:
            super().check()
        elif any(value is not None for value in (self.prompt, self.candidates, self.messages, self.text)):
            raise ValueError("give items, or one item at the top, and not both")
        elif sum(len(item.candidates or "1") for item in self.items) > MOST:
            raise ValueError(f"there are more than {MOST} answers; send fewer at a time")

    def all_items(self) -> list[Item]:
        """What is scored."""
        return [self] if self.items is None else list(self.items)


def messages_of(prompt: Text | list[Turn]) -> tuple[Message, ...]:
    """A prompt as karat's own messages."""
    return as_messages(prompt if isinstance(prompt, str) else [turn.message() for turn in prompt])


def _example(prompt: tuple[Message, ...], candidate: Text | Steps) -> Example:
    return Example(prompt, candidate) if isinstance(candidate, str) else Example.of_steps(prompt, candidate.steps)


async def reward(request: Request[RewardBody]) -> Any:
    """Rewards of answers. Each has a reward or an error; of one answer alone, the error is the reply's."""
    body = request.body
    model = await scorer(request, body.options)
    by_item = [item.rows() for item in body.all_items()]
    if body.stream:
        return Reply(_streamed(request, model, by_item), "application/x-ndjson")
    found = iter(all_found := await request.outcomes([row for rows in by_item for row in rows], model))
    if len(all_found) == 1 and not isinstance(all_found[0], Reward):
        raise as_error(all_found[0])
    own = [[next(found) for _ in rows] for rows in by_item]
    return {
        **request.envelope("reward"),
        "data": [{"index": i, **_answers(outcomes)} for i, outcomes in enumerate(own)],
        "readout": readout(model),
        "usage": usage(all_found),
    }


def _answers(outcomes: list[Outcome]) -> dict[str, Any]:
    """The answers of one item, and which is best."""
    scored = [(o.value, -i) for i, o in enumerate(outcomes) if isinstance(o, Reward)]
    return {"candidates": [shown(o) for o in outcomes], "best": -max(scored)[1] if scored else None}


def _streamed(request: Request[Any], model: RewardModel, by_item: list[list[Row]]) -> AsyncIterator[bytes]:
    """A line for each answer, in order, as soon as it has its reward."""
    places = [(i, j) for i, rows in enumerate(by_item) for j in range(len(rows))]

    async def lines() -> AsyncIterator[bytes]:
        tasks = [asyncio.ensure_future(request.outcomes([by_item[i][j]], model)) for i, j in places]
        try:
            for (i, j), found in zip(places, tasks, strict=True):
                yield _line({"index": i, "candidate": j, **await _shown(found)})
            yield _line({"done": True, "readout": readout(model)})
        finally:
            for task in tasks:
                task.cancel()

    return lines()


async def _shown(found: Awaitable[list[Outcome]]) -> dict[str, Any]:
    try:
        return shown((await found)[0])
    except WorkError as error:
        return {"error": as_error(error).as_json()}


def _line(value: dict[str, Any]) -> bytes:
    return pydantic_core.to_json(value, inf_nan_mode="null") + b"\n"


class Two(Strict):
    """Two answers to a prompt."""

    prompt: Prompt
    a: Text
    b: Text


class CompareBody(Strict):
    """Two answers, or several pairs of them as `items`."""

    model: Name | None = None
    prompt: Prompt | None = None
    a: Text | None = None
    b: Text | None = None
    items: Annotated[list[Two], Field(min_length=1, max_length=MOST // 2, fail_fast=True)] | None = None
    options: Options = Options()

    def pairs(self) -> list[Two]:
        """What is compared.

        Raises:
            ApiError: neither is given.
        """
        if self.items is not None:
            return list(self.items)
        if self.prompt is None or self.a is None or self.b is None:
            raise ApiError(400, "give prompt, a and b, or items of them", "invalid_value")
        return [Two(prompt=self.prompt, a=self.a, b=self.b)]


async def compare(request: Request[CompareBody]) -> Any:
    """The probability that `a` is preferred to `b`; models that read both read them in both orders."""
    pairs = request.body.pairs()
    model = await read_by(request, request.body.options)
    rows = [Example(messages_of(pair.prompt), pair.a, other=pair.b) for pair in pairs]
    size = sum(_size_of_two(row, model.compares) for row in rows)
    found = await request.pipeline.call(lambda: list(model.compare_many(rows)), size, request.deadline)
    if len(found) == 1 and not isinstance(found[0], Reward):
        raise as_error(found[0])
    data = [{"index": i, **_probability(one)} for i, one in enumerate(found)]
    return {**request.envelope("compare"), "data": data, "readout": readout(model), "usage": usage(found)}


def _size_of_two(row: Example, together: bool) -> int:
    """Characters that are read for a comparison: the prompt twice, and the answers where they are read together."""
    return 2 * size_of(row) - (0 if together else len(row.response) + len(row.other or ""))


def _probability(outcome: Outcome) -> dict[str, Any]:
    found = shown(outcome)
    return {"probability": found.pop("reward"), **found} if "reward" in found else found


class RankBody(Strict):
    """Answers to one prompt."""

    model: Name | None = None
    prompt: Prompt
    candidates: Candidates
    top_n: int | None = Field(default=None, ge=1, le=MOST)
    options: Options = Options()


async def rank(request: Request[RankBody]) -> Any:
    """Answers, best first; those of a model that compares have utilities, in logits."""
    body = request.body
    model = await read_by(request, body.options)
    prompt = messages_of(body.prompt)
    found = await _ranked(request, model, [_example(prompt, candidate) for candidate in body.candidates])
    if len(found) == 1 and not isinstance(found[0].result, Reward):
        raise as_error(found[0].result)
    data = [{"index": one.number, "rank": i + 1, **shown(one.result)} for i, one in enumerate(found)]
    return {
        **request.envelope("rank"),
        "data": data[: body.top_n],
        "readout": readout(model),
        "usage": usage([one.result for one in found]),
    }


async def _ranked(request: Request[Any], model: RewardModel, rows: list[Example]) -> list[Ranked]:
    """Answers to a prompt, best first, with their results."""
    if not model.compares:
        return list(_in_order(await request.outcomes(rows, model)))
    prompt, texts = rows[0].prompt, [row.response for row in rows]
    whole, n = sum(len(m.content) for m in prompt), len(texts)
    pairs = n * (n - 1) / 2 if n <= ROUND_ROBIN else n * math.log2(n)  # each is read in both orders
    size = math.ceil(2 * pairs * (whole + 2 * sum(map(len, texts)) / n))
    places: list[Ranked] = await request.pipeline.call(lambda: model.rank(prompt, texts), size, request.deadline)
    return places


def _in_order(found: list[Outcome]) -> Iterator[Ranked]:
    """Best first, those under a floor behind all others, and those without a reward last."""

    def key(place: int) -> tuple[int, float]:
        own = found[place]
        if not isinstance(own, Reward):
            return 2, 0.0
        return int(floored(own.flags)), -own.value

    return (Ranked(place, found[place]) for place in sorted(range(len(found)), key=key))  # type: ignore[arg-type]


async def models(request: Request[Any]) -> Any:
    """The models that are served."""
    data = [_about(name, pipeline.model) for name, pipeline in request.all.items()]
    return {"object": "list", "data": data}


def _about(name: str, model: RewardModel) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": 0,
        "owned_by": "karat",
        "output": model.output,
        "at_steps": model.at_steps,
        "compares": model.compares,
        "fingerprint": getattr(model, "fingerprint", ""),
        "readout": readout(model),
    }


ROUTES = (
    Route(
        "/v1/reward",
        reward,
        RewardBody,
        Gives(Rewards, REWARDS, "application/x-ndjson"),
        {"prompt": "What is 7*8?", "candidates": ["56", "54"]},
    ),
    Route(
        "/v1/compare",
        compare,
        CompareBody,
        Gives(Comparisons, COMPARISONS),
        {"prompt": "What is 7*8?", "a": "56", "b": "54"},
    ),
    Route(
        "/v1/rank",
        rank,
        RankBody,
        Gives(Ranking, RANKING),
        {"prompt": "What is 7*8?", "candidates": ["54", "56"]},
    ),
    Route("/v1/models", models, None, Gives(ModelList, MODELS)),
)
