"""A lock that is given to those who wait for it in the order in which they came.

Models of one device take turns with it, and scoring with generating: each waits for one step of every other at most.
"""

import threading
from collections import deque
from copy import copy
from typing import Any

from karat import types
from karat.engine._native import release_threads
from karat.engine.base import Engine, States
from karat.rewards._local import LocalModel


class Turns:
    """One at a time, first come, first served. Who holds it may not ask for it again."""

    def __init__(self) -> None:
        self._own = threading.Lock()
        self._taken = False
        self._waiting: deque[threading.Lock] = deque()
        self.threads = 0  # that take turns

    def __enter__(self) -> None:
        with self._own:
            if not self._taken:
                self._taken = True
                return
            mine = threading.Lock()
            mine.acquire()
            self._waiting.append(mine)
        mine.acquire()

    def __exit__(self, *_: object) -> None:
        if self.threads > 1:
            release_threads()
        with self._own:
            if self._waiting:
                self._waiting.popleft().release()  # it stays taken, by who came next
            else:
                self._taken = False


class InTurn:
    """An engine that computes when it is its turn."""

    def __init__(self, engine: Engine, turns: Turns) -> None:
        self._engine, self._turns = engine, turns

    def run(self, sequences: list[types.Sequence]) -> list[States]:
        """See `Engine.run`."""
        with self._turns:
            return self._engine.run(sequences)


def in_turns(model: Any, turns: Turns) -> Any:  # a reward model, of the same class
    """A model all of whose engines take turns; no turn is held by what waits for the network."""
    parts = getattr(model, "models", ())
    if not isinstance(model, LocalModel) and not parts:
        return model
    other = copy(model)
    if isinstance(other, LocalModel):
        other.engine = InTurn(other.engine, turns)
        other._reference = InTurn(other._reference, turns) if other._reference else None
    else:
        other.models = tuple(in_turns(part, turns) for part in parts)
    return other
