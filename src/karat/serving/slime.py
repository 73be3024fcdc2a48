"""slime's remote reward: a prompt and its answer, and a reply that is the bare number."""

from typing import Annotated, Any

from pydantic import Field

from karat.serving.base import MOST, Gives, Lenient, Request, Route, Text, Turn
from karat.types import Example, as_messages


class RewardBody(Lenient):
    """A prompt, as text or as messages, and its answer."""

    prompt: Text | Annotated[list[Turn], Field(max_length=MOST, fail_fast=True)]
    response: Text
    label: Any = None


async def reward(request: Request[RewardBody]) -> Any:
    """The reward alone: the body of the reply is a number."""
    body = request.body
    prompt = body.prompt if isinstance(body.prompt, str) else [turn.message() for turn in body.prompt]
    (found,) = await request.rewards([Example(as_messages(prompt), body.response)])
    return found.value


ROUTES = (
    Route(
        "/slime_reward",
        reward,
        RewardBody,
        Gives(float, 1.93),
        {"prompt": "What is 7*8?", "response": "56", "label": None},
    ),
)
