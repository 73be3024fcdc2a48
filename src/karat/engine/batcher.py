"""The work of many callers in few forwards: as many tokens as a budget takes, shared prefixes once, oldest first.

It has one thread, which sleeps while there is nothing to do; equal work in flight is done once. It knows sequences and
whatever function computes them; nothing of texts, rewards or HTTP.
"""

import heapq
import logging
import threading
import time
from collections.abc import Callable, Hashable, Iterable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Generic, TypeVar

import torch

from karat import types
from karat.engine._load import Load, WorkError
from karat.engine._work import Closed, Failed, Late, Ticket, Work, cost_of, filled
from karat.engine.base import EngineError, States, out_of_memory
from karat.types import KaratError

WINDOW = 512  # pieces of work, oldest first, that a batch is put together from
SMALLEST = 16  # tokens to a batch below which running out of memory is final
_LOG = logging.getLogger("karat.engine")

T = TypeVar("T")
R = TypeVar("R")


@dataclass(slots=True)
class _Piece(Generic[T, R]):
    """Work and everyone who waits for it."""

    work: Work[T]
    waiting: list[tuple[Ticket[R], int]] = field(default_factory=list)

    def lives(self, now: float) -> bool:
        return any(ticket.lives(now) for ticket, _ in self.waiting)


@dataclass
class Counts:
    """What a batcher did, over its life."""

    batches: int = 0
    pieces: int = 0
    tokens: int = 0  # computed: shared prefixes of a batch once
    shared_tokens: int = 0  # that prefixes within a batch saved
    joined: int = 0  # pieces of work that were in flight already
    dropped: int = 0  # pieces that nobody waited for when their turn came
    failed: int = 0
    seconds: float = 0.0  # in the function


