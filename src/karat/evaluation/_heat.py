"""Solutions with steps coloured by their rewards, for the page: where a reward first drops, and where it should."""

from collections.abc import Iterator
from typing import NamedTuple

from karat import metrics
from karat.evaluation._steps import UNKNOWN, first_wrong, in_classes, label_of, threshold
from karat.evaluation.base import Record, Result
from karat.metrics import sigmoid
from karat.rewards.base import Output
from karat.types import Example, Reward, Stepped, answers_of

SHOWN = 6  # solutions that were judged rightly, and as many that were not
_STRONGEST = 55  # per cent of the colour that a reward at the end of its range has


class Shade(NamedTuple):
    """A step as it is shown."""

    text: str
    reward: float
    right: bool  # by the reward
    strength: int  # per cent of the colour
    label: str  # "labelled right", "labelled wrong", or nothing
    drop: bool  # the first step that the reward takes for wrong


class Heat(NamedTuple):
    """A solution as it is shown."""

    says: str  # what the reward finds, and what the labels say
    prompt: str
    origin: str
    shades: tuple[Shade, ...]


def heats(result: Result) -> list[Heat]:
    """Of the solutions with rewards of steps the first that were judged rightly, and the first that were not."""
    record = result.record
    if record is None or not isinstance(record.items[0], Stepped):
        return []
    found: dict[bool, list[Heat]] = {False: [], True: []}
    for right, heat in _all(record):
        if len(found[right]) < SHOWN:
            found[right].append(heat)
    return [*found[False], *found[True]]


def _all(record: Record) -> Iterator[tuple[bool, Heat]]:
    """Every branch, and whether its first drop is where the labels want it (rightly, where they say nothing)."""
    items = [item for item in record.items if isinstance(item, Stepped)]
    classes, given = in_classes(items), iter(record.results)
    for item in items:
        wanted = first_wrong(item, classes)
        for branch, labels in zip(item.branches, item.labels, strict=True):
            reward = next(given)
            if isinstance(reward, Reward) and reward.steps:
                drop = metrics.first_error(reward.steps, threshold(record.output))
                right = [None if label is None else label_of(label, classes) for label in labels]
                shades = _shades(branch, reward.steps, right, drop, record.output)
                prompt = "\n\n".join(message.content for message in answers_of(item)[0].prompt)
                yield wanted in (drop, None), Heat(_says(drop, wanted), prompt, item.origin, shades)


def _shades(
    branch: Example, rewards: tuple[float, ...], labels: list[float | None], drop: int, output: Output
) -> tuple[Shade, ...]:
    return tuple(
        Shade(text, reward, reward > threshold(output), _strength(reward, output), _label(label), place == drop)
        for place, (text, reward, label) in enumerate(zip(branch.steps, rewards, labels, strict=True))
    )


def _strength(reward: float, output: Output) -> int:
    """None at the threshold, most at a probability of 0 or 1."""
    share = reward if output == "probability" else float(sigmoid(reward))
    return round(_STRONGEST * min(abs(2 * share - 1), 1.0))


def _label(label: float | None) -> str:
    if label is None or label == UNKNOWN:
        return ""
    return "labelled right" if label > UNKNOWN else "labelled wrong"


def _says(drop: int, wanted: int | None) -> str:
    found = "no drop" if drop < 0 else f"first drop at step {drop + 1}"
    if wanted is None:
        return found
    return f"{found}; {'no step is wrong' if wanted < 0 else f'first wrong step {wanted + 1}'}"
