"""Progress of long work on stderr: a bar with rate and time left on a terminal, a plain line now and then elsewhere."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
_EVERY = 10.0  # seconds between plain lines


def track(items: Iterable[T], total: int, what: str) -> Iterator[T]:
    """Pass items on and show how many of `total` have passed. Short work shows nothing."""
    if sys.stderr.isatty():
        yield from _bar(items, total, what)
        return
    start = shown = time.monotonic()
    for number, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - shown > _EVERY:
            rate = number / (now - start)
            print(f"{what} {number}/{total}  {rate:.1f}/s  {(total - number) / rate:.0f} s left", file=sys.stderr)
            shown = now


def _bar(items: Iterable[T], total: int, what: str) -> Iterator[T]:
    from rich.console import Console
    from rich.progress import track as rich_track

    console = Console(stderr=True)
    yield from rich_track(items, description=what, total=total, console=console, transient=True)
