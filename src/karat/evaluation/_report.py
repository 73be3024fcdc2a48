"""One HTML file that says what was found and how far to trust it; it opens from disk and loads nothing.

Every text on the page is escaped by the template, JSON included, and a content security policy lets only the two
scripts of this module run.
"""

import base64
import hashlib
import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from karat.evaluation import _charts
from karat.evaluation._charts import Chart
from karat.evaluation._heat import heats
from karat.evaluation.base import LEAD, Figure, Result, beats_null

_PROPER = ("Spearman", "Pearson", "RewardBench", "RM-Bench")  # names that keep their capital within a sentence
_CUT = 1200  # characters of a text on the page


@dataclass(frozen=True, slots=True)
class DataNote:
    """What became of the rows of one data set."""

    name: str
    used: int
    dropped: Mapping[str, int] = field(default_factory=dict)  # reason → rows
    cut: int = 0  # rows of which part of the prompt was cut
    tied: int = 0  # rows that prefer neither answer
    note: str = ""  # where it came from, its licence, how it was split


@dataclass(frozen=True, slots=True)
class Report:
    """What goes on the page."""

    title: str
    results: Sequence[Result]
    losses: Sequence[tuple[int, float]] = ()  # (step, training loss)
    evaluations: Mapping[str, Sequence[tuple[int, float]]] = field(default_factory=dict)  # name → (step, value)
    data: Sequence[DataNote] = ()
    settings: Mapping[str, object] = field(default_factory=dict)


def write(report: Report, path: str | Path) -> Path:
    """Writes the report as one self-contained HTML file and returns its path."""
    target = Path(path)
    target.write_text(html(report), encoding="utf-8")
    return target


def picture(result: Result, path: str | Path) -> Path:
    """Writes the main charts of a result as one PNG, for a README, and returns its path."""
    _charts.picture(result, str(path))
    return Path(path)


def html(report: Report) -> str:
    """The page. About 1 MB, nearly all of it the chart library, which is on it once."""
    jinja: Any = importlib.import_module("jinja2")
    environment = jinja.Environment(autoescape=True, undefined=jinja.StrictUndefined, trim_blocks=True)
    environment.filters["cut"] = cut
    scripts = (_bundle(), resource("_report.js"))
    page = environment.from_string(resource("_report.html")).render(
        report=report,
        parts=[_part(result) for result in report.results],
        training=_training(report),
        bundle=Trusted(scripts[0]),
        boot=Trusted(scripts[1]),
        script_hashes=Trusted(" ".join(_hash(script) for script in scripts)),
    )
    return str(page)


def verdict(result: Result) -> str:
    """The headline against its best null in one paragraph; says plainly if it does not beat it."""
    own, ahead, nulls = result.figure(result.headline), result.figure(LEAD), result.nulls_of(result.headline)
    if own is None:
        return "There is no headline figure."
    first = f"On {result.judged:,} {result.unit} the {_named(own)} is {_value(own)}{_within(own)}."
    first += f" There is {result.instead}." if result.instead else ""
    if not nulls or ahead is None:
        return first
    ignorant = "judges no step" if result.unit == "solutions" else "knows nothing of quality"
    second = f"The best scorer that {ignorant}, “{nulls[0].name}”, gets {_value(nulls[0])}."
    return f"{first} {second} {_compared(result, ahead)}{_best_of_words(result)}"


def tie(result: Result) -> str:
    """Why items that are tied were left out."""
    if result.unit == "solutions":
        return "no label of theirs says right or wrong"
    neither = "is exactly 0.5, neither right nor wrong" if result.unit == "answers" else "prefers no answer"
    return f"their label {neither}"


def _compared(result: Result, ahead: Figure) -> str:
    side = "leads" if ahead.value >= 0 else "is behind"
    if ahead.low is None or ahead.high is None:
        gap = _points(abs(ahead.value), ahead)
        return f"The model {side} by {gap}, on one prompt: from that, no claim can be made, so give more prompts."
    low, high = sorted((abs(ahead.low), abs(ahead.high)))
    clear = ahead.low * ahead.high > 0
    ends = f"{_number(low, ahead)} to {_number(high, ahead)}" if clear else _interval(ahead)
    gap = f"{_points(abs(ahead.value), ahead)} (95% interval {ends})"
    if beats_null(result):
        return f"The model leads by {gap}: it beats its null."
    if ahead.high < 0:
        return f"The model is behind by {gap}: it does worse than its null."
    return f"The model {side} by {gap}, an interval that includes 0: it does not beat its null."


def _best_of_words(result: Result) -> str:
    best = next((f for f in result.figures if f.name.startswith("best-of-")), None)
    if best is None:
        return ""
    nulls = ", ".join(f"{f.name} {_value(f)}" for f in result.nulls_of(best.name))
    n = best.name.removeprefix("best-of-")
    return f" Keeping the best-scored of {n} answers is right for {_value(best)} of prompts ({nulls})."


