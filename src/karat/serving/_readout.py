"""How a model is read for one request, and how results and what was read are said in replies."""

import hashlib
from collections.abc import Sequence
from typing import Annotated, Any, Literal
from weakref import WeakKeyDictionary

from pydantic import BeforeValidator, Field, FiniteFloat

from karat.rewards._local import LocalModel
from karat.rewards.base import RewardModel
from karat.serving._rows import Outcome
from karat.serving.base import KEYS, ApiError, Request, Strict, as_error, check_rewards, few
from karat.types import Reward

Name = Annotated[str, Field(max_length=200)]
_FLOAT32 = 3.4028234663852886e38
Number = Annotated[FiniteFloat, Field(ge=-_FLOAT32, le=_FLOAT32)]
Numbers = Annotated[dict[Name, Number], BeforeValidator(few), Field(max_length=KEYS)]
Label = Annotated[int, Field(ge=0, lt=1 << 31)]


class Options(Strict):
    """How the model is read, where that is another way than it was loaded: the spec's options by their names.

    `pooling`, `step_token` and `head` (such as "lm_logits:+,-", or ids as "lm_logits:#10,#12") are a request's to say
    where the checkpoint does not.
    """

    activation: Literal["identity", "sigmoid", "softmax"] | None = None
    output: (
        Annotated[int, Field(ge=0, le=4096)] | Annotated[list[Number], Field(max_length=4096, fail_fast=True)] | None
    ) = None
    weights: Numbers | None = None
    at_least: Numbers | None = None
    aggregate: Literal["min", "last", "prod", "mean", "max", "sum"] | None = None
    max_length: int | None = Field(default=None, ge=1, le=1 << 24)
    over_length: Literal["error", "cut_prompt"] | None = None
    pooling: Name | None = None
    step_token: Name | None = None
    head: Name | None = None

    def given(self) -> dict[str, Any]:
        """Those that were said."""
        return {k: tuple(v) if isinstance(v, list) else v for k, v in self if v is not None}


async def read_by(request: Request[Any], options: Options) -> RewardModel:
    """The model by a request's options.

    Raises:
        ApiError: it has no rewards.
        Refused: the options make another model of it.
    """
    model = await request.pipeline.variant(options.given() if options.model_fields_set else {}, request.deadline)
    check_rewards(model)
    return model


async def scorer(request: Request[Any], options: Options) -> RewardModel:
    """The model by a request's options, where it scores single answers.

    Raises:
        ApiError: it has no rewards of them.
        Refused: the options make another model of it.
    """
    model = await read_by(request, options)
    if model.compares:
        raise ApiError(400, "this model compares two answers; use /v1/compare or /v1/rank", "refused")
    return model


async def by_labels(request: Request[Any], labels: Sequence[int], softmax: bool) -> RewardModel:
    """The model as the probabilities of tokens, which sum to 1 over them; each is an objective by the name of `#id`.

    Raises:
        ApiError: it reads no logits, or is asked for something else than a softmax over different labels.
        Refused: its labels are those that it was trained with.
    """
    model = request.pipeline.inside
    if not isinstance(model, LocalModel) or model.spec.head.type != "lm_logits" or model.at_steps:
        told = "this model does not read the logits of tokens where an answer ends"
    elif not softmax:
        told = "probabilities over the whole vocabulary are not computed, so apply_softmax has to be true"
    elif len(set(labels)) != len(labels) or len(labels) < 2:
        told = "a softmax is over two or more different labels"
    else:
        names = tuple(f"#{label}" for label in labels)
        head = f"lm_logits:{','.join(names)}"
        options = {"head": head, "activation": "softmax", "output": 0, "objectives": names}
        return await request.pipeline.variant(options, request.deadline)
    raise ApiError(400, f"{told}; leave label_token_ids out, or say others", "unsupported", "label_token_ids")


def shown(outcome: Outcome) -> dict[str, Any]:
    """A result as JSON."""
    if not isinstance(outcome, Reward):
        return {"error": as_error(outcome).as_json()}
    found: dict[str, Any] = {"reward": outcome.value}
    for name in ("steps", "objectives", "gate", "orders"):
        value = getattr(outcome, name)
        if value is not None:
            found[name] = value
    return found | {
        "tokens": outcome.tokens,
        "cached_tokens": outcome.cached_tokens,
        "truncated": outcome.truncated,
        "flags": list(outcome.flags),
    }


def readout(model: RewardModel) -> dict[str, Any]:
    """What is read, and how it becomes a reward."""
    if not isinstance(model, LocalModel):
        return {"output": model.output}
    if model not in _KNOWN:
        _KNOWN[model] = _readout(model)
    return _KNOWN[model]


_KNOWN: WeakKeyDictionary[LocalModel, dict[str, Any]] = WeakKeyDictionary()  # a template takes long to hash


def _readout(model: LocalModel) -> dict[str, Any]:
    spec = model.spec
    return {
        "kind": spec.kind,
        "head": ":".join([spec.head.type, *([",".join(spec.head.tokens)] if spec.head.tokens else [])]),
        "position": spec.pooling,
        "step_token": spec.render.step_token if model.at_steps else None,
        "activation": spec.activation,
        "output": spec.output,
        "aggregate": spec.aggregate if model.at_steps else None,
        "weights": spec.weights or None,
        "max_length": model.renderer.max_length,
        "over_length": spec.render.over_length,
        "layout": spec.render.layout,
        "template": _template_hash(spec.render.template),
    }


def _template_hash(template: str) -> str:
    return f"sha256:{hashlib.sha256(template.encode()).hexdigest()[:16]}"
