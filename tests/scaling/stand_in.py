"""A stand-in for Ray: replicas live in this process, and whoever makes it decides which of them die or hang."""

from collections import deque
from dataclasses import dataclass
from types import SimpleNamespace

from karat.scaling._replica import Replica


class RayError(Exception):
    """Ray's own."""


@dataclass(eq=False)
class Ref:
    actor: object
    name: str
    given: tuple


class Actor:
    """A replica whose calls are done one after the other, when the stand-in is asked to wait."""

    def __init__(self, opened):
        self.queue, self.dead = deque(), False
        self.replica = Replica(opened)
        for name in ("ready", "score"):
            setattr(self, name, SimpleNamespace(remote=lambda *given, name=name: self.called(name, given)))

    def called(self, name, given):
        ref = Ref(self, name, given)
        self.queue.append(ref)
        return ref


class Ray:
    """What `Pool` uses of Ray. `draw(number)` chooses; `dies(ref, actor)` says whether a call ends its actor."""

    exceptions = SimpleNamespace(RayError=RayError)

    def __init__(self, draw=lambda number: 0, dies=lambda ref: False, hangs=lambda actor: False):
        self.draw, self.dies, self.hangs = draw, dies, hangs
        self.actors, self.most, self.empty = [], 0, 0

    def remote(self, kind):
        return SimpleNamespace(options=lambda **resources: SimpleNamespace(remote=self.made))

    def made(self, opened):
        self.actors.append(Actor(opened))
        return self.actors[-1]

    def wait(self, refs, timeout):
        self.most = max(self.most, *(len(actor.queue) for actor in self.actors))
        able = [ref for ref in refs if not self.hangs(ref.actor)]
        if not able:
            self.empty += 1
            assert self.empty < 5, "it waits for ever"
            return [], refs
        return [able[self.draw(len(able))]], refs

    def get(self, ref):
        if ref.actor.dead or self.dies(ref):
            ref.actor.dead = True
            raise RayError("The actor died.\nIts node has no model.")
        assert ref.actor.queue.popleft() is ref
        return getattr(ref.actor.replica, ref.name)(*ref.given)

    def kill(self, actor):
        actor.dead = True

    def nodes(self):
        return [{"Alive": True, "Resources": {"CPU": 1.0}}] * 2

    def shutdown(self):
        self.ended = True
