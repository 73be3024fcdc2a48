"""Whether a model's scores are those that somebody else has of it, and which classic mistake would explain another.

What others have is a file of texts and scores, or what transformers' own class for the task makes of padded rows.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from transformers import AutoModelForSequenceClassification

from karat import types
from karat.formats import base as formats
from karat.models import backbone as backbones
from karat.models.render import Rendered
from karat.rewards._examples import as_example
from karat.rewards._local import LocalModel
from karat.types import BadInput, Example, KaratError, Refused, Unscored

TOLERANCE = 0.01  # of max(1, |score|): published scores were computed in 16 bits
_EXACT = 1e-3  # how well a changed score has to fit, of the same
_FEWEST = 3  # scores that show a straight line


class Known(NamedTuple):
    """A score that somebody else has."""

    given: Example | str  # or a finished text
    score: float


def read_known(path: str) -> list[Known]:
    """The rows of a file: `text`, or `prompt` and `response`, or `messages`, each with a `score`.

    Raises:
        BadInput: a row is none.
    """
    found = []
    for number, row in formats.rows(path):
        score = row.get("score")
        if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
            raise BadInput(f"{path}:{number}: score is {score!r:.40}, but it has to be a number")
        text = row.get("text")
        try:
            found.append(Known(text if isinstance(text, str) else as_example(row), float(score)))
        except BadInput as error:
            raise BadInput(f"{path}:{number}: {error}") from None
    return found


def compared(local: LocalModel, known: Sequence[Known], tolerance: float = TOLERANCE) -> tuple[bool, str]:
    """Whether the scores are these, and what is found; of others, the mistake that explains them all, if one does."""
    rendered = [_rendered(local, own.given) for own in known]
    if lost := next((own for own in rendered if isinstance(own, Unscored)), None):
        return False, f"a text of the list has no score here: {lost.reason}"
    sequences = [own.sequence for own in rendered if isinstance(own, Rendered)]
    wanted, got = [own.score for own in known], local.values(sequences)
    worst = max(range(len(known)), key=lambda i: _off(got[i], wanted[i]))
    if _off(got[worst], wanted[worst]) <= tolerance:
        return True, f"{len(known)} scores are as given, within {_off(got[worst], wanted[worst]):.1e} of themselves"
    given = f"row {worst + 1} of {len(known)} should score {wanted[worst]:.6g} and scores {got[worst]:.6g} here"
    why = _misread(local, sequences, wanted, tolerance) or explained(got, wanted, tolerance)
    return False, f"{given}; {why or 'no classic mistake explains it: compare template, weights and tokenizer'}"


def explained(got: Sequence[float], wanted: Sequence[float], tolerance: float = _EXACT) -> str:
    """What was done to `wanted` to make `got` of it, or the empty string."""
    both = list(zip(got, wanted, strict=True))
    for change, said in _CHANGES:
        if all((found := change(a, b)) is not None and _off(*found) <= tolerance for a, b in both):
            return said
    return _line(both, tolerance)


def _off(a: float, b: float) -> float:
    return abs(a - b) / max(1.0, abs(b)) if math.isfinite(a) else math.inf


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > -700 else 0.0


# What two scores have to be equal in for a mistake to explain them; None where it cannot.
_CHANGES: tuple[tuple[Callable[[float, float], tuple[float, float] | None], str], ...] = (
    (lambda a, b: (-a, b), "it is turned over: give output=[-1], or take it out"),
    (
        lambda a, b: (a, _sigmoid(b)) if 0 <= a <= 1 else None,
        "a sigmoid was added: the activation has to be identity",
    ),
    (
        lambda a, b: (_sigmoid(a), b) if 0 <= b <= 1 else None,
        "a sigmoid is missing: the activation has to be sigmoid",
    ),
)


def _line(both: Sequence[tuple[float, float]], tolerance: float) -> str:
    """Whether one is the other less a mean and divided by a deviation."""
    xs, ys = [a for a, _ in both], [b for _, b in both]
    mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
    spread = math.fsum((x - mean_x) ** 2 for x in xs)
    if len(both) < _FEWEST or spread <= 1e-12 or not all(map(math.isfinite, xs)):
        return ""
    slope = math.fsum((x - mean_x) * (y - mean_y) for x, y in both) / spread
    start = mean_y - slope * mean_x
    if slope <= 0 or any(_off(slope * x + start, y) > tolerance for x, y in both):
        return ""
    mean, deviation = -start / slope, 1 / slope
    # Five digits: what scores in float32, which differ by machine in the seventh, can tell.
    return f"mean and deviation differ: give scale=[{mean:.5g}, {deviation:.5g}], or restore what config.json held"


# Reading otherwise


def _misread(local: LocalModel, sequences: Sequence[types.Sequence], wanted: Sequence[float], tolerance: float) -> str:
    """The change of the tokens that explains the scores, or the empty string."""
    for said, changed in _readings(local, sequences):
        if all(_off(a, b) <= tolerance for a, b in zip(local.values(changed), wanted, strict=True)):
            return said
    return ""


def _readings(local: LocalModel, sequences: Sequence[types.Sequence]) -> Iterator[tuple[str, Sequence[types.Sequence]]]:
    """Sequences as the classic mistakes have them, and what each is called."""
    if local.spec.pooling != "last" or len(local.spec.reads) > 1:
        return
    tokenizer = local.parts.tokenizer
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    yield "the token before the last was read: its end was taken for padding", [_last(s, s.ids[:-1]) for s in sequences]
    if bos is not None and all(s.ids[0] == bos for s in sequences):
        yield (
            "those texts had two BOS: encode them without special tokens",
            [_last(s, (bos, *s.ids)) for s in sequences],
        )
        yield "those texts had no BOS: the tokenizer left it out", [_last(s, s.ids[1:]) for s in sequences]
    elif bos is not None:
        yield (
            "those texts had a BOS, and here there is none: give a template with it",
            [_last(s, (bos, *s.ids)) for s in sequences],
        )
    if eos is not None:
        yield "those texts ended in EOS: give eos='append'", [_last(s, (*s.ids, eos)) for s in sequences]
        stripped = [
            s.ids[: max(i for i, one in enumerate(s.ids, 1) if one != eos)] for s in sequences if {*s.ids} != {eos}
        ]
        if len(stripped) == len(sequences):
            yield (
                "those texts had no EOS: give eos='as_is'",
                [_last(s, ids) for s, ids in zip(sequences, stripped, strict=True)],
            )


def _last(sequence: types.Sequence, ids: tuple[int, ...]) -> types.Sequence:
    ids = ids or sequence.ids
    return replace(sequence, ids=ids, reads={"last": (len(ids) - 1,)}, type_ids=None)


def _rendered(local: LocalModel, given: Example | str) -> Rendered | Unscored:
    return local.renderer.finished(given) if isinstance(given, str) else local.renderer([given])[0]


def effects(local: LocalModel, sequences: Sequence[types.Sequence]) -> dict[str, float]:
    """By how much each classic mistake moves a score of these at most."""
    own = local.values(sequences)
    found = {}
    for said, changed in _readings(local, sequences):
        moved = [abs(a - b) for a, b in zip(own, local.values(changed), strict=True)]
        found[said.partition(":")[0].removeprefix("those texts ")] = max(moved)
    return found


# Beside transformers


def by_transformers(local: LocalModel, path: str, sequences: Sequence[types.Sequence]) -> tuple[bool, str]:
    """Whether transformers' class for sequences gives the same numbers, in rows padded as its config says."""
    try:
        wanted = _its_scores(path, sequences)
    except (KaratError, ValueError, RuntimeError, IndexError) as error:
        return False, f"transformers' class gives no score: {backbones.first_line(error)}"
    got = local.values(sequences)
    worst = max(map(_off, wanted, got))
    if worst <= _EXACT:
        return True, f"its class for sequences gives the same, within {worst:.1e}, in padded rows"
    why = explained(wanted, got) or "its class reads another token, or has another head: serve this model with karat"
    return False, f"its class for sequences gives other numbers, by {worst:.2g} of a score at most; {why}"


@torch.no_grad()
def _its_scores(path: str, sequences: Sequence[types.Sequence]) -> list[float]:
    folder = backbones.locate(path)
    model, report = backbones.from_pretrained(AutoModelForSequenceClassification, folder)
    if drawn := sorted(report["missing_keys"]):
        raise Refused(f"it has no place for this head, and draws a new {drawn[0]}")
    pad = model.config.get_text_config().pad_token_id
    if pad is None and len(sequences) > 1:
        return [score for own in sequences for score in _of_rows(model, [own], 0)]
    return _of_rows(model, sequences, pad or 0)


def _of_rows(model: Any, sequences: Sequence[types.Sequence], pad: int) -> list[float]:
    width = max(len(s.ids) for s in sequences)
    ids = torch.tensor([[*s.ids, *[pad] * (width - len(s.ids))] for s in sequences])
    mask = torch.tensor([[1] * len(s.ids) + [0] * (width - len(s.ids)) for s in sequences])
    scores: list[float] = model.eval()(input_ids=ids, attention_mask=mask).logits[:, 0].float().tolist()
    return scores
