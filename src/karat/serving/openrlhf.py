"""OpenRLHF's remote reward: finished texts of prompt and answer, control tokens and all."""

from typing import Any

from karat.serving.base import Gives, Lenient, Request, Route, Shape, Text, Texts


class RewardBody(Lenient):
    """Finished texts, with the prompts and labels that they came of, which are not read."""

    query: Text | Texts
    prompts: Any = None
    labels: Any = None


async def reward(request: Request[RewardBody]) -> Any:
    """A reward for each text, in order. OpenRLHF has no word for a missing one, so that a failure fails the request."""
    body = request.body
    rewards = await request.rewards([body.query] if isinstance(body.query, str) else list(body.query))
    values = [own.value for own in rewards]
    logs = {f"objective_{name}": [(o.objectives or {})[name] for o in rewards] for name in rewards[0].objectives or {}}
    return {"rewards": values, "scores": values, "extra_logs": logs}


class FactoryBody(Lenient):
    """LLaMA-Factory's: finished texts under the name of messages."""

    messages: Texts


async def factory(request: Request[FactoryBody]) -> Any:
    """LLaMA-Factory's remote reward model, `reward_model_type: api`."""
    return {"scores": [own.value for own in await request.rewards(list(request.body.messages))]}


class TrainerRewards(Shape):
    """TrainerRewards in order, twice, and each objective's for the trainer's log."""

    rewards: list[float]
    scores: list[float]
    extra_logs: dict[str, list[float]]


class TrainerScores(Shape):
    """TrainerRewards in order."""

    scores: list[float]


ROUTES = (
    Route(
        "/get_reward",
        reward,
        RewardBody,
        Gives(TrainerRewards, {"rewards": [1.93], "scores": [1.93], "extra_logs": {}}),
        {"query": ["<s>a finished, templated text</s>"], "prompts": [], "labels": []},
    ),
    Route(
        "/get_reward",
        factory,
        FactoryBody,
        Gives(TrainerScores, {"scores": [1.93]}),
        {"messages": ["<s>a text</s>"]},
        lambda body: "query" not in body and "messages" in body,
    ),
)
