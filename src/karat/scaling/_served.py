"""Models in a process of their own on a cluster, behind the application of `karat serve`, asked by Ray's handles."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import ray
from ray import serve

from karat.scaling._policy import BACKLOG
from karat.scaling._router import Route
from karat.scaling._wire import NAMESPACE, Asked, Opened, Said
from karat.types import KaratError


class Served:
    """One replica."""

    async def __init__(self, opened: Opened, record: str) -> None:  # type: ignore[misc] # Ray awaits it
        """`record` is the name of the actor that knows what the command serves."""
        self._record, self._budget = record, opened.max_batch_tokens
        self._stale = ""  # why another has to take its place
        self._tasks: set[asyncio.Task[None]] = set()
        try:
            self._app = await asyncio.to_thread(opened.app)
            await self._app.pipelines.start()
            if problem := await self._actor().agree.remote(self.fingerprints()):
                raise KaratError(problem)
        except Exception as error:
            told = str(error) if isinstance(error, KaratError) else f"{type(error).__name__}: {error}"
            await self._actor().failed.remote(told)
            raise

    def _actor(self) -> Any:
        """The command's record; Raises ValueError where the command has ended."""
        return ray.get_actor(self._record, NAMESPACE)

    def fingerprints(self) -> dict[str, str]:
        """Of its models, by name."""
        return {name: getattr(own.model, "fingerprint", "") for name, own in self._app.pipelines.items()}

    async def answer(self, _: Route, asked: Asked) -> AsyncIterator[Said]:
        """What the application replies, whole or as it comes; who stops to listen has left."""
        events: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        left = asyncio.Event()
        task = asyncio.create_task(self._app(asked.scope(), _receiving(asked.body, left), events.put))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda _: events.put_nowait(None))
        try:
            async for said in _parts(events):
                yield said
        finally:
            left.set()

    async def whole(self, route: Route, asked: Asked) -> Said:
        """The same in one piece: cheaper where there is nothing to wait for."""
        first, *rest = [said async for said in self.answer(route, asked)]
        return first._replace(body=b"".join([first.body, *(said.body for said in rest)]), more=False)

    async def renew(self, _: Route, name: str, fingerprint: str = "") -> tuple[str, str]:
        """Load a model anew, but where it is the wanted one already: its fingerprint, and why that was not done."""
        if not fingerprint or self.fingerprints()[name] != fingerprint:
            try:
                await self._app.pipelines.reload(name)
            except Exception as error:  # whatever it is, the old model goes on
                return self.fingerprints()[name], str(error)
        own = self.fingerprints()[name]
        return own, f"its machine holds another model as {name}" if fingerprint not in ("", own) else ""

    async def replace(self, _: Route, why: str) -> None:
        """Let another replica take the place of this one."""
        self._stale = why

    async def check_health(self) -> None:
        """Raise RuntimeError where Ray has to start another one; where the command has ended, end all replicas."""
        if problem := self._stale or self._app.pipelines.broken:
            raise RuntimeError(problem)
        try:
            self._actor()
        except ValueError:
            await asyncio.to_thread(serve.delete, serve.get_replica_context().app_name, _blocking=False)

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Tokens that wait or are computed, in batches."""
        tokens = sum(own.batcher.load.in_flight for own in self._app.pipelines.values())
        return {BACKLOG: tokens / self._budget}


def _receiving(body: bytes, left: asyncio.Event) -> Any:
    """ASGI's `receive` of a request that is there, until nobody waits for its reply."""
    whole = iter([{"type": "http.request", "body": body}])

    async def receive() -> dict[str, Any]:
        if event := next(whole, None):
            return event
        await left.wait()
        return {"type": "http.disconnect"}

    return receive


async def _parts(events: "asyncio.Queue[dict[str, Any] | None]") -> AsyncIterator[Said]:
    """ASGI's events as parts of a reply; Raises RuntimeError where they end before it does."""
    head: dict[str, Any] = {"status": 0, "headers": ()}
    while event := await events.get():
        if event["type"] == "http.response.start":
            head = event
            continue
        more = event.get("more_body", False)
        yield Said(event.get("body", b""), more, head["status"], list(head["headers"]))
        if not more:
            return
        head = {"status": 0, "headers": ()}
    raise RuntimeError("the application left a request without a reply")
