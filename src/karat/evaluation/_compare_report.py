"""The page of a comparison: one HTML file without a script, in the style of the evaluation report."""

import importlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from karat.evaluation import _charts, _report
from karat.evaluation._compare import Compared, Disagreement, Paired, Place
from karat.evaluation._files import write_folder

_FACES = ("#4a7fd6", "#e07b39", "#5aa786", "#a06cc9", "#c2a23a", "#8b93a1")


def write_comparison(folder: Path, title: str, found: Sequence[Compared], text: str) -> None:
    """Writes compare.html and compare.json, whose text is given, into a new folder, whole or not at all.

    Raises:
        BadInput: the folder is there, or cannot be written to.
    """

    def fill(aside: Path) -> None:
        (aside / "compare.json").write_text(text + "\n", encoding="utf-8")
        (aside / "compare.html").write_text(html(title, found), encoding="utf-8", errors="replace")

    write_folder(folder, fill)


def html(title: str, found: Sequence[Compared]) -> str:
    """The page; every text on it is escaped by the template."""
    jinja: Any = importlib.import_module("jinja2")
    environment = jinja.Environment(autoescape=True, undefined=jinja.StrictUndefined, trim_blocks=True)
    environment.filters["cut"] = _report.cut
    page = environment.from_string(_report.resource("_compare.html")).render(
        title=title, style=_report.style(), parts=[_part(one) for one in found]
    )
    return str(page)


def verdict(found: Compared) -> str:
    """Who leads, and whether that could be chance, in one sentence."""
    first, second, *_ = found.places
    if first.value is None:
        return f"No run has the headline figure of {found.name}."
    lead = _lead(found.headline, first, second)
    pair = next((p for p in found.paired if {p.first, p.second} == {first.run, second.run}), None)
    if pair is None:
        return f"{lead}; they share no items, so no paired test is possible."
    if not pair.first_only + pair.second_only:
        return f"{lead}: on none of {pair.shared:,} shared {found.unit} the two differ."
    word = "more than chance explains" if pair.adjusted < 0.05 else "which chance alone could explain"
    return f"{lead}: {_ways(pair, first.run, found.unit)} ({p_value(pair.adjusted)}), {word}."


def _lead(headline: str, first: Place, second: Place) -> str:
    """The first two by the headline; where the digits that are shown tell them apart, which is first."""
    own, other = shown(first.value), shown(second.value)
    if own != other:
        return f"{first.run} leads in {headline} with {own}, before {second.run} with {other}"
    how = "with" if first.value == second.value else "but for digits behind"
    return f"{first.run} and {second.run} are equal in {headline} {how} {own}"


def _ways(pair: Paired, leader: str, unit: str) -> str:
    """On how many items the two differ; and where the headline's leader is not ahead by items, that it is not."""
    shared = f"{pair.shared:,} shared {unit}"
    ahead, behind, other = pair.first_only, pair.second_only, pair.second
    if leader == pair.second:
        ahead, behind, other = behind, ahead, pair.first
    if ahead < behind:
        return f"but by items {other} is ahead, with more credit on {behind:,} and less on {ahead:,} of {shared}"
    return f"on {ahead + behind:,} of {shared} the two differ"


def shown(value: float | None) -> str:
    """Three digits after the point, or a dash."""
    return "–" if value is None else f"{value:.3f}".replace("-", "−")


def interval(low: float | None, high: float | None) -> str:
    """Both ends, or nothing."""
    return "" if low is None or high is None else f"{shown(low)} to {shown(high)}"


def p_value(value: float) -> str:
    """`p = 0.012`, or `p < 0.001`."""
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


def _part(found: Compared) -> dict[str, Any]:
    ends = _ends(found.places)
    runs = [place.run for place in found.places]
    return {
        "name": found.name,
        "headline": found.headline,
        "unit": found.unit,
        "verdict": verdict(found),
        "ends": [shown(end) for end in ends],
        "places": [_place(place, *ends) for place in found.places],
        "paired": [_pair(pair) for pair in found.paired],
        "runs": runs,
        "matrix": [_matrix_row(run, runs, found.paired) for run in runs],
        "figures": [(name, [_best(row, run) for run in runs]) for name, row in found.parts.items()],
        "bands": _bands(found.curves),
        "disagreements": [_disagreement(one) for one in found.disagreements],
        "notes": [note[:1].upper() + note[1:] for note in found.notes],
    }


def _ends(places: Sequence[Place]) -> tuple[float, float]:
    """An axis that holds every interval and every null."""
    known = [end for p in places for end in (p.value, p.low, p.high, p.null) if end is not None]
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    air = 0.06 * (high - low) or 0.1
    return low - air, high + air


