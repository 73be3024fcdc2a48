"""`reward_spec.json`: everything that turns text into a reward and that weights alone do not say. Plain data.

Nothing here loads a model or reads a text; the rooms that do are handed a spec.
"""

import hashlib
import json
import math
import string
from pathlib import Path
from typing import Any, Literal, Self, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from karat.types import BadInput, CheckpointError, nearest

FILE_NAME = "reward_spec.json"
# What users may say of a head, beside `head` itself: its type, and for lm_logits its tokens.
HEAD_NAMES = (
    "outputs",
    "bias",
    "widths",
    "hidden_act",
    "dimensions",
    "normalize",
    "reference",
    "beta",
    "gate_layers",
    "temperature",
)


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Render(_Part):
    """Example → token ids.

    `layout` says where the text comes from: "chat" (the tokenizer's chat template), or a plain layout that `template`
    spells out. Both are Jinja; `template` is kept here in full so that a tokenizer whose template was changed is
    noticed. In "pair" it writes the prompt alone, and the tokenizer joins prompt and answer as two segments.

    Where rewards are read at steps, `step_token` is the text of the mark behind each step ("": none, the step's own
    last token is read). `step_join` says how steps and marks become tokens: "ids" (each by itself, so that nothing
    merges across), "text" (as one text), or "turns" (a step is a user's turn, and a mark the assistant's).

    Where two answers are read together, `pair_template` is the user's message that holds them, in which {context} is
    the conversation before them, each of its turns by `turn_template`. The reward is read where the answer to that
    message would begin. No text may hold one of the templates' own words. Or they are three segments, each with the
    tokenizer's special tokens, behind `pair_tokens` ("#id" is one by its id), where all three are read.
    """

    layout: Literal["chat", "concat", "dialogue", "pair"] = "chat"
    template: str = ""
    eos: Literal["as_is", "append", "require"] = "as_is"
    append: str = ""  # a token, or #id, that stands behind every text, once, and is read there
    max_length: int | None = Field(default=None, ge=1)  # tokens; None: the model's positions
    over_length: Literal["error", "cut_prompt", "cut_end"] = "error"
    step_token: str | None = None
    step_join: Literal["ids", "text", "turns"] = "ids"
    step_template: str = "{step}"  # how a step is written; {n} counts from 1
    between_steps: str = ""  # text between a mark and the next step
    prompt_end: str = ""  # text between the prompt and the first step
    max_completion_length: int | None = Field(default=None, ge=1)  # tokens of all steps and marks; for cut_end
    pair_template: str = ""
    turn_template: str = "\n<turn> {role}\n {content}"
    pair_tokens: tuple[str, ...] = ()  # where prompt and two answers are segments: the token that each begins with

    @field_validator("pair_template")
    @classmethod
    def _names_both(cls, template: str) -> str:
        if template:
            check_fields(template, "context", "a", "b")
        return template

    @field_validator("pair_tokens")
    @classmethod
    def _one_for_each(cls, tokens: tuple[str, ...]) -> tuple[str, ...]:
        if len(tokens) not in (0, 3):
            raise ValueError("it is three tokens: of the prompt, of the first answer, and of the second")
        return tokens

    @field_validator("turn_template")
    @classmethod
    def _names_its_content(cls, template: str) -> str:
        check_fields(template, "role", "content")
        return template


def check_fields(template: str, *names: str) -> None:
    """Raise ValueError where a template does not hold each of these fields once, and no other."""
    found = sorted(name for _, name, _, _ in string.Formatter().parse(template) if name is not None)
    if found != sorted(names):
        wanted = ", ".join(f"{{{name}}}" for name in names)
        raise ValueError(f"it has to hold {wanted} once each and nothing else in braces")


Activation: TypeAlias = Literal["tanh", "gelu", "relu", "selu", "leaky_relu"]


class Head(_Part):
    """Hidden states at the pooled positions → numbers, in float32."""

    type: Literal["linear", "mlp", "lm_logits", "hidden", "log_ratio", "gated", "versus"] = "linear"
    outputs: int = Field(default=1, ge=1)
    tokens: tuple[str, ...] = ()  # of lm_logits: the tokens, or #id, whose logits are the outputs
    bias: bool = False
    widths: tuple[int, ...] = ()  # of the hidden layers of an mlp, or before gated outputs; (): of mlp, one like D
    hidden_act: Activation = "tanh"  # of the hidden layers
    norm: Literal["", "layer"] = ""  # of mlp: of what its hidden layers give
    dimensions: int | None = Field(default=None, ge=1)  # of hidden: the first ones (Matryoshka); None: all
    normalize: bool = False  # of hidden: to length 1
    reference: str = ""  # of log_ratio: the folder or hub id of the model in the denominator; "": none
    beta: float = Field(default=1.0, gt=0)  # of log_ratio: what it is multiplied by
    bins: int | None = Field(default=None, ge=2)  # of gated: an output is the mean over so many bins from 0 to 1
    gate_layers: tuple[int, ...] = ()  # of gated: the widths of the gate's hidden layers
    gate_act: Activation = "relu"  # of those layers
    gate_at: Literal["prompt_end", "same"] = "prompt_end"  # whose state the gate reads: the prompt's end's, or the same
    gate_softmax: bool = True  # whether the gate's weights are shares
    temperature: float = Field(default=1.0, gt=0)  # of gated: what the gate's logits are divided by
    sha256: str = ""  # of the head's tensors, so that a foreign head is noticed


