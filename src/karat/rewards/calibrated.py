"""A reward model whose rewards are corrected afterwards: temperature, platt, isotonic, or length control.

Sources: Guo et al. 2017, arXiv:1706.04599 (temperature); Platt 1999; Zadrozny and Elkan 2002 (isotonic). Length control
takes off the part of the reward that the answer's length explains, as Huang et al. 2024, arXiv:2409.17407, do with a
local regression; here only answers to one prompt are compared, as in Dubois et al. 2024, arXiv:2404.04475, so that
prompts that ask for long answers do not look like a bias.
"""

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, final

import numpy as np
from pydantic import Field

from karat.formats import base as formats
from karat.progress import track
from karat.rewards._calibration import METHODS, How, Rows, Temperature
from karat.rewards._calibration_figures import Change, Verdict, changes, verdict
from karat.rewards._examples import as_example
from karat.rewards._numbers import logistic
from karat.rewards._untrained import Untrained
from karat.rewards._wrapped import Inner, Opener, Part, Wrapped, check_scorer, read_spec, with_values
from karat.rewards.base import Options, Output, Ranked, RewardModel
from karat.types import (
    BadInput,
    Item,
    Labelled,
    Pair,
    Prompt,
    Refused,
    Result,
    Reward,
    Unscored,
    answers_of,
    grouped,
    nearest,
)


class Fitted(Part):
    """What a calibration was fitted on."""

    data: str
    rows: int  # pairs or answers
    prompts: int
    held_out: int  # rows that were kept back to judge it
    unscored: int  # rows with an answer that the model does not score


class CalibratedSpec(Part):
    """`reward_spec.json` of a calibrated model."""

    kind: Literal["calibrated"] = "calibrated"
    model: Inner
    how: How = Field(discriminator="method")
    fitted: Fitted


class CalibratedOptions(Options):
    """There are none."""


@final
class CalibratedKind(Untrained):
    """Learns from nothing."""

    Options = CalibratedOptions
    output: Output = "rating"
    why = "a calibration is not trained; fit one with karat calibrate MODEL DATA --method M --output FOLDER"


KIND = CalibratedKind


class Calibrated(Wrapped):
    """One model's rewards, corrected. A temperature divides objectives too; else they stay, and add up no more."""

    spec: CalibratedSpec

    @property
    def output(self) -> Output:
        """Logits of a temperature, probabilities of a curve; with length control that of the model, if unbounded."""
        if self.spec.how.method == "temperature":
            return "logit"
        if self.spec.how.method != "length":
            return "probability"
        inner = self.models[0].output
        return "rating" if inner == "probability" else inner

    @property
    def at_steps(self) -> bool:
        """Those of a temperature do where the model's do; the other methods were fitted on whole answers."""
        return self.spec.how.method == "temperature" and self.models[0].at_steps

    def compared(self, a: Reward, b: Reward) -> float:
        """For logits the logistic of the lead; for probabilities P(a is right | one is); else who is higher."""
        if self.output == "logit":
            return logistic(a.value - b.value)
        if self.output == "rating" or a.value == b.value:
            return float(a.value > b.value) + 0.5 * (a.value == b.value)
        a_alone, b_alone = a.value * (1 - b.value), b.value * (1 - a.value)
        return a_alone / (a_alone + b_alone)

    def rank(self, prompt: Prompt, responses: Sequence[str]) -> list[Ranked]:
        """The responses, best first, in the model's own order unless length is controlled: rounding ties nothing."""
        if self.spec.how.method == "length":
            return super().rank(prompt, responses)
        return [Ranked(number, self._made([found], None)) for number, found in self.models[0].rank(prompt, responses)]

    def score_text(self, text: str) -> Result:
        """Score a finished, templated text.

        Raises:
            Refused: length is controlled, and where an answer begins is not known.
        """
        if self.spec.how.method == "length":
            raise Refused("in a finished text the answer's length is not known; use score, with prompt and response")
        return super().score_text(text)

    def _made(self, results: Sequence[Result], row: Any) -> Result:
        (found,) = results
        if isinstance(found, Unscored):
            return found
        characters = len(as_example(row).response) if self.spec.how.method == "length" else 0
        steps = tuple(map(self._applied, found.steps or ())) if self.at_steps else None
        own = {name: self._applied(value) for name, value in (found.objectives or {}).items()}
        linear = isinstance(self.spec.how, Temperature)
        named = replace(found, objectives=own or None) if linear else replace(found, gate=None)
        return with_values(named, self._applied(found.value, characters), steps)

    def _applied(self, reward: float, characters: int = 0) -> float:
        with np.errstate(over="ignore"):  # `with_values` says so in words
            return float(self.spec.how.apply(np.array(reward), np.array(float(characters))))


def load(folder: Path, opener: Opener, options: Mapping[str, Any]) -> Calibrated:
    """The calibrated model of a folder."""
    spec = read_spec(CalibratedSpec, folder)
    return Calibrated(spec, [spec.model.open(folder, opener, options)])


# ---------------------------------------------------------------------------------------------- fitting one


