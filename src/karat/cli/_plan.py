"""`karat search plan`: how many samples and problems it takes until a difference can be seen."""

from typing import Any

import typer

from karat.cli import _options, _tables

_SUCH = {"difference": 0.02, "power": 0.8, "level": 0.95, "n": 4, "disagree": 0.2}  # numbers, and what they look like


def run(context: typer.Context, pool: str | None, seed: int, as_json: bool) -> None:
    """Print the plan: from a pool of scored, labelled samples, or from a guess how often two ways disagree."""
    import json

    from karat.search import _plan

    given = _options.extra(context, {*_SUCH, "against"})
    if "difference" not in given:
        raise typer.BadParameter("a plan needs --difference: the gain in accuracy that is to be seen, such as 0.02")
    _check(given)
    wanted = _plan.Wanted(**{name: given[name] for name in _plan.Wanted._fields if name in given})
    if pool is None:
        found = _guessed(given, wanted)
    elif "disagree" in given:
        raise typer.BadParameter("a pool says how often two ways disagree; leave --disagree out, or the pool")
    else:
        found = _plan.plan(pool, wanted, given.get("n"), given.get("against", _plan.MAJORITY), seed)
    if as_json:
        print(json.dumps(found))
    else:
        (_show_guess if pool is None else _show)(found)


def _check(given: dict[str, Any]) -> None:
    """Raise for a value that is no number, such as `5%`."""
    for name, value in given.items():
        if name != "against" and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise typer.BadParameter(f"--{name} is {value!r}, but it has to be a number, such as {_SUCH[name]}")
    if not isinstance(given.get("n", 2), int):
        raise typer.BadParameter(f"--n is {given['n']}, but it has to be a whole number, such as {_SUCH['n']}")


def _guessed(given: dict[str, Any], wanted: Any) -> dict[str, Any]:
    from karat.search._plan import problems_by_sign

    if "disagree" not in given:
        raise typer.BadParameter(
            "a plan needs a file of scored, labelled samples, or --disagree: the share of problems on which exactly one"
            " of the two ways is right, such as 0.2"
        )
    disagree = given["disagree"]
    return {**wanted._asdict(), "disagree": disagree, "problems": problems_by_sign(disagree, wanted)}


def _show_guess(found: dict[str, Any]) -> None:
    print(
        f"{found['problems']} problems show a difference of {found['difference']:.1%} with a chance of"
        f" {found['power']:.0%}, where exactly one of the two is right on {found['disagree']:.1%} of them (exact sign"
        f" test at {found['level']:.0%}, one answer of each to a problem)"
    )


def _show(found: dict[str, Any]) -> None:
    against = found["against"]
    names = [name for name in found["curve"][0] if name not in ("n", "kl", "lead", "ci")]
    rows = [
        (
            str(row["n"]),
            f"{row['kl']:.2f}",
            *(_percent(row[name]) for name in names),
            f"{100 * row['lead']:+.1f}",
            _ends(row),
        )
        for row in found["curve"]
    ]
    short = [name.removesuffix(" vote").removesuffix("-of-n") for name in names]  # so that 80 columns hold them
    title = f"{found['problems']} problems with {found['samples']} samples each, in %; lead of best-of-n over {against}"
    _tables.table(("n", "KL", *short, "lead", "95 %"), rows, title)
    print(
        f"{found['without_a_right_answer']} problems have no right answer among their samples,"
        f" {found['without_a_wrong_answer']} no wrong one"
    )
    for reason, count in found["left"].items():
        print(f"left out {count}: {_options.spelled(reason)}")
    print(_turned(found["turning"], found["samples"]))
    reached = found["reached"]
    print(
        f"a lead of {found['difference']:.1%} over {against} is reached"
        + (" at no n" if reached is None else f" at n = {reached}")
    )
    needed = [_cells(one) for one in found["needed"]]
    _tables.table(
        ("samples each", "deviation", "problems", "samples in all", f"visible with {found['problems']}"),
        needed,
        f"to see {found['difference']:.1%} between best-of-{found['n']} and {against} with a chance of"
        f" {found['power']:.0%} at {found['level']:.0%}",
    )
    if any(one["problems"] is None for one in found["needed"]):
        print(
            f"best-of-{found['n']} and {against} differ by the same on every problem, so the pilot shows no variation"
            " and cannot say how many it takes; give one with more problems"
        )


def _cells(one: dict[str, Any]) -> tuple[str, ...]:
    samples, problems = one["samples"], one["problems"]
    counts = ("not known", "not known") if problems is None else (str(problems), str(samples * problems))
    visible = "not known" if one["visible"] is None else f"{one['visible']:.1%}"
    return str(samples), f"{one['deviation']:.3f}", *counts, visible


def _ends(row: dict[str, Any]) -> str:
    low, high = row["ci"]["lead"]
    return f"{100 * low:+.1f} … {100 * high:+.1f}"


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _turned(turning: dict[str, Any], samples: int) -> str:
    ends = "{:.0f} … {:.0f}".format(*turning["ends"])
    if not turning["at_least"] > 0:
        return (
            f"best-of-n is best at n = {turning['n']} (in resamples at {ends}); no fall behind it that is no accident"
        )
    return (
        f"over-optimisation: best-of-n turns at n = {turning['n']} (in resamples at {ends}) and falls by"
        f" {turning['fall']:.1%} until n = {samples}, by at least {turning['at_least']:.1%} at 95 %"
    )
