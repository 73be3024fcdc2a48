"""Tables for people, on stdout."""

from collections.abc import Iterable, Sequence
from typing import Any


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], title: str | None = None) -> None:
    """Print rows under column names."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    # Without markup: tokens such as [/INST] are no tags.
    made = Table(*columns, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for row in rows:
        made.add_row(*map(_plain, row))
    console = Console(highlight=False)
    if title:
        console.print(_plain(title))  # not the table's own, which would be broken at its width
    console.print(made)


def _plain(cell: str) -> Any:
    from rich.text import Text

    return Text(cell)


def result(found: Any) -> None:
    """Print an evaluation: each figure with its interval, and its nulls under it."""
    from karat.cli._options import spelled
    from karat.evaluation._report import tie, verdict
    from karat.types import grouped

    rows: list[tuple[str, str, str]] = []
    for figure in found.figures:
        rows.append((figure.name, number(figure.value), interval(figure)))
        rows += [(f"  {null.name} (null)", number(null.value), interval(null)) for null in found.nulls_of(figure.name)]
    table(("figure", "value", "95 % interval"), rows, f"{found.name}: {found.judged} of {found.n} {found.unit} judged")
    reasons = [reason for reason, count in found.unscored.items() for _ in range(count)]
    for reason, places in grouped(reasons).items():
        print(f"unscored {len(places)}: {spelled(reason)}")
    if found.tied:
        print(f"tied {found.tied}: {tie(found)}")
    print(verdict(found))


def audit(found: Any) -> None:
    """Print a bias audit: each edit with its effect, what it turns, and how many answers it could not be tried on."""
    from karat.cli._options import spelled
    from karat.evaluation._audit import verdict
    from karat.evaluation._audit_report import interval, order, share, shown, signed, unit

    rows = []
    for effect in found.effects:
        figure, lost = shown(found, effect), sum(effect.unscored.values())
        counts = [str(count) for count in (effect.answers, effect.skipped, lost)]
        rows.append([effect.edit, signed(figure), interval(figure), share(effect.rejected), *counts])
    columns = ("edit", "effect", "95 % interval", "turned", "n", "skipped", "unscored")
    table(columns, rows, f"effects {unit(found)}")
    print("turned: judgements of pairs whose rejected answer is edited")
    for reason, count in found.unscored.items():
        print(f"unscored {count}: {spelled(reason)}")
    print(f"order: {order(found)}")
    print(verdict(found))


def compared(found: Any) -> None:
    """Print a comparison: leaderboard, paired tests, and the share of items on which two runs differ."""
    from karat.evaluation._compare_report import interval, shown, verdict

    rows = [
        (p.run, shown(p.value), interval(p.low, p.high), f"{p.best_null} {shown(p.null)}", shown(p.lead), f"{p.judged}")
        for p in found.places
    ]
    board = ("run", found.headline, "95 % interval", "best null", "lead", "judged")
    table(board, rows, f"{found.name}: {len(found.places)} runs")
    if found.paired:
        columns = ("first", "second", "alone right", "difference", "p, Holm", "disagree")
        table(columns, map(_pair, found.paired), "paired, exact sign test (McNemar)")
    for note in found.notes:
        print(note)
    print(verdict(found))


def _pair(p: Any) -> list[str]:
    from karat.evaluation._compare_report import interval, p_value, shown

    both = f"{p.first_only} : {p.second_only} of {p.shared}"
    gap = f"{shown(p.difference)} ({interval(p.low, p.high)})" if p.low is not None else shown(p.difference)
    return [p.first, p.second, both, gap, p_value(p.adjusted).removeprefix("p = "), f"{1 - p.agreement:.1%}"]


def number(value: float) -> str:
    """Four digits after the point."""
    return f"{value:.4f}"


def interval(figure: Any) -> str:
    """`low … high`, or nothing."""
    return "" if figure.low is None else f"{figure.low:.4f} … {figure.high:.4f}"
