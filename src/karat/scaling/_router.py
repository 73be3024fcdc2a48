"""Ray Serve's choice of a replica, made by the prompt of a request."""

from dataclasses import dataclass, field
from typing import Any

from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

from karat.scaling import _affinity


@dataclass
class Route:
    """Where a request may go, and what was found out on the way: the router, in the same process, writes into it."""

    key: bytes = b""
    only: str = ""  # the one replica that it is for
    tried: list[str] = field(default_factory=list)  # in the order in which it was sent there
    known: list[str] = field(default_factory=list)  # replicas that there are

    def __reduce__(self) -> Any:
        """Nothing of it is for the replica."""
        return Route, ()


class ByPrompt(RequestRouter):  # type: ignore[misc]
    """The replica that has the prompt, and where that is far fuller than the others the next one."""

    @property
    def supports_rejection_protocol(self) -> bool:
        """No replica is asked first whether it has room: each admits by its own work, and the door asks another."""
        return False

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Replicas to try, one after the other."""
        by_id = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        route = self._route(pending_request)
        route.known = sorted(by_id)
        if route.only:
            return [[by_id[route.only]]] if route.only in by_id else []
        names = _affinity.choose(route.key, {name: self._fill(own) for name, own in by_id.items()}, route.tried)
        route.tried += names[:1]
        return [[by_id[name]] for name in names]

    def _route(self, pending: PendingRequest | None) -> Route:
        if pending is None:
            return Route()
        pending.routing_context.should_backoff = True  # else it is asked again at once where none has room
        given: Any = pending.args[0]
        return given if isinstance(given, Route) else Route()

    def _fill(self, replica: RunningReplica) -> int:
        """Requests that a replica had when it last said so, a few seconds ago at most."""
        return self.replica_queue_len_cache.get(replica.replica_id) or 0