def _place(place: Place, low: float, high: float) -> dict[str, Any]:
    def at(value: float | None) -> float | None:
        return None if value is None else round(100 * (value - low) / (high - low), 2)

    start, end = at(place.low), at(place.high)
    return {
        "run": place.run,
        "model": place.model if Path(place.model).name != place.run else "",
        "value": shown(place.value),
        "interval": interval(place.low, place.high),
        "null": f"{place.best_null} {shown(place.null)}" if place.best_null else "–",
        "lead": shown(place.lead),
        "lead_interval": interval(place.lead_low, place.lead_high),
        "judged": f"{place.judged:,}",
        "unscored": f"{place.unscored:,} unscored" if place.unscored else "",
        "at": at(place.value),
        "null_at": at(place.null),
        "from": start,
        "width": None if start is None or end is None else round(end - start, 2),
    }


def _pair(pair: Paired) -> dict[str, Any]:
    return {
        "first": pair.first,
        "second": pair.second,
        "shared": f"{pair.shared:,}",
        "first_only": f"{pair.first_only:,}",
        "second_only": f"{pair.second_only:,}",
        "difference": shown(pair.difference),
        "interval": interval(pair.low, pair.high),
        "p": p_value(pair.p).removeprefix("p = ").removeprefix("p "),
        "adjusted": p_value(pair.adjusted).removeprefix("p = ").removeprefix("p "),
        "sure": pair.adjusted < 0.05,
    }


def _matrix_row(run: str, runs: Sequence[str], paired: Sequence[Paired]) -> dict[str, Any]:
    """Of a run, the share of items on which it and each other one get different credit."""
    known = {frozenset((pair.first, pair.second)): 1 - pair.agreement for pair in paired}
    cells = [known.get(frozenset((run, other))) if other != run else None for other in runs]
    return {"run": run, "cells": [_cell(value) for value in cells]}


def _cell(value: float | None) -> dict[str, Any]:
    return {"text": "–" if value is None else f"{value:.1%}", "shade": round(min(value or 0.0, 0.5), 3)}


def _best(row: Mapping[str, float | None], run: str) -> dict[str, Any]:
    known = [value for value in row.values() if value is not None]
    value = row.get(run)
    return {"text": shown(value), "best": value is not None and len(known) > 1 and value == max(known)}


def _disagreement(one: Disagreement) -> dict[str, Any]:
    return {
        "prompt": one.prompt,
        "part": one.part,
        "answers": [
            {"text": text, "label": _label(one, place), "rewards": _rewards(one, place)}
            for place, text in enumerate(one.responses)
        ],
        "credits": [(run, "right" if c == 1 else "wrong" if c == 0 else f"{c:.2f}") for run, c in one.credits.items()],
    }


def _label(one: Disagreement, place: int) -> str:
    if place >= len(one.labels):
        return ""
    two = len(one.labels) == 2 and sum(one.labels) == 1
    return ("preferred" if one.labels[place] > 0.5 else "rejected") if two else f"label {one.labels[place]:g}"


def _rewards(one: Disagreement, place: int) -> list[tuple[str, str]]:
    return [(run, shown(own[place]) if place < len(own) else "–") for run, own in one.rewards.items()]


def _bands(curves: Mapping[str, Mapping[str, Sequence[Any]]]) -> Any:
    """The best-of-n curves of the runs with their bands as one SVG, which a page may hold; None without any."""
    rows = [
        {"n": n, "run": run, "value": value, "low": low, "high": high}
        for run, own in curves.items()
        for n, (value, low, high) in zip(own.get("n", ()), own.get("reward", ()), strict=False)
        if value is not None and math.isfinite(value)
    ]
    if not rows:
        return None
    alt: Any = importlib.import_module("altair")
    names = list(dict.fromkeys(str(row["run"]) for row in rows))
    scale = alt.Scale(domain=names, range=[_FACES[place % len(_FACES)] for place in range(len(names))])
    base = alt.Chart(alt.Data(values=rows))
    x = alt.X("n:Q", title="answers per prompt, n", scale=alt.Scale(type="log", base=2))
    y = alt.Y("value:Q", title="accuracy", axis=alt.Axis(format="%"), scale=alt.Scale(zero=False))
    colour = alt.Color("run:N", scale=scale, title=None, legend=alt.Legend(orient="top"))
    band = base.mark_area(opacity=0.15).encode(x=x, y=alt.Y("low:Q"), y2="high:Q", color=colour)
    line = base.mark_line(strokeWidth=2, point=True).encode(x=x, y=y, color=colour)
    spec = (band + line).properties(width=620, height=260, background="transparent").to_dict()
    svg = importlib.import_module("vl_convert").vegalite_to_svg(
        spec | {"config": _ON_ANY}, vl_version=_charts.version()
    )
    return _report.Trusted(svg)


_GREY = "#808a97"  # readable on white and on near-black
_ON_ANY = {
    "view": {"stroke": None},
    "axis": {"labelColor": _GREY, "titleColor": _GREY, "gridColor": "#80808033", "domainColor": _GREY},
    "legend": {"labelColor": _GREY},
}