class Calibration(NamedTuple):
    """What was fitted, on what, and what it does to rows that it was not fitted on."""

    how: How
    fitted: Fitted
    changes: tuple[Change, ...]  # none where no row was held out
    unscored: dict[str, int]  # reason → rows
    verdict: Verdict | None = None  # None where no row was held out, or rewards say nothing of the figure before

    def spec(self, path: str, folder: Path, options: Mapping[str, Any]) -> CalibratedSpec:
        """As it is kept in `folder`, of the model at `path` that was loaded with `options`."""
        return CalibratedSpec(model=Inner.of(path, folder, options), how=self.how, fitted=self.fitted)

    def summary(self) -> dict[str, Any]:
        """As plain JSON values."""
        figures = {change.name: {k: v for k, v in change._asdict().items() if k != "name"} for change in self.changes}
        own = {"how": self.how.model_dump(), "fitted": self.fitted.model_dump()}
        told = self.verdict and {"word": self.verdict.word, "by": self.verdict.by, "interval": self.verdict.interval}
        return {**own, "figures": figures, "verdict": told, "unscored": self.unscored}


def read_items(data: str, method: str, format: str | None = None) -> list[Item]:
    """The pairs or labelled answers of a data file; says on stderr which rows are not used.

    Raises:
        BadInput: there is no such method, or these are not the rows that it is fitted on.
    """
    if method not in METHODS:
        raise BadInput(f"no method {method!r}{nearest(method, METHODS)}")
    wanted, loaded = METHODS[method].ITEM, formats.load(data, format)
    items = [item for item in loaded.items if isinstance(item, Pair | Labelled) and isinstance(item, wanted)]
    if len(items) < len(loaded.items):
        rows = {Pair: "pairs (prompt, chosen, rejected)", Labelled: "labelled answers (prompt, response, label)"}
        raise BadInput(f"{data} holds other rows than {rows[wanted]}, which {method} is fitted on")
    bad = next((item for item in items if isinstance(item, Labelled) and not 0 <= item.label <= 1), None)
    if bad is not None:
        raise BadInput(
            f"{bad.origin}: label is {bad.label:g}, but {method} needs probabilities from 0 to 1; rescale it"
        )
    for problem in loaded.problems:
        print(f"not used: {problem}", file=sys.stderr)
    return list(items)


def calibrate(
    model: RewardModel, items: Sequence[Item], method: str, data: str = "", held_out: float = 0.5, seed: int = 0
) -> Calibration:
    """A method fitted on the pairs or labelled answers of some prompts, and judged on those of the others.

    Args:
        model: what is corrected.
        items: all of the class that the method is fitted on, as `read_items` gives them.
        method: one of METHODS.
        data: what they are called in the spec.
        held_out: share of the prompts to judge it on, in [0, 1); 0 fits on all of them.
        seed: decides which, and draws the intervals.

    Raises:
        BadInput: the rows do not determine the method, or none can be scored.
        Refused: the model gives no rewards, or ones that the method does not fit.
    """
    check_scorer(model, "this model")
    if method == "temperature" and model.output == "probability":
        raise Refused(
            "a temperature needs rewards without bounds, and these are probabilities; load the model with"
            " activation='identity', or use platt or isotonic on labelled answers"
        )
    own, rest = formats.split_by_prompt(items, held_out, seed)
    (rows, why), (judged, why_not) = _scored(model, own), _scored(model, rest)
    if not rows.labels.size:
        told = next(iter(why), "each has the weight 0")
        raise BadInput(f"none of {len(own)} rows to fit on can be used: {told}")
    how = METHODS[method].fit(rows)
    found_changes = changes(how, judged, model.output, seed) if judged.labels.size else ()
    judgement = verdict(how, judged, model.output, seed, found_changes)
    unscored = Counter(why) + Counter(why_not)
    fitted = Fitted(
        data=data,
        rows=rows.labels.size,
        prompts=len(set(rows.prompts)),
        held_out=judged.labels.size,
        unscored=unscored.total(),
    )
    return Calibration(how, fitted, found_changes, dict(unscored), judgement)


def _scored(model: RewardModel, items: Sequence[Item]) -> tuple[Rows, dict[str, int]]:
    """Rows with a weight of which every answer has a reward, and why others have none."""
    answers = [answers_of(item) for item in items]
    flat = [answer for group in answers for answer in group]
    results = iter(track(model.score_many(flat), len(flat), "scored"))
    found = [[next(results) for _ in group] for group in answers]
    reasons = [next((r.reason for r in group if isinstance(r, Unscored)), None) for group in found]
    kept = [i for i, reason in enumerate(reasons) if reason is None and items[i].weight > 0]
    width = len(answers[0]) if answers else 1
    rows = Rows(
        np.array([[r.value for r in found[i] if isinstance(r, Reward)] for i in kept]).reshape(len(kept), width),
        np.array([[len(a.response) for a in answers[i]] for i in kept], dtype=np.float64).reshape(len(kept), width),
        np.array([_label(items[i]) for i in kept]),
        np.array([items[i].weight for i in kept]),
        [formats.prompt_key(items[i]) for i in kept],
    )
    return rows, {why: len(places) for why, places in grouped(why for why in reasons if why).items()}


def _label(item: Item) -> float:
    return item.preference if isinstance(item, Pair) else item.label if isinstance(item, Labelled) else np.nan
