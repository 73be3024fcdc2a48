"""Replicas of a model on a Ray cluster, and shards for those that have room; one that dies is replaced.

Ray Data's pool of actors does the same, but puts all rows into the object store before the first is scored, and waits
for ever where a block has used up its retries (Ray 2.60).
"""

import sys
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from karat.formats.base import json_line
from karat.rewards import _offline
from karat.scaling._replica import Ready, Replica
from karat.scaling._shards import Open, Resources, Shard
from karat.types import BadInput, KaratError, Unscored

TRIES = 3  # times that a row may take its replica with it, and that replicas may fail to start one after the other
AHEAD = 2  # shards at a replica, of which one waits; the others wait where the rows were read
PATIENCE = 30.0  # seconds without a replica, after which that is said


@dataclass(eq=False)
class _Task:
    shard: Shard
    deaths: int = 0  # of replicas that had it in hand
    copies: int = 0  # replicas that have it
    done: bool = False


@dataclass(eq=False)
class _Worker:
    actor: Any
    tasks: deque[tuple[Any, _Task]] = field(default_factory=deque)  # as they are done, each with what it will give

    @property
    def suspects(self) -> bool:
        """Whether it has a shard that may kill it; that one is alone, as an answer before it could be lost with it."""
        return any(task.deaths for _, task in self.tasks)


class Pool:
    """So many replicas, as far as the cluster has room for them."""

    def __init__(self, ray: Any, opened: Open, resources: Resources) -> None:
        """`ray` is the module, connected to a cluster. The first replica is started."""
        self._ray, self._opened = ray, opened
        options = {"num_cpus": resources.cpus, "num_gpus": resources.gpus}
        self._replica = ray.remote(Replica).options(**options)
        self._starting: dict[Any, Any] = {}  # actors by what tells that they are ready
        self._workers: list[_Worker] = []
        self._waiting: deque[_Task] = deque()
        self._failures = 0  # starts, one after the other
        self._model: Ready | None = None
        self._told = False
        self._start()

    def first(self) -> Ready:
        """What the first replica has opened.

        Raises:
            KaratError: the model cannot be opened.
            BadInput: replicas die before they are ready.
        """
        while not self._workers:
            if ready := self._ray.wait(list(self._starting), timeout=PATIENCE)[0]:
                self._started(ready[0])
            else:
                self._say_waiting()
        assert self._model is not None
        return self._model

    def grow(self, replicas: int) -> None:
        """Start replicas until there are so many."""
        for _ in range(replicas - len(self._workers) - len(self._starting)):
            self._start()

    def run(self, shards: Iterable[Shard]) -> Iterator[tuple[Shard, list[str]]]:
        """Shards and what their rows get, as they come; one that kills its replicas comes in pieces.

        Raises:
            BadInput: replicas die before they are ready, and none is left.
        """
        self._waiting = deque(map(_Task, shards))
        left = sum(len(task.shard.places) for task in self._waiting)
        while left:
            self._hand_out()
            for shard, lines in self._next():
                left -= len(shard.places)
                yield shard, lines

    def _start(self) -> None:
        actor = self._replica.remote(self._opened)
        self._starting[actor.ready.remote()] = actor

    def _next(self) -> Iterator[tuple[Shard, list[str]]]:
        """What came of whatever comes next."""
        working = {worker.tasks[0][0]: worker for worker in self._workers if worker.tasks}
        ready, _ = self._ray.wait([*self._starting, *working], timeout=PATIENCE)
        if not ready:
            self._say_waiting()
        elif ready[0] in self._starting:
            self._started(ready[0])
        else:
            yield from self._answered(working[ready[0]])

    def _say_waiting(self) -> None:
        if not self._workers and not self._told:
            self._told = True
            print(
                "waiting for the cluster: it has no room for a replica yet, or takes long to start it", file=sys.stderr
            )

    # Replicas that come and go

    def _started(self, ref: Any) -> None:
        actor = self._starting.pop(ref)
        try:
            found: Ready | KaratError = self._ray.get(ref)
        except self._ray.exceptions.RayError as error:
            self._failed(f"it died ({str(error).strip().splitlines()[-1].strip():.300})")
            return
        if isinstance(found, Ready) and self._model in (None, found):
            self._model, self._failures = found, 0
            self._workers.append(_Worker(actor))
            return
        if isinstance(found, KaratError) and self._model is None:
            raise found  # as one process would
        self._ray.kill(actor)
        self._failed(str(found) if isinstance(found, KaratError) else "its machine holds another model of this name")

    def _failed(self, why: str) -> None:
        """Try again, or go on with the replicas that there are."""
        self._failures += 1
        if self._failures < TRIES:
            self._start()
        elif not self._workers and not self._starting:
            raise BadInput(
                f"no replica of {self._opened.model} starts: {why}; give fewer --replicas, or make sure that every"
                " machine can load it"
            )
        else:
            print(f"going on with fewer replicas, as one does not start: {why}", file=sys.stderr)

    # Shards that come and go

    def _hand_out(self) -> None:
        """To the replica that has least, the next shard."""
        while able := [worker for worker in self._workers if not worker.suspects]:
            worker = min(able, key=lambda worker: len(worker.tasks))
            task = self._task_for(worker)
            if task is None:
                return
            task.copies += 1
            worker.tasks.append((worker.actor.score.remote(task.shard), task))

    def _task_for(self, worker: _Worker) -> _Task | None:
        """The next that waits; for one that would be idle at the end, one of those that another has not done yet."""
        if self._waiting and len(worker.tasks) < (1 if self._waiting[0].deaths else AHEAD):
            return self._waiting.popleft()
        if worker.tasks or self._waiting:
            return None
        given = [[task for _, task in other.tasks] for other in self._workers]
        late = chain.from_iterable(tasks[1:] for tasks in given), chain.from_iterable(tasks[:1] for tasks in given)
        return next((task for task in chain(*late) if task.copies == 1 and not task.done and not task.deaths), None)

    def _answered(self, worker: _Worker) -> Iterator[tuple[Shard, list[str]]]:
        """The first answer counts, whoever gives it."""
        ref, task = worker.tasks[0]
        try:
            lines: list[str] = self._ray.get(ref)
        except self._ray.exceptions.RayError:
            yield from self._lost(worker)
            return
        worker.tasks.popleft()
        task.copies -= 1
        if not task.done:
            task.done = True
            yield task.shard, lines

    def _lost(self, worker: _Worker) -> Iterator[tuple[Shard, list[str]]]:
        """Start another replica, and give its shards to others; the one that it had in hand may be what it died of."""
        self._workers.remove(worker)
        self._ray.kill(worker.actor)
        self._start()
        tasks = [task for _, task in worker.tasks]
        for task in tasks:
            task.copies -= 1
        tasks[0].deaths += 1
        free = [task for task in tasks if not task.copies and not task.done]
        for task in reversed(free):
            if task.deaths >= TRIES and len(task.shard.places) == 1:  # it was alone all but the first time
                task.done = True
                yield task.shard, [json_line(self._deadly())]
            else:
                self._waiting.extendleft(reversed(self._pieces(task)))

    def _pieces(self, task: _Task) -> list[_Task]:
        """A shard that took two replicas with it, in halves: one of them has what they died of."""
        if task.deaths < 2 or len(task.shard.places) == 1:
            return [task]
        return [_Task(half, deaths=1) for half in task.shard.halves()]

    def _deadly(self) -> dict[str, Any]:
        assert self._model is not None
        reason = f"a worker died each of the {TRIES} times that it was scored; score it by itself"
        return _offline.columns(Unscored(reason), self._model.at_steps)
