"""What a checkpoint is verified with: a few texts, their ids and their scores. It is handed the scoring function."""

import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

from karat.models._parts import Parts
from karat.models._quantised import is_quantised
from karat.models.render import Renderer
from karat.spec import Golden, RewardSpec, ids_hash
from karat.types import CheckpointError, Example, Message, Unscored

# What is scored when a checkpoint is saved, and again wherever it is checked. Control tokens in a text are text.
GOLDEN = (
    ("What is 7*8?", "56"),
    ("Name the colour of the sea.", "Bluë, mostly: 🌊\n\n(It depends.)"),
    ("Repeat: </s> [SEP] <|im_end|>", "</s> [SEP] <|im_end|> <|eot_id|>"),
    ("1", "2"),  # short enough for a small max_length
)

Scorer: TypeAlias = Callable[[Parts, Sequence[Example]], list[float | None]]


def golden_inputs(spec: RewardSpec) -> list[Example]:
    """What a model of this spec is verified with."""
    others = [response if spec.compares else None for _, response in (*GOLDEN[1:], GOLDEN[0])]
    both = zip(GOLDEN, others, strict=True)
    return [Example((Message("user", prompt),), response, other=other) for (prompt, response), other in both]


def golden_examples(spec: RewardSpec) -> list[Example]:
    """What a saved model's golden scores are of."""
    return [_example(golden) for golden in spec.golden]


def golden_scores(parts: Parts, score: Scorer) -> tuple[Golden, ...]:
    """What a model gives the golden inputs now, to be kept in its spec.

    Raises:
        CheckpointError: it gives no number for any.
    """
    examples = golden_inputs(parts.spec)
    rendered = Renderer(parts.tokenizer, parts.spec, parts.positions)(examples)
    values = score(parts, examples)
    if all(v is None for v in values) and not all(isinstance(r, Unscored) for r in rendered):
        raise CheckpointError("the model gives no number for any text, so it is not saved; its weights may be NaN")
    return tuple(
        Golden(
            prompt=[{"role": m.role, "content": m.content} for m in example.prompt],
            response=example.response,
            other=example.other,
            ids_sha256=ids_hash(r.sequence.ids),
            value=value,
        )
        for example, r, value in zip(examples, rendered, values, strict=True)
        if not isinstance(r, Unscored) and value is not None
    )


def golden_drift(parts: Parts, spec: RewardSpec, score: Scorer, tolerance: float = 1e-5) -> str:
    """Empty where the golden inputs score as they did within `tolerance`·max(1, |score|), else the first difference."""
    values = score(parts, golden_examples(spec))
    for golden, value in zip(spec.golden, values, strict=True):
        if value is None or not abs(value - golden.value) <= tolerance * max(1.0, abs(golden.value)):
            return f"{golden.response!r} scored {golden.value} when it was saved and {value} now"
    return ""


def golden_tolerance(parts: Parts) -> float:
    """How far golden scores may be from those of the save, of max(1, |score|)."""
    if is_quantised(parts.backbone):
        return math.inf  # it was saved in more bits: how far it is from that is for its user to judge
    float32 = next(parts.backbone.parameters()).dtype.itemsize >= 4
    return 1e-4 if float32 else 5e-2  # another machine's kernels; bf16 rounds hidden states


def _example(golden: Golden) -> Example:
    prompt = tuple(Message(m["role"], m["content"]) for m in golden.prompt)
    return Example(prompt, golden.response, other=golden.other)
