"""Requests → rendered sequences → batches → results, each stage in threads of its own and off the event loop.

It knows a reward model and asyncio; nothing of HTTP or of anyone's JSON.
"""

import asyncio
import queue
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from karat.engine._load import Load, WorkError
from karat.engine._work import Closed, Failed, Late, Ticket
from karat.engine.batcher import CALLER, BatchedEngine, Batcher, Caller
from karat.rewards._local import LocalModel
from karat.rewards.base import RewardModel
from karat.serving._batches import Recent
from karat.serving._deadlines import in_time
from karat.serving._generator import Generator
from karat.serving._rows import Outcome, Row, computed, outcomes, rendered, results, size_of, work_of
from karat.serving._turns import Turns, in_turns
from karat.serving._variants import Variants
from karat.types import KaratError, Unscored

RENDERERS = 2  # threads that render
CALLERS = 32  # threads for what asks the engine more than once, such as rankings
CHARACTERS = 65536  # of texts that are rendered together
LONGEST = 16  # characters to a token, of which a text that may be computed has fewer
READERS = 2  # threads that read what was computed as requests' own options say


@dataclass(eq=False)
class _Job:
    """One request on its way."""

    rows: Sequence[Row]
    model: RewardModel
    size: int  # characters
    future: "asyncio.Future[list[Outcome]]"
    deadline: float | None
    began: float = field(default_factory=time.monotonic)
    rendered_at: float = 0.0
    rendered: Sequence[Any] = ()
    ticket: Ticket[Any] | None = None
    left: bool = False  # nobody waits for it any more
    outcomes: list[Outcome] | None = None
    error: WorkError | None = None


