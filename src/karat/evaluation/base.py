"""What an evaluation is: a scorer and items in, a frozen `Result` of figures and nulls out. It knows no model.

A member is a file of this folder without an underscore; it holds `ITEM`, the class it evaluates, `OUTPUTS`, what the
rewards may be, `BY_NAME`, whether it has to be asked for, and `check` and `run`. It may hold `export`, which writes a
result as the benchmark's authors do.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeAlias, cast

import numpy.typing as npt

from karat import members, types
from karat.rewards.base import Output
from karat.types import BadInput, Example, Item, answers_of

Scorer: TypeAlias = Callable[[Sequence[Example]], Sequence[types.Result]]
AnswerOf: TypeAlias = Callable[[Example], str | None]

LEAD = "lead over the best null"


@dataclass(frozen=True, slots=True)
class Figure:
    """One number and how sure it is."""

    name: str
    value: float  # finite; in [0, 1] where the name says accuracy or AUC
    low: float | None = None  # 95 % interval; None where none is computed
    high: float | None = None
    n: int = 0  # rows (or prompts, where the note says so) behind it
    note: str = ""
    percent: bool = False  # a share of rows, shown in per cent
    against: str = ""  # of a null: the name of the figure that it is the null of


@dataclass(frozen=True, slots=True)
class Mistake:
    """An item that was ordered wrongly, for reading."""

    prompt: str
    better: str  # the answer that should have won, or the answer with an outcome
    worse: str  # the answer that did win; empty where there is one answer only
    margin: float  # by how much it was wrong, < 0, in the scale of the result
    origin: str = ""  # "file:line"


@dataclass(frozen=True, slots=True)
class Record:
    """The items of an evaluation, and what the scorer gave for their answers."""

    items: tuple[Item, ...]
    results: tuple[types.Result, ...]  # of all answers, those of one item behind those of the other
    output: Output


@dataclass(frozen=True, slots=True)
class Result:
    """What an evaluation found. n = judged + tied + the sum of `unscored`."""

    name: str  # the evaluation, a file of this folder
    n: int  # items given
    judged: int  # items behind the figures
    unscored: Mapping[str, int]  # reason → items left out of every figure but those whose note says otherwise
    figures: tuple[Figure, ...]
    nulls: tuple[Figure, ...]
    headline: str  # the figure that stands for the whole
    accuracy: str  # the figure that `summary` calls accuracy; empty where there is none
    instead: str = ""  # why the headline is not the figure that it mostly is
    unit: str = "items"  # what n counts
    scale: str = "logits"  # what a mistake's margin is in
    tied: int = 0  # items whose label prefers neither side: left out of every figure
    ties: str = "Ties are wrong for the model and count half for a null."  # what equal rewards are in the accuracy
    notes: tuple[str, ...] = ()
    arrays: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict, compare=False, repr=False)
    mistakes: tuple[Mistake, ...] = field(default=(), repr=False)
    record: Record | None = field(default=None, compare=False, repr=False)

    def figure(self, name: str) -> Figure | None:
        """The figure of that name, or None where the data do not define it."""
        return next((f for f in self.figures if f.name == name), None)

    def nulls_of(self, name: str) -> tuple[Figure, ...]:
        """The nulls of that figure, the best first."""
        return tuple(sorted((f for f in self.nulls if f.against == name), key=lambda f: -f.value))


@dataclass(frozen=True, slots=True)
class Setup:
    """What an evaluation may use besides the scorer and the items."""

    training: Sequence[Item] = ()  # the only items that the n-gram null learns from
    seed: int = 0
    answer_of: AnswerOf | None = None  # the final answer in a response, for the majority vote
    output: Output = "logit"


class Evaluation(Protocol):
    """A member of this folder."""

    ITEM: type[Any]
    OUTPUTS: tuple[Output, ...]
    BY_NAME: bool  # a benchmark with rules of its own: it runs only where it is named

    def check(self, items: Sequence[Any], /) -> None:
        """Raises BadInput for items, all of `ITEM`, that cannot be evaluated whatever their rewards are."""
        ...

    def run(self, scorer: Scorer, items: Sequence[Any], setup: Setup) -> Result:
        """Scores the items, all of `ITEM`, and returns what was found."""
        ...


def names() -> tuple[str, ...]:
    """The evaluations there are, as the user types them."""
    return tuple(members.describe("evaluation"))


def find(name: str) -> Evaluation:
    """The evaluation of that name.

    Raises:
        BadInput: there is none; names the nearest.
    """
    return cast(Evaluation, members.load("evaluation", name, "evaluation"))


def choose(items: Sequence[Item], output: Output = "logit", name: str | None = None) -> Evaluation:
    """The evaluation of such items and rewards, or the one of that name; it needs no rewards.

    Raises:
        BadInput: no items, items of several classes or that the named one does not take, or labels that cannot be
            evaluated.
    """
    kinds = {type(item) for item in items}
    if len(kinds) != 1:
        raise BadInput(
            "the items to evaluate have to be all pairs, all labelled answers, all rankings or all answers in steps,"
            " at least one"
        )
    kind = kinds.pop()
    known = [find(name)] if name else [member for member in map(find, names()) if not member.BY_NAME]
    member = next((m for m in known if m.ITEM is kind and output in m.OUTPUTS), None)
    if member is None:
        raise BadInput(_unfit(kind, output, name))
    member.check(items)
    return member


_OUTPUTS: Mapping[Output, str] = {"logit": "logits", "probability": "probabilities", "rating": "ratings"}
_WORDS: Mapping[type[Item], str] = {
    types.Pair: "pairs",
    types.Labelled: "labelled answers",
    types.Ranking: "rankings",
    types.Stepped: "answers in steps",
    types.Attributed: "answers with ratings of attributes",
}


def _unfit(kind: type[Item], output: Output, name: str | None) -> str:
    """Why such items and rewards cannot be evaluated, or not by the evaluation of that name."""
    others = {other: find(other) for other in names()}
    fit = [other for other, one in others.items() if one.ITEM is kind and output in one.OUTPUTS]
    if name is None or not fit:
        rewards = f"rewards that are {_OUTPUTS[output]}"
        return f"no evaluation takes {_WORDS[kind]} with {rewards}; give other data or another model"
    if others[name].ITEM is kind:
        wanted = " or ".join(_OUTPUTS[own] for own in others[name].OUTPUTS)
        wrong = f"rewards that are {wanted}, and these are {_OUTPUTS[output]}"
    else:
        wrong = f"{_WORDS[others[name].ITEM]}, and these are {_WORDS[kind]}"
    free = " leave the name out, or" if any(not others[other].BY_NAME for other in fit) else ""
    return f"evaluation {name} needs {wrong};{free} use one of {', '.join(fit)}"


def evaluate(
    scorer: Scorer,
    items: Sequence[Item],
    training_items: Sequence[Item] | None = None,
    seed: int = 0,
    *,
    answer_of: AnswerOf | None = None,
    output: Output = "logit",
    name: str | None = None,
) -> Result:
    """Scores the items and returns figures with 95 % intervals beside their nulls.

    Args:
        scorer: called once with all answers; one Reward or Unscored each, in their order.
        items: all pairs, all labelled answers, all rankings or all answers in steps; their class and `output` pick the
            evaluation.
        training_items: what the model was trained on; the n-gram null learns from these and from nothing else.
        seed: of bootstrap, subsampling and vote; the same seed gives the same result.
        answer_of: final answer of a response, for the majority vote of outcomes; default `context["final_answer"]`.
        output: what a reward is: logit, probability in [0, 1], or rating in the labels' unit.
        name: the evaluation, such as a benchmark; None lets the items pick it.

    Raises:
        BadInput: no items, items of several classes, or no item that could be judged.
    """
    given: list[types.Result] = []

    def kept(examples: Sequence[Example]) -> Sequence[types.Result]:
        found = list(scorer(examples))
        given.extend(found)
        return found

    result = choose(items, output, name).run(kept, items, Setup(tuple(training_items or ()), seed, answer_of, output))
    size = sum(len(answers_of(item)) for item in items)  # a benchmark may ask again, behind all answers
    return replace(result, record=Record(tuple(items), tuple(given[:size]), output))


def with_unscored(result: Result, reasons: Sequence[str]) -> Result:
    """A result that also counts items which never reached the scorer, one reason each."""
    unscored = Counter(result.unscored) + Counter(reasons)
    return replace(result, n=result.n + len(reasons), unscored=dict(unscored))


def summary(result: Result) -> dict[str, Any]:
    """The result as plain JSON values.

    `accuracy` (ties wrong) with `accuracy_ci`, the 95 % interval, and `null_accuracy`, the best of its `nulls`; None
    for ratings, which have no accuracy; an interval is None where there is but one prompt;
    `headline`, the name of the main figure, with `lead` and `beats_null` (the whole interval of the lead lies above 0).
    """
    accuracy, nulls = result.figure(result.accuracy), result.nulls_of(result.accuracy)
    lead = result.figure(LEAD)
    return {
        "evaluation": result.name,
        "n": result.n,
        "judged": result.judged,
        "tied": result.tied,
        "unscored": dict(result.unscored),
        "accuracy": accuracy and accuracy.value,
        "accuracy_ci": _ends(accuracy),
        "null_accuracy": nulls[0].value if nulls else None,
        "best_null": nulls[0].name if nulls else None,
        "nulls": {f.name: f.value for f in nulls},
        "headline": result.headline,
        "lead": lead and lead.value,
        "lead_ci": _ends(lead),
        "beats_null": beats_null(result),
        "figures": {f.name: _plain(f) for f in result.figures},
        "nulls_of": {f.name: {g.name: g.value for g in result.nulls_of(f.name)} for f in result.figures},
        "notes": [*([result.instead] if result.instead else []), *result.notes],
    }


def beats_null(result: Result) -> bool | None:
    """Whether the headline's lead over its best null is above 0 with its whole interval; None if that has none."""
    lead = result.figure(LEAD)
    return None if lead is None or lead.low is None else lead.low > 0


def _ends(figure: Figure | None) -> list[float | None] | None:
    return None if figure is None or figure.low is None else [figure.low, figure.high]


def _plain(figure: Figure) -> dict[str, Any]:
    return {"value": figure.value, "low": figure.low, "high": figure.high, "n": figure.n, "note": figure.note}
