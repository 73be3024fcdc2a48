"""Progress of long work on stderr: a bar with rate and time left on a terminal, a plain line now and then elsewhere."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
_EVERY = 10.0  # seconds between plain lines


def _one(_: object) -> int:
    return 1


def track(items: Iterable[T], total: int, what: str, before: int = 0, size: Callable[[T], int] = _one) -> Iterator[T]:
    """Pass items on and show how many of `total` have passed. Short work shows nothing.

    Args:
        items: what is worked on.
        total: how many there are, with those of an earlier call.
        what: the word for it.
        before: how many an earlier call did; rate and time left are of this one.
        size: for how many an item counts, where it stands for several.
    """
    if sys.stderr.isatty():
        yield from _bar(items, total, what, before, size)
        return
    start = shown = time.monotonic()
    done = before
    for item in items:
        yield item
        done += size(item)
        now = time.monotonic()
        if now - shown > _EVERY:
            rate = (done - before) / (now - start)
            print(f"{what} {done}/{total}  {rate:.1f}/s  {(total - done) / rate:.0f} s left", file=sys.stderr)
            shown = now


def _bar(items: Iterable[T], total: int, what: str, before: int, size: Callable[[T], int]) -> Iterator[T]:
    from rich.console import Console
    from rich.progress import Progress

    with Progress(*Progress.get_default_columns(), console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total, completed=before)
        for item in items:
            yield item
            bar.advance(task, size(item))
