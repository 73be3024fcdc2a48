"""The contract of a dialect: which paths it answers, which bodies are its own, and how a body becomes a reply.

A dialect is a file of this folder. Its `ROUTES` are found by listing the folder; where several have a path, the first
whose `claims` says so of the body takes it, and one without `claims` takes what is left.
"""

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Generic, Literal, NamedTuple, TypeAlias, TypeVar

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic.json_schema import SkipJsonSchema

from karat.engine._load import Overloaded, WorkError
from karat.engine._work import Closed, Late
from karat.rewards._local import LocalModel
from karat.rewards.base import RewardModel
from karat.serving._models import Models
from karat.serving._pipeline import Pipeline
from karat.serving._rows import Outcome, Row
from karat.types import Message, Reward, Unscored

MOST = 2048  # answers to a request
KEYS = 4096  # to an object

B = TypeVar("B", bound=BaseModel)

Text = str
# A list is read up to its first fault: of a million faults each would be told apart, in gigabytes.
Texts = Annotated[list[str], Field(min_length=1, max_length=MOST, fail_fast=True)]


def few(given: Any) -> Any:
    """An object as it is; Raises ValueError where there are more keys than any may have, before each is looked at."""
    if isinstance(given, dict) and len(given) > KEYS:
        raise ValueError(f"there are {len(given)} keys; give at most {KEYS}")
    return given


class Strict(BaseModel):
    """A body of karat's own: a key that it does not know is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)  # 0 is not false, and "3" no number
    _few_keys = model_validator(mode="before")(few)


class Lenient(BaseModel):
    """A body of another dialect, whose clients send keys that mean nothing here; so is the model's name."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True, protected_namespaces=())

    model: str | None = Field(default=None, max_length=512)
    truncate_prompt_tokens: int | None = Field(default=None, ge=-1, le=1 << 24)

    @field_validator("truncate_prompt_tokens")
    @classmethod
    def _whole(cls, value: int | None) -> None:
        if value is not None:
            raise ValueError("a text that is cut at either end has another reward; leave it out")


class Turn(Strict):
    """A message of a conversation."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)

    role: Annotated[str, Field(max_length=64)]
    content: str

    def message(self) -> Message:
        """As karat's own."""
        return Message(self.role, self.content)


Turns = Annotated[list[Turn], Field(min_length=1, max_length=MOST, fail_fast=True)]


Absent: TypeAlias = SkipJsonSchema[None]  # of a key that is not always there


class Shape(BaseModel):
    """What a reply holds, for the OpenAPI document; replies themselves are made without it."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class Failure(Shape):
    """What went wrong, and how it is mended."""

    message: str
    type: str
    param: str | None  # the place in the body
    code: str | None


class Error(Shape):
    """OpenAI's shape of an error."""

    error: Failure


class Usage(Shape):
    """Tokens of what was scored."""

    prompt_tokens: int
    total_tokens: int
    completion_tokens: int
    cached_tokens: int  # of these, those that were not computed for this request


class Envelope(Shape):
    """What OpenAI-like replies begin with."""

    id: str
    object: Literal["list"]
    created: int  # seconds since 1970
    model: str


class Gives(NamedTuple):
    """The replies of a route."""

    shape: Any  # a type
    example: Any
    stream: str = ""  # the media type where a stream is asked for


class ApiError(Exception):
    """What a client is told, in OpenAI's shape, and the status that it is told with."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.headers = dict(headers or {})

    @property
    def kind(self) -> str:
        """OpenAI's word for errors of such a status."""
        words = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
        return words.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")

    def as_json(self) -> dict[str, Any]:
        """The error alone, as it stands in a list of results as well."""
        return {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}


class Reply(NamedTuple):
    """What is answered, where it is more than JSON."""

    body: Any
    media: str = "application/json"
    headers: Mapping[str, str] = {}
    status: int = 200


