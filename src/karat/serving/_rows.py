"""What is scored, as callers give it → work for the batcher → what it came to, by the model that each caller asked for.

Work is shared by token ids and reads; heads, weights and options are each caller's own. It knows no threads.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from karat import types
from karat.engine._load import WorkError
from karat.engine._work import Failed, Work
from karat.engine.base import States
from karat.models.render import Rendered
from karat.rewards._local import CHUNK, LocalModel
from karat.rewards._results import Scored, as_result, flagged
from karat.rewards.base import RewardModel
from karat.types import Example, Result, Unscored

Row: TypeAlias = Example | str | tuple[int, ...]  # an answer, a finished text, or its tokens
Outcome: TypeAlias = Result | WorkError


class Computed(NamedTuple):
    """What the engine's thread gives for a sequence."""

    states: States
    numbers_Rk: Tensor | None = None  # of the model's own head; None where others are read than it reads
    scored: Scored | None = None  # by the model's own options; None of embeddings


_Both: TypeAlias = Sequence[tuple[Rendered, Computed]]


def size_of(row: Row) -> int:
    """Characters, and a few more, so that empty answers count as well."""
    if isinstance(row, Example):
        return 16 + len(row.response) + sum(len(m.content) for m in row.prompt) + len(row.other or "")
    return 16 + len(row) * (1 if isinstance(row, str) else 4)


def rendered(model: RewardModel, rows: Sequence[Row]) -> list[Any]:
    """Rows as sequences of a model with an engine of its own, or why there is none; of others as they are."""
    if not isinstance(model, LocalModel):
        return list(rows)
    examples = iter(model.renderer(row for row in rows if isinstance(row, Example)))
    return [next(examples) if isinstance(row, Example) else _finished(model, row) for row in rows]


def _finished(model: LocalModel, row: Any) -> Rendered | Unscored:
    """A text or tokens that the caller has templated."""
    if isinstance(row, str):
        return model.renderer.finished(row)
    if model.spec.reads != ("last",):
        return Unscored(f"this model reads at {model.spec.pooling}, which tokens alone do not say; give a text")
    longest, vocabulary = model.renderer.max_length, len(model.parts.tokenizer)
    if longest is not None and len(row) > longest:
        return Unscored(f"{len(row)} tokens are more than max_length={longest}", over_length=True)
    if not row or not all(0 <= token < vocabulary for token in row):
        return Unscored(f"give at least one token, each from 0 to {vocabulary - 1}")
    return Rendered(types.Sequence(row, {"last": (len(row) - 1,)}))


def work_of(one: Any) -> Work[Any]:
    """A rendered row, or one of a model that is made of others, as work."""
    if isinstance(one, Rendered):
        return Work.of(one.sequence)
    key = repr(one) if isinstance(one, Example) else one  # a mapping in it has no hash
    return Work(one, key, max(1, size_of(one) // 4))


def computed(model: LocalModel, sequences: list[types.Sequence]) -> list[Computed]:
    """In the engine's thread: states, and of what the model itself reads the head's numbers and rewards."""
    found = model.engine.run(sequences)
    if len(found) != len(sequences):
        raise Failed(f"the engine gave {len(found)} states for {len(sequences)} sequences; please report it")
    ours = [place for place, s in enumerate(sequences) if all(name in s.reads for name in model.spec.reads)]
    out = [Computed(states) for states in found]
    for place, own in zip(ours, _scored(model, [sequences[i] for i in ours], [found[i] for i in ours]), strict=True):
        out[place] = own
    return out


def _scored(model: LocalModel, sequences: list[types.Sequence], found: list[States]) -> list[Computed]:
    if not sequences:
        return []
    numbers_Rk = model.numbers_of(sequences, found)
    counts = [len(states[model.spec.pooling]) for states in found]
    scored = [None] * len(found) if model.spec.head.type == "hidden" else model.rewards(numbers_Rk, sequences, found)
    return [Computed(*own) for own in zip(found, torch.split(numbers_Rk, counts), scored, strict=True)]


def outcomes(asked: LocalModel, own: LocalModel, rendered: Sequence[Rendered], found: Sequence[Any]) -> list[Outcome]:
    """What `asked` makes of what was computed for each; `own` is the model whose head was applied."""
    good = [both for both in zip(rendered, found, strict=True) if not isinstance(both[1], WorkError)]
    chunks = [good[start : start + CHUNK] for start in range(0, len(good), CHUNK)]
    made = iter([one for chunk in chunks for one in _read(asked, own, chunk)])
    return [one if isinstance(one, WorkError) else next(made) for one in found]


def _read(asked: LocalModel, own: LocalModel, both: _Both) -> list[Outcome]:
    scored = [computed.scored for _, computed in both if computed.scored] if asked.spec is own.spec else []
    if len(scored) < len(both):
        sequences, states = [r.sequence for r, _ in both], [computed.states for _, computed in both]
        scored = asked.rewards(_numbers(asked, own, both), sequences, states)
    return [_outcome(asked, own, *one) for one in zip(both, scored, strict=True)]


def _outcome(asked: LocalModel, own: LocalModel, both: tuple[Rendered, Computed], scored: Scored) -> Outcome:
    result = as_result(both[0], scored)
    if not isinstance(result, Unscored):
        return flagged(result, asked.spec) if asked.spec.at_least else result
    options = [
        name for name in ("output", "weights", "aggregate") if getattr(asked.spec, name) != getattr(own.spec, name)
    ]
    if options and not result.failed:
        return Unscored(
            f"options: {' and '.join(options)} make {scored.value} of the model's numbers; give smaller ones"
        )
    return Failed(result.reason)  # a fault of the model, not of the answer


def _numbers(asked: LocalModel, own: LocalModel, both: _Both) -> Tensor:
    same = asked.parts.head is own.parts.head and asked.spec.reads == own.spec.reads
    known = [computed.numbers_Rk for _, computed in both if computed.numbers_Rk is not None] if same else []
    if len(known) == len(both):
        return torch.cat(known)
    return asked.numbers_of([r.sequence for r, _ in both], [computed.states for _, computed in both])


def results(model: RewardModel, rows: list[Any]) -> list[Any]:
    """In the engine's thread: results of a model that is made of others."""
    scored = iter(list(model.score_many([row for row in rows if isinstance(row, Example)])))
    return [next(scored) if isinstance(row, Example) else model.score_text(row) for row in rows]