class Golden(_Part):
    """One input with what it gave when the checkpoint was saved."""

    prompt: list[dict[str, str]]
    response: str
    other: str | None = None  # the answer it is compared with, where two are read
    ids_sha256: str
    value: float


class RewardSpec(_Part):
    """How text becomes a reward; the same for training, scoring, serving and evaluation."""

    kind: str
    options: dict[
        str, bool | float | str | tuple[float, ...]
    ] = {}  # what the kind was trained with, where its meaning depends on it
    render: Render = Render()
    pooling: Literal["last", "mean", "cls", "step", "before_step", "answer", "token", "source"] = "last"
    head: Head = Head()
    activation: Literal["identity", "sigmoid", "softmax"] = "identity"
    output: int | tuple[float, ...] = 0  # which output is the reward, or the weight of each
    scale: tuple[float, float] | None = None  # mean and standard deviation: the reward is (value - mean) / deviation
    objectives: tuple[str, ...] = ()  # the names of the outputs, where each is a reward of its own
    weights: dict[str, float] = {}  # of objectives, in the place of a gate or of `output`; 0 for those not named
    at_least: dict[str, float] = {}  # of objectives: an answer below is flagged, and ranked behind those that are not
    aggregate: Literal["min", "last", "prod", "mean", "max", "sum"] = "min"  # rewards of steps → the answer's
    tokenizer_sha256: str = ""
    golden: tuple[Golden, ...] = ()

    @field_validator("scale")
    @classmethod
    def _divides(cls, scale: tuple[float, float] | None) -> tuple[float, float] | None:
        if scale is not None and not (math.isfinite(scale[0]) and math.isfinite(scale[1]) and scale[1] > 0):
            raise ValueError("it is a mean and a standard deviation above 0")
        return scale

    @property
    def at_steps(self) -> bool:
        """Whether rewards are read at the marks of steps."""
        return self.pooling in ("step", "before_step")

    @property
    def compares(self) -> bool:
        """Whether two answers are read together, and a reward is the probability that the first is the better."""
        return bool(self.render.pair_template or self.render.pair_tokens)

    @property
    def reads(self) -> tuple[str, ...]:
        """The names of the reads whose states, one beside the other, the head takes."""
        if self.head.type == "versus":
            return (self.pooling, "first", "second")
        apart = self.head.type == "gated" and self.head.gate_at == "prompt_end"
        return (self.pooling, "prompt_end") if apart else (self.pooling,)

    @property
    def of_tokens(self) -> bool:
        """Whether rewards are sums over an answer's tokens."""
        return self.pooling in ("answer", "token")

    def save(self, folder: Path) -> None:
        """Write `reward_spec.json` into a folder."""
        (folder / FILE_NAME).write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """The spec of a checkpoint folder, or None where it has none.

        Raises:
            CheckpointError: the file is there but is no valid spec.
        """
        path = folder / FILE_NAME
        if not path.is_file():
            return None
        try:
            return cls.model_validate_json(path.read_bytes())
        except ValidationError as error:
            raise CheckpointError(f"{path} is not a valid reward spec: {one_line(error)}") from None

    def with_options(self, **options: Any) -> Self:
        """A copy with some fields replaced, by the flat names that users type (`pooling`, `max_length`, …).

        Raises:
            BadInput: an option is unknown (names the nearest known one) or out of range.
        """
        tree = self.model_dump(exclude_unset=True)
        render, head = tree.setdefault("render", {}), tree.setdefault("head", {})
        homes = {**dict.fromkeys(type(self).model_fields, tree), **dict.fromkeys(Render.model_fields, render)}
        for name, value in options.items():
            if name == "head":
                kind, _, tokens = str(value).partition(":")
                head["type"] = kind
                if tokens:
                    head |= {"tokens": tokens.split(","), "outputs": len(tokens.split(","))}
            elif name in HEAD_NAMES:
                head[name] = value
            elif name in homes and name != "render":
                homes[name][name] = value
            else:
                raise BadInput(f"unknown option {name!r}{nearest(name, homes)}")
        if options.get("layout", self.render.layout) != self.render.layout and "template" not in options:
            render.pop("template", None)  # it was the other layout's
        try:
            return type(self).model_validate(tree)
        except ValidationError as error:
            raise BadInput(f"the options do not make a reward spec: {one_line(error)}") from None


def option_names() -> set[str]:
    """The flat names of what may be said of a spec: all but what is a checkpoint's own."""
    own = {"golden", "tokenizer_sha256", "options", "render"}
    return {*RewardSpec.model_fields, *Render.model_fields, *HEAD_NAMES} - own


def one_line(error: ValidationError) -> str:
    """Pydantic's report as one sentence."""
    parts = []
    for problem in error.errors():
        name = ".".join(str(p) for p in problem["loc"])
        given = "" if problem["type"] in ("missing", "json_invalid") else f" (it is {problem['input']!r:.60})"
        parts.append(f"{name}{': ' if name else ''}{problem['msg'].lower()}{given}")
    return "; ".join(parts)


def ids_hash(ids: Any) -> str:
    """A short fingerprint of a list of token ids."""
    return hashlib.sha256(json.dumps([int(i) for i in ids]).encode()).hexdigest()[:16]