@dataclass
class Request(Generic[B]):
    """One call and what answers it."""

    body: B
    pipeline: Pipeline
    name: str  # the model's, in replies
    id: str
    literal: bool = False  # as the dialect's own server does, where karat's reading is another
    deadline: float | None = None  # of the monotonic clock
    headers: Mapping[str, str] = field(default_factory=dict)
    all: Models = field(kw_only=True)  # every model that is served, by name

    async def outcomes(self, rows: Sequence[Row], model: RewardModel | None = None) -> list[Outcome]:
        """A result or an error for each row.

        Raises:
            ApiError: the model has no rewards.
        """
        check_rewards(model or self.pipeline.model)
        return await self.pipeline.score(rows, model, self.deadline)

    async def rewards(self, rows: Sequence[Row], model: RewardModel | None = None) -> list[Reward]:
        """A reward for each row, for shapes that hold no errors.

        Raises:
            ApiError: a row has none; says which.
        """
        found = await self.outcomes(rows, model)
        return [self._reward(place, one, len(rows)) for place, one in enumerate(found)]

    def _reward(self, place: int, outcome: Outcome, count: int) -> Reward:
        if isinstance(outcome, Reward):
            return outcome
        raise error_of_input(outcome, place, count)

    def envelope(self, prefix: str) -> dict[str, Any]:
        """What OpenAI-like replies begin with."""
        return {"id": f"{prefix}-{self.id}", "object": "list", "created": int(time.time()), "model": self.name}


Handler = Callable[[Request[Any]], Awaitable[Any]]


class Route(NamedTuple):
    """A path and what answers it."""

    path: str
    handler: Handler
    body: type[BaseModel] | None  # None: GET, without one
    gives: Gives
    example: Mapping[str, Any] = {}
    claims: Callable[[Mapping[str, Any]], bool] | None = None
    keyed: bool = False  # nobody may ask for it where the server has no key


def has(*names: str) -> Callable[[Mapping[str, Any]], bool]:
    """Whether a body has all of these keys."""
    return lambda body: all(name in body for name in names)


def check_rewards(model: RewardModel) -> None:
    """Raise ApiError for a model of embeddings: the first number of a vector is no reward."""
    if isinstance(model, LocalModel) and model.spec.head.type == "hidden":
        raise ApiError(400, "this model gives embeddings and no rewards; use /v1/embeddings", "refused")


def as_error(outcome: Unscored | WorkError | Exception) -> ApiError:
    """What a client is told of a failure."""
    if isinstance(outcome, Unscored) and not outcome.failed:
        return ApiError(400, outcome.reason, "context_length_exceeded" if outcome.over_length else "unscored")
    if isinstance(outcome, Overloaded):
        return ApiError(429, str(outcome), "overloaded", headers={"Retry-After": f"{outcome.retry_after:.0f}"})
    if isinstance(outcome, Late):
        return ApiError(504, str(outcome), "deadline_exceeded")
    if isinstance(outcome, Closed):
        return ApiError(503, str(outcome), "unavailable", headers={"Retry-After": "1"})
    return ApiError(500, outcome.reason if isinstance(outcome, Unscored) else str(outcome), "model_failed")


def error_of_input(outcome: Unscored | WorkError, place: int, count: int) -> ApiError:
    """What is told of an input for which a whole request fails; of several it says which."""
    error = as_error(outcome)
    if count > 1:
        error.message = f"input {place}: {error.message}"
    return error


USAGE = {"prompt_tokens": 42, "total_tokens": 42, "completion_tokens": 0, "cached_tokens": 36}  # in examples


def enveloped(prefix: str) -> dict[str, Any]:
    """What examples of OpenAI-like replies begin with."""
    return {"id": f"{prefix}-1f0c6a3e-0", "object": "list", "created": 1767225600, "model": "my-model"}


def usage(rewards: Sequence[Any]) -> dict[str, int]:
    """Tokens of rewards, as OpenAI counts them."""
    tokens = sum(r.tokens for r in rewards if isinstance(r, Reward))
    cached = sum(r.cached_tokens for r in rewards if isinstance(r, Reward))
    return {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0, "cached_tokens": cached}


def rows_of_conversation(turns: Sequence[Turn]) -> tuple[tuple[Message, ...], str]:
    """A conversation as its prompt and its last message.

    Raises:
        ApiError: the last is not the assistant's.
    """
    *prompt, last = [turn.message() for turn in turns]
    if last.role != "assistant":
        raise ApiError(
            400,
            f"the last message is scored and has to be the assistant's, but its role is {last.role!r:.60}",
            "invalid_value",
            "messages",
        )
    return tuple(prompt), last.content