def _part(result: Result) -> dict[str, Any]:
    compared = [f for f in result.figures if result.nulls_of(f.name)]
    names = list(dict.fromkeys(null.name for figure in compared for null in _in_order(result, figure)))
    first, *others = _charts.charts(result)
    return {
        "result": result,
        "verdict": verdict(result),
        "tone": {True: "beats", False: "fails", None: ""}[beats_null(result)],
        "null_names": names,
        "ignorant": "that judge no step" if result.unit == "solutions" else "that know nothing of quality",
        "ties": result.figure(result.accuracy) is not None,
        "compared": [_compared_row(result, figure, names) for figure in compared],
        "others": [_row(figure) for figure in result.figures if figure not in compared],
        "first": [first],
        "charts": others,
        "heats": heats(result),
        "notes": [_sentence(note) for note in result.notes],
        "counted": _counted(result),
    }


def _in_order(result: Result, figure: Figure) -> list[Figure]:
    return [null for null in result.nulls if null.against == figure.name]


def _compared_row(result: Result, figure: Figure, names: Sequence[str]) -> dict[str, Any]:
    nulls = {null.name: null for null in result.nulls_of(figure.name)}
    best = next(iter(nulls))
    cells = [{"value": _value(nulls[n]) if n in nulls else "–", "best": n == best} for n in names]
    return _row(figure) | {"nulls": cells, "head": figure.name == result.headline}


def _row(figure: Figure) -> dict[str, Any]:
    interval = "" if figure.low is None or figure.high is None else _interval(figure)
    value = _points(figure.value, figure) if figure.name == LEAD else _value(figure)
    return {"name": figure.name, "value": value, "interval": interval, "n": f"{figure.n:,}", "note": figure.note}


def _counted(result: Result) -> str:
    missing = sum(result.unscored.values())
    tied = f", {result.tied:,} left out because {tie(result)}" if result.tied else ""
    lost = f"{missing:,} left out because they could not be scored" if missing else "none left out for want of a score"
    return f"Of {result.n:,} {result.unit}, {result.judged:,} are behind the figures: {lost}{tied}."


def _training(report: Report) -> list[Chart]:
    losses = {name: points for name, points in report.evaluations.items() if name.endswith("loss")}
    others = [(name, points) for name, points in report.evaluations.items() if name not in losses]
    drawn = [_charts.curves("Loss", {"training loss": report.losses, **losses})]
    drawn += [_charts.curves(name.capitalize(), {name: points}) for name, points in others]
    return [chart for chart in drawn if chart is not None]


# ---------------------------------------------------------------------------------------------- words


def _named(figure: Figure) -> str:
    proper = figure.name.isupper() or figure.name.startswith(_PROPER)
    return figure.name if proper else figure.name[0].lower() + figure.name[1:]


def _value(figure: Figure) -> str:
    return f"{figure.value:.1%}" if figure.percent else f"{figure.value:.3f}".replace("-", "−")


def _within(figure: Figure) -> str:
    return "" if figure.low is None else f" (95% interval {_interval(figure)})"


def _interval(figure: Figure) -> str:
    low, high = figure.low or 0.0, figure.high or 0.0
    if figure.name == LEAD:
        return f"{_number(low, figure)} to {_number(high, figure)}"
    return f"{low:.1%} to {high:.1%}" if figure.percent else f"{_number(low, figure)} to {_number(high, figure)}"


def _points(value: float, figure: Figure) -> str:
    return _number(value, figure) + (" points" if figure.percent else "")


def _number(value: float, figure: Figure) -> str:
    text = f"{100 * value:.1f}" if figure.percent else f"{value:.3f}"
    return text.replace("-", "−")


def _sentence(note: str) -> str:
    return note[:1].upper() + note[1:] + "."


def cut(text: str) -> str:
    """The beginning of a long text, and how much more there is."""
    return text if len(text) <= _CUT else f"{text[:_CUT]} … ({len(text) - _CUT:,} more characters)"


# ---------------------------------------------------------------------------------------------- scripts


class Trusted(str):
    """Text of this package, not of a user: the template puts it on the page as it is."""

    def __html__(self) -> str:
        return self


def _bundle() -> str:
    converter: Any = importlib.import_module("vl_convert")
    bundle = str(converter.javascript_bundle(vl_version=_charts.version())).replace("\r\n", "\n")
    return bundle.replace("</script", "<\\/script")


def style() -> Trusted:
    """The style of the page, for other pages."""
    return Trusted(resource("_report.html").partition("<style>")[2].partition("</style>")[0])


def resource(name: str) -> str:
    """The text of a file beside this one."""
    return resources.files("karat.evaluation").joinpath(name).read_text(encoding="utf-8")


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