class Pipeline:
    """A reward model for many callers at a time."""

    def __init__(
        self,
        model: RewardModel,
        budget: int | None = None,
        longest_wait: float = 30.0,
        turns: Turns | None = None,
        generator: Generator | None = None,
    ) -> None:
        """`budget`: tokens to a batch. `longest_wait`: seconds that new work may have to wait before it is refused.

        `turns` is shared with whatever else computes on the device; a `generator` writes by the same weights.
        """
        self.model, self.generator = model, generator
        self.load = Load()  # in characters: known before anything is rendered
        self.longest_wait = longest_wait
        self.on_outcomes: Callable[[list[Outcome]], None] | None = None
        self.on_stage: Callable[[str, float], None] | None = None  # what was done for a request, and its seconds
        self.recent = Recent()
        self._turns = turns or Turns()
        self._turns.threads += 1
        own = in_turns(model, self._turns)
        compute = partial(computed if isinstance(own, LocalModel) else results, own)
        self.batcher: Batcher[Any, Any] = Batcher(self.recent.around(compute), budget or 2048)
        self.inside = _inside(own, self.batcher) if isinstance(own, LocalModel) else own
        self._variants = Variants(self.inside)
        self._inbox: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._outbox: deque[_Job] = deque()
        self._waking = False
        self._calls = ThreadPoolExecutor(CALLERS, "karat-call")
        self._readers = ThreadPoolExecutor(READERS, "karat-read")
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed, self._door = False, threading.Lock()  # which holds: nothing is put behind what ends the threads
        self._users, self._unused = 0, asyncio.Event()
        self._unused.set()
        self._threads = [
            threading.Thread(target=self._render_all, name="karat-render", daemon=True) for _ in range(RENDERERS)
        ]
        for thread in self._threads:
            thread.start()

    # What requests ask for; in the event loop

    async def score(
        self, rows: Sequence[Row], model: RewardModel | None = None, deadline: float | None = None
    ) -> list[Outcome]:
        """A result or an error for each row, in their order. `deadline` is a time of the monotonic clock.

        Raises:
            Overloaded: there is more work than can be done in time.
            Late: the deadline passed.
        """
        self._loop = asyncio.get_running_loop()
        asked, sizes = model or self.model, [size_of(row) for row in rows]
        job = _Job(rows, asked, sum(sizes), self._loop.create_future(), deadline)
        # What is longer is refused once its tokens are counted, and others do not wait for it to be computed.
        most = LONGEST * ((isinstance(asked, LocalModel) and asked.renderer.max_length) or sys.maxsize)
        weight = sum(min(size, most) for size in sizes)
        self._admit(weight, deadline)
        timer = self._loop.call_at(self._loop.time() + deadline - time.monotonic(), _expire, job) if deadline else None
        try:
            with self._open():
                self._inbox.put(job)
            found = await job.future
            self._tell(job, found)
            return found
        finally:
            if timer:
                timer.cancel()
            job.left = True
            if job.ticket:
                job.ticket.cancel()
            finished = job.future.done() and not job.future.cancelled() and job.future.exception() is None
            self.load.stop(weight, time.monotonic(), finished)

    @contextmanager
    def _open(self) -> Iterator[None]:
        """While something is handed to the threads; Raises Closed where they have ended, or were told to."""
        with self._door:
            if self._closed:
                raise _closed()
            yield

    def _tell(self, job: _Job, found: list[Outcome]) -> None:
        if self.on_outcomes:
            self.on_outcomes(found)
        if self.on_stage:
            self.on_stage("render", job.rendered_at - job.began)
            self.on_stage("compute", time.monotonic() - job.rendered_at)

    async def call(self, function: Callable[[], Any], size: int, deadline: float | None = None) -> Any:
        """What a function gives that asks the model more than once, such as a ranking; `size` is its texts' characters.

        Where nobody waits for it any more, what it asks the engine for is not begun, and ends it.

        Raises:
            Overloaded: there is more work than can be done in time.
            Late: the deadline passed.
        """
        self._admit(size, deadline)
        caller, done = Caller(deadline), False
        try:
            async with in_time(deadline):
                with self._open():
                    asked = asyncio.get_running_loop().run_in_executor(self._calls, partial(_asked, caller, function))
                found = await asked
            done = True
            return found
        finally:
            caller.leave()
            self.load.stop(size, time.monotonic(), done)

    def _admit(self, size: int, deadline: float | None) -> None:
        now = time.monotonic()
        patience = self.longest_wait if deadline is None else min(self.longest_wait, deadline - now)
        if patience <= 0:
            raise Late("the deadline passed before this was begun")
        self.load.admit(size, patience)
        self.load.start(size, now)

    async def variant(self, options: Mapping[str, Any], deadline: float | None = None) -> RewardModel:
        """The model by other spec options; of those asked for lately it is made once.

        Raises:
            Refused: it has no options, or they make another model of it.
            Late: the deadline passed.
        """
        return await self._variants(options, deadline)

    @contextmanager
    def used(self) -> Iterator[None]:
        """For as long as a request may ask for something."""
        self._users += 1
        self._unused.clear()
        try:
            yield
        finally:
            self._users -= 1
            if not self._users:
                self._unused.set()

    async def unused(self) -> None:
        """Wait until no request asks for anything."""
        await self._unused.wait()

    def close(self, timeout: float | None = None) -> None:
        """Do what was taken, and end."""
        with self._door:
            self._turns.threads -= not self._closed
            self._closed = True
            for _ in self._threads:
                self._inbox.put(None)
        for thread in self._threads:
            thread.join(timeout)
        self.batcher.close(timeout)
        if self.generator:
            self.generator.close()
        self._calls.shutdown(wait=False)  # what waits there is told so by the batcher, and not left alone
        self._readers.shutdown(wait=False)
        self._variants.close()

    # Rendering; in its threads

    def _render_all(self) -> None:
        while (job := self._inbox.get()) is not None:
            jobs, ended = self._and_waiting(job)
            try:
                self._render(jobs)
            except BaseException as error:  # a thread that ended here would leave callers waiting for ever
                for one in jobs:
                    self._fail(one, Failed(f"the text could not be read: {type(error).__name__}; please report it"))
            if ended:
                return

    def _and_waiting(self, job: _Job) -> tuple[list[_Job], bool]:
        """A job and those that wait behind it, as far as they are small; whether this was the last of all."""
        jobs, size = [job], job.size
        while size < CHARACTERS:
            try:
                other = self._inbox.get_nowait()
            except queue.Empty:
                break
            if other is None:
                return jobs, True
            jobs.append(other)
            size += other.size
        return jobs, False

    def _render(self, jobs: Sequence[_Job]) -> None:
        by_model: dict[int, list[_Job]] = {}
        for job in jobs:
            if not job.left:
                by_model.setdefault(id(job.model), []).append(job)
        for own in by_model.values():
            self._render_alike(own)

    def _render_alike(self, jobs: Sequence[_Job]) -> None:
        """Render jobs of one model together; where that fails, each alone."""
        rows = [row for job in jobs for row in job.rows]
        try:
            found = iter(rendered(jobs[0].model, rows))
        except Exception as error:
            if len(jobs) > 1:
                for job in jobs:
                    self._render_alike([job])
                return
            said = str(error) if isinstance(error, KaratError) else f"{type(error).__name__}; please report it"
            self._fail(jobs[0], Failed(f"the text could not be read: {said}"))
            return
        for job in jobs:
            job.rendered, job.rendered_at = [next(found) for _ in job.rows], time.monotonic()
            self._submit(job)

    def _submit(self, job: _Job) -> None:
        if job.left:
            return
        work = [work_of(one) for one in job.rendered if not isinstance(one, Unscored)]
        try:
            job.ticket = self.batcher.submit(work, lambda ticket: self._done(job, ticket), job.deadline)
        except WorkError as error:
            self._fail(job, error)
            return
        if job.left:  # meanwhile
            job.ticket.cancel()

    # Results; from the engine's thread to the event loop

    def _fail(self, job: _Job, error: WorkError) -> None:
        job.error = error
        self._hand_over(job)

    def _done(self, job: _Job, ticket: Ticket[Any]) -> None:
        job.ticket = ticket
        if not self._is_variant(job.model):
            self._hand_over(job)
            return
        try:
            self._readers.submit(self._read, job)
        except RuntimeError:
            self._fail(job, _closed())

    def _is_variant(self, model: RewardModel) -> bool:
        """Whether it has a head or options of its own, which take time to apply."""
        return (
            isinstance(model, LocalModel) and isinstance(self.model, LocalModel) and model.spec is not self.model.spec
        )

    def _read(self, job: _Job) -> None:
        """In a thread for it: what was computed, as the job's own options read it."""
        try:
            job.outcomes = [] if job.left else self._outcomes(job)
        except BaseException as error:  # nobody else would tell those who wait
            job.error = _unread(error)
        self._hand_over(job)

    def _hand_over(self, job: _Job) -> None:
        self._outbox.append(job)
        if not self._waking and self._loop is not None:
            self._waking = True
            try:
                self._loop.call_soon_threadsafe(self._deliver)
            except RuntimeError:  # the loop has ended, and with it everyone who waited
                self._outbox.clear()

    def _deliver(self) -> None:
        self._waking = False
        while self._outbox:
            job = self._outbox.popleft()
            self._settle(job)
            job.ticket = None  # it knows the job: the two would keep the model in memory

    def _settle(self, job: _Job) -> None:
        if not job.future.done():
            try:
                job.future.set_result(self._outcomes(job))
            except Exception as error:  # of this job alone: those behind it wait as well
                job.future.set_exception(_unread(error))

    def _outcomes(self, job: _Job) -> list[Outcome]:
        if job.error is not None:
            raise job.error
        if job.outcomes is not None:
            return job.outcomes
        assert job.ticket is not None
        good, found = [one for one in job.rendered if not isinstance(one, Unscored)], job.ticket.results
        if isinstance(job.model, LocalModel) and isinstance(self.model, LocalModel):
            found = outcomes(job.model, self.model, good, found)
        left = iter(found)
        return [one if isinstance(one, Unscored) else next(left) for one in job.rendered]


def _closed() -> Closed:
    return Closed("the server is about to end")


def _unread(error: BaseException) -> WorkError:
    """Why there are no results of what was computed."""
    if isinstance(error, WorkError):
        return error
    said = str(error) if isinstance(error, KaratError) else f"{type(error).__name__}: {error!s:.200}"
    return Failed(f"what was computed could not be read: {said}")


def _expire(job: _Job) -> None:
    if not job.future.done():
        job.future.set_exception(Late("the deadline passed before this was done"))


def _inside(model: LocalModel, batcher: Batcher[Any, Any]) -> LocalModel:
    """The model on the shared engine, for threads that ask it more than once."""
    other = copy(model)
    other.engine = BatchedEngine(batcher, lambda computed: computed.states)
    return other


def _asked(caller: Caller, function: Callable[[], Any]) -> Any:
    """In one of the threads for calls: whatever engine the function asks, it asks for this caller."""
    CALLER.set(caller)
    return function()
