"""What benchmarks of pairs share: averages over their parts beside all nulls, calibration, and confounds."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from karat import metrics
from karat.evaluation import _decided, _nulls, _rulers, _sections
from karat.evaluation._common import Judged, judge, length_correlation, lengths_of, overlap_note, scale, spread
from karat.evaluation._decided import Decided
from karat.evaluation._sections import Average, Credits
from karat.evaluation.base import Figure, Result, Scorer, Setup
from karat.metrics import FloatArray
from karat.types import Pair

ACCURACY = "accuracy"
EVERY = Average(ACCURACY, None, "over all pairs; equal rewards are wrong")
MEAN = "accuracy, mean over subsets"


@dataclass(frozen=True, slots=True)
class Plan:
    """What a benchmark of pairs says of itself."""

    name: str
    part_of: Callable[[Pair], str]  # the part of a pair; empty where it has none
    averages: Callable[[Sequence[str]], list[Average]]  # of the parts that were judged, the headline first
    ties: str = "equal rewards are wrong"
    expected: Sequence[str] = ()  # the parts of the whole benchmark


def subset_of(pair: Pair) -> str:
    """The subset that its context names."""
    return str(pair.chosen.context.get("subset") or "")


@dataclass(frozen=True, slots=True)
class Study:
    """Judged pairs."""

    plan: Plan
    items: Sequence[Pair]
    judged: Judged
    rows: Decided
    places: tuple[int, ...]  # [B] of the rows in the items
    setup: Setup


def study(plan: Plan, scorer: Scorer, items: Sequence[Pair], setup: Setup) -> Study:
    """Scores the pairs, and sets aside those without a score or a preference."""
    judged = judge(scorer, items)
    places = tuple(i for i in judged.kept if items[i].preference != 0.5)
    return Study(
        plan, items, judged, _decided.decide([items[i] for i in judged.kept], judged, setup.seed), places, setup
    )


def run(plan: Plan, scorer: Scorer, items: Sequence[Pair], setup: Setup) -> Result:
    """The figures of a benchmark whose pairs are right where the better answer has the higher reward."""
    found = study(plan, scorer, items, setup)
    margins = found.rows.margins
    return result(found, (margins > 0).astype(np.float64), metrics.credit(margins), [])


def result(study: Study, strict: FloatArray, half: FloatArray, more: Sequence[Figure]) -> Result:
    """The result of credits [B] by the benchmark's own rule for ties, and with ties as halves.

    `more` figures of the benchmark's own come behind those of its parts.
    """
    rows, plan = study.rows, study.plan
    parts = [plan.part_of(pair) for pair in rows.pairs]
    nulls, note = _null_credits(study)
    named = [*plan.averages(_sections.present(parts)), *_sections.each(ACCURACY, _sections.present(parts))]
    credits = Credits(strict, nulls, parts, rows.sample)
    found = [each for each in (_sections.found(average, credits) for average in named) if each]
    headline, *others = found
    with_halves = _sections.found(named[0], Credits(half, nulls, parts, rows.sample))
    bins, calibrated, uncalibrated = _decided.calibration(rows, study.setup.output)
    answers, rewards = rows.better + rows.worse, rows.rewards.T.ravel()
    return Result(
        name=plan.name,
        n=len(study.items),
        judged=len(rows.pairs),
        unscored=study.judged.unscored,
        figures=(
            headline.own,
            *([_sections.halves(with_halves.own, headline.own.name)] if with_halves else []),
            headline.lead,
            *(each.own for each in others),
            *more,
            *_where_length(rows, strict),
            *calibrated,
            *_decided.order_effect(rows),
            *length_correlation(lengths_of(answers), rewards),
            *_rulers.markdown_correlation(answers, rewards),
            *spread(rewards),
        ),
        nulls=tuple(null for each in found for null in each.nulls),
        headline=headline.own.name,
        accuracy=headline.own.name,
        unit="pairs",
        scale=scale(study.setup.output),
        tied=len(study.judged.kept) - len(rows.pairs),
        notes=(
            _ties_note(plan, rows),
            *_sections.lost_parts([plan.part_of(pair) for pair in study.items], parts, plan.expected, "pairs"),
            note,
            *uncalibrated,
            *overlap_note(study.items, study.setup.training),
        ),
        arrays={
            "margin": rows.margins,
            "reward": rewards,
            "length": lengths_of(answers),
            "right": np.repeat([1, 0], len(rows.pairs)),
            "credit": _sections.placed(study.places, strict, len(study.items)),
            "part": np.array([plan.part_of(pair) for pair in study.items]),
            **bins,
        },
        mistakes=_decided.mistakes(rows),
    )


def _ties_note(plan: Plan, rows: Decided) -> str:
    ties = int((rows.margins == 0).sum())
    return f"{plan.ties}: {ties} of {len(rows.pairs)} pairs have equal rewards; nulls get half for theirs"


def _null_credits(study: Study) -> tuple[dict[str, FloatArray], str]:
    rows, half = study.rows, len(study.rows.pairs)
    rewards, note = _rulers.null_rewards(rows.better + rows.worse, study.setup)
    margins = {name: reward[:half] - reward[half:] for name, reward in rewards.items()}
    margins |= _rulers.first_margins(rows.pairs)
    return {_nulls.RANDOM: np.full(half, 0.5)} | {name: metrics.credit(each) for name, each in margins.items()}, note


def _where_length(rows: Decided, credit: FloatArray) -> list[Figure]:
    """Accuracy apart for pairs whose better answer is the longer one and the shorter one."""
    gap = lengths_of(rows.better) - lengths_of(rows.worse)
    found = []
    for word, side in (("longer", gap > 0), ("shorter", gap < 0)):
        places = np.flatnonzero(side)
        if rows.sample.weights[places].any():
            found.append(rows.sample.take(places).share(f"accuracy where the better answer is {word}", credit[places]))
    return found