class Batcher(Generic[T, R]):
    """Pieces of work → batches → a function that computes them, one batch after the other."""

    def __init__(
        self,
        run: Callable[[list[T]], Sequence[R]],
        budget: int = 2048,
        clock: Callable[[], float] = time.monotonic,
        longest_wait: float = float("inf"),
        threaded: bool = True,
    ) -> None:
        """`run` gives one result for each payload. `budget`: tokens to a batch; longer work goes alone.

        `longest_wait`: seconds beyond which new work would wait, by what the batcher has learnt, so that it is refused.

        Without a thread of its own (`threaded`), `step` does one batch.
        """
        self.budget = self._budget = budget
        self.counts = Counts()
        self.broken: BaseException | None = None  # why no further work can be done
        self.busy_since: float | None = None  # when the running batch was begun
        self.load = Load()  # of the work, in tokens
        self.on_batch: Callable[[int, int, int, float], None] | None = None  # pieces, tokens, saved, seconds
        self._run, self._clock, self._longest_wait = run, clock, longest_wait
        self._queue: list[tuple[float, int, _Piece[T, R]]] = []
        self._known: dict[Hashable, _Piece[T, R]] = {}
        self._numbers = count()
        self._woken = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="karat-engine", daemon=True) if threaded else None
        if self._thread:
            self._thread.start()

    # What callers do

    def submit(
        self, work: Sequence[Work[T]], done: Callable[[Ticket[R]], None], deadline: float | None = None
    ) -> Ticket[R]:
        """Take pieces of work; `done` is called with the ticket when each has a result or an error.

        It is called in the batcher's thread, and may not block. `deadline` is a time of the batcher's clock.

        Raises:
            Closed: no work is taken any more.
            Overloaded: there is too much work already.
        """
        ticket: Ticket[R] = Ticket(len(work), done, deadline)
        self.load.admit(0, self._longest_wait)
        with self._woken:
            if self._closing or self.broken:
                raise Closed(f"no work is taken any more{f': {self.broken}' if self.broken else ''}")
            self._enqueue(work, ticket)
            self._woken.notify()
        if not work:
            done(ticket)
        return ticket

    def _enqueue(self, work: Sequence[Work[T]], ticket: Ticket[R]) -> None:
        """A piece is due after the pieces before it would be done: so that a long list leaves others their turns."""
        due, pace = self._clock(), 1 / self.load.rate
        for place, one in enumerate(work):
            piece = self._known.get(one.key)
            if piece is None:
                piece = self._known[one.key] = _Piece(one)
                heapq.heappush(self._queue, (due, next(self._numbers), piece))
                self.load.start(one.tokens, self._clock())
            else:
                self.counts.joined += 1
            piece.waiting.append((ticket, place))
            due += one.tokens * pace

    def close(self, timeout: float | None = None) -> bool:
        """Take no further work, do what was taken, and end; whether that was done within `timeout` seconds."""
        with self._woken:
            self._closing = True
            self._woken.notify_all()
        if self._thread is None:
            while self.step():
                pass
            return True
        self._thread.join(timeout)
        if not self._thread.is_alive():
            return True
        with self._woken:
            left = [piece for _, _, piece in self._queue]
            self._queue.clear()
        self._settle([(piece, Closed("the server ended before this was done")) for piece in left])
        return False

    @property
    def waiting(self) -> int:
        """Pieces that wait for their turn."""
        return len(self._queue)

    # What its thread does

    def _work(self) -> None:
        while True:
            with self._woken:
                while not self._queue and not self._closing:
                    self._woken.wait()
                if not self._queue:
                    return
            self.step()

    def step(self) -> bool:
        """Do one batch; whether there was anything to do."""
        with self._woken:
            batch, gone = self._choose(self._clock())
        self.counts.dropped += len(gone)
        self._settle([(piece, Late("the deadline passed before this was begun")) for piece in gone], done=False)
        if batch:
            self.busy_since = self._clock()
            self._compute(batch)
            self.busy_since = None
            self._budget = min(self.budget, self._budget + self._budget // 8 + 1)  # after memory ran out, grow again
        return bool(batch or gone)

    def _choose(self, now: float) -> tuple[list[_Piece[T, R]], list[_Piece[T, R]]]:
        """The next batch, and what nobody waits for any more.

        The oldest piece always goes; what shares its beginning goes with it, and what is left of the budget goes to the
        oldest of the others.
        """
        window: list[tuple[float, int, _Piece[T, R]]] = []
        gone: list[_Piece[T, R]] = []
        while self._queue and len(window) < WINDOW:
            entry = heapq.heappop(self._queue)
            if entry[2].lives(now):
                window.append(entry)
            else:
                gone.append(entry[2])
                self._forget(entry[2])
        taken = filled([piece.work for _, _, piece in window], self._budget)
        for place, entry in enumerate(window):
            if place not in taken:
                heapq.heappush(self._queue, entry)
        return [window[place][2] for place in taken], gone

    def _compute(self, batch: list[_Piece[T, R]]) -> None:
        """Compute pieces; where the function fails, in halves, so that only those it fails on alone have no result."""
        began = self._clock()
        try:
            found = self._called(batch)
        except BaseException as error:  # a thread that ended here would leave callers waiting for ever
            self._recover(batch, error)
            return
        self._note(batch, self._clock() - began)
        self._settle(list(zip(batch, found, strict=True)))

    def _called(self, batch: list[_Piece[T, R]]) -> Sequence[R]:
        found = self._run([piece.work.payload for piece in batch])
        if len(found) != len(batch):
            raise Failed(f"the model gave {len(found)} results for {len(batch)} inputs; please report it")
        return found

    def _recover(self, batch: list[_Piece[T, R]], error: BaseException) -> None:
        if _is_final(error):
            self._break(batch, error)
        elif len(batch) == 1:
            self.counts.failed += 1
            self._settle([(batch[0], _as_failed(error))])
        else:
            if out_of_memory(error):
                tokens = sum(piece.work.tokens for piece in batch)
                self._budget = max(SMALLEST, min(self._budget, tokens) // 2)
            half = len(batch) // 2
            self._compute(batch[:half])
            self._compute(batch[half:])

    def _break(self, batch: list[_Piece[T, R]], error: BaseException) -> None:
        """The device is gone: nothing can be computed in this process any more."""
        with self._woken:
            self.broken, self._closing = error, True
            left = [*batch, *(piece for _, _, piece in self._queue)]
            self._queue.clear()
        self._settle([(piece, Closed(f"the device failed: {_line(error)}; start the server anew")) for piece in left])

    def _settle(self, found: "Iterable[tuple[_Piece[T, R], R | WorkError]]", done: bool = True) -> None:
        """Give results to all who wait."""
        ready: list[Ticket[R]] = []
        now = self._clock()
        with self._woken:
            for piece, result in found:
                self._forget(piece)
                self.load.stop(piece.work.tokens, now, done)
                ready += [ticket for ticket, place in piece.waiting if ticket.settle(place, result)]
        for ticket in ready:
            _tell(ticket.done, ticket)

    def _forget(self, piece: _Piece[T, R]) -> None:
        """Let nobody join it any more."""
        if self._known.get(piece.work.key) is piece:
            del self._known[piece.work.key]

    def _note(self, batch: list[_Piece[T, R]], seconds: float) -> None:
        whole = sum(piece.work.tokens for piece in batch)
        known: set[int] = set()
        tokens = sum(cost_of(piece.work, known) for piece in batch)
        counts = self.counts
        counts.batches, counts.pieces = counts.batches + 1, counts.pieces + len(batch)
        counts.tokens, counts.shared_tokens = counts.tokens + tokens, counts.shared_tokens + whole - tokens
        counts.seconds += seconds
        if self.on_batch:
            _tell(self.on_batch, len(batch), tokens, whole - tokens, seconds)


def _tell(listener: Callable[..., None], *what: Any) -> None:
    """Call what others gave: a thread that ended by it would leave callers waiting for ever."""
    try:
        listener(*what)
    except BaseException:
        _LOG.exception("what is told of a result failed")


def _is_final(error: BaseException) -> bool:
    """Whether the device cannot be used by this process any more, as after an illegal access."""
    sticky = getattr(torch, "AcceleratorError", ())
    return isinstance(error, sticky) or (isinstance(error, RuntimeError) and "CUDA error" in str(error))


def _as_failed(error: BaseException) -> WorkError:
    if isinstance(error, WorkError):
        return error
    failed = Failed(str(error) if isinstance(error, KaratError) else f"the model failed on this: {_line(error)}")
    failed.__cause__ = error
    return failed


def _line(error: BaseException) -> str:
    text = (str(error).strip() or "no message").splitlines()[0]
    return f"{type(error).__name__}: {text:.200}"


class Caller:
    """Who asks an engine, more than once and from a thread; what is asked after it left is not begun."""

    def __init__(self, deadline: float | None = None) -> None:
        self.deadline = deadline
        self._left = False
        self._ticket: Ticket[Any] | None = None

    def waits_for(self, ticket: Ticket[Any]) -> None:
        """Take the ticket of what was asked last."""
        self._ticket = ticket
        if self._left:
            ticket.cancel()

    def leave(self) -> None:
        """Wait for nothing any more; in any thread."""
        self._left = True
        if self._ticket:
            self._ticket.cancel()


CALLER: ContextVar[Caller | None] = ContextVar("CALLER", default=None)


class BatchedEngine:
    """An engine that many threads may call: what they want at the same time is computed together."""

    def __init__(
        self, batcher: "Batcher[types.Sequence, Any]", states: Callable[[Any], States] = lambda own: own
    ) -> None:
        """`states` says what of the batcher's results are hidden states."""
        self.batcher, self._states = batcher, states

    def run(self, sequences: list[types.Sequence]) -> list[States]:
        """See `Engine.run`.

        Raises:
            Closed: the batcher has ended.
            Late: the caller has left, or its deadline passed.
        """
        ended = threading.Event()
        caller = CALLER.get()
        ticket = self.batcher.submit(
            [Work.of(sequence) for sequence in sequences], lambda _: ended.set(), caller.deadline if caller else None
        )
        if caller:
            caller.waits_for(ticket)
        ended.wait()
        for result in ticket.results:
            if isinstance(result, Closed | Late):
                raise result
            if isinstance(result, WorkError):
                raise EngineError(str(result))
        return [self._states(result) for result in ticket.results]
