"""The models that are served, by name, and how one takes the place of another while requests go on."""

import asyncio
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

from karat.engine.base import out_of_memory
from karat.rewards.base import RewardModel
from karat.serving._canary import Canary
from karat.serving._metrics import Metrics
from karat.serving._pipeline import Pipeline
from karat.types import BadInput, Refused

WAIT = 30.0  # seconds that threads may take to do what they have, when a model goes


class Models(Mapping[str, Pipeline]):
    """Pipelines by the names of their models."""

    def __init__(
        self,
        pipelines: Mapping[str, Pipeline],
        metrics: Metrics,
        sources: Mapping[str, Callable[[], Pipeline]] | None = None,
    ) -> None:
        """`sources` load a model anew, in a thread."""
        if not pipelines:
            raise BadInput("there is no model to serve; give one")
        self._pipelines = dict(pipelines)
        self._metrics, self._sources = metrics, dict(sources or {})
        self.canaries = {name: Canary(pipeline) for name, pipeline in pipelines.items()}
        self._reloading: dict[str, asyncio.Task[None]] = {}
        self._leaving: dict[str, asyncio.Task[None]] = {}
        self._loaders = ThreadPoolExecutor(thread_name_prefix="karat-load")  # the end waits for none that still loads
        for name in self._pipelines:
            self._watch(name)

    def _watch(self, name: str) -> None:
        canary = self.canaries[name]
        self._metrics.watch(name, self._pipelines[name], lambda: canary.drift)

    def __getitem__(self, name: str) -> Pipeline:
        return self._pipelines[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._pipelines)

    def __len__(self) -> int:
        return len(self._pipelines)

    @property
    def broken(self) -> str:
        """Why nothing can be computed in this process any more; empty where it can."""
        failed = [pipeline.batcher.broken for pipeline in self.values() if pipeline.batcher.broken]
        return f"the device failed ({str(failed[0]).strip().partition(chr(10))[0]:.200})" if failed else ""

    async def start(self) -> None:
        """Score golden inputs for the first time.

        Raises:
            CheckpointError: a model does not score as it has to.
        """
        for canary in self.canaries.values():
            await canary.first()

    async def problem(self) -> str:
        """Why a model does not work; empty where all do."""
        for name, canary in list(self.canaries.items()):
            if found := await canary.problem():
                return f"{name}: {found}"
            if (generator := self[name].generator) and not generator.runs:
                return f"{name}: nothing is generated any more"
        return ""

    async def reload(self, name: str) -> None:
        """Load a model anew, beside the one that is served, and put it in its place where its golden scores hold.

        Requests that have begun are answered by the one that they began with; two calls at a time are one.

        Raises:
            Refused: the new model does not give the same sort of rewards, or there is nothing to load it from, or no
                room for it.
            KaratError: it cannot be loaded, or does not score as it has to; the old one goes on.
        """
        if name not in self._sources:
            raise Refused(f"{name} was made in this process and has no folder to be loaded from; start the server anew")
        task = self._reloading.get(name)
        if task is None:
            task = self._reloading[name] = asyncio.create_task(self._reload(name))
            task.add_done_callback(lambda _: self._reloading.pop(name, None))
        await asyncio.shield(task)  # a client that leaves does not leave half of it

    async def _reload(self, name: str) -> None:
        try:
            await self._room(name)
            pipeline, canary = await self._loaded(name)
        except BaseException as error:
            self._metrics.reloads.labels(name, "no").inc()
            if out_of_memory(error):
                raise Refused(
                    "there is no memory for it beside the old one; free some, or start the server anew"
                ) from None
            raise
        old = self._pipelines[name]
        self._pipelines[name], self.canaries[name] = pipeline, canary
        self._watch(name)
        self._metrics.reloads.labels(name, "yes").inc()
        self._retire(name, old)

    async def _room(self, name: str) -> None:
        """Wait for the model that is leaving, as there is room for two.

        Raises:
            Refused: requests that began with it take too long.
        """
        if leaving := self._leaving.get(name):
            await asyncio.wait([leaving], timeout=WAIT)
            if not leaving.done():
                raise Refused("requests still wait for the model before it, and there is room for two; try again later")

    async def _loaded(self, name: str) -> tuple[Pipeline, Canary]:
        """A new model that may take the place of the old one."""
        pipeline = await asyncio.get_running_loop().run_in_executor(self._loaders, self._sources[name])
        canary = Canary(pipeline)
        try:
            _check_alike(self._pipelines[name].model, pipeline.model)
            await canary.first()
        except BaseException:
            self._retire(name, pipeline)
            raise
        return pipeline, canary

    def _retire(self, name: str, pipeline: Pipeline) -> None:
        """Let a model go when nobody waits for it any more; nobody is loaded by this name before it went."""
        task = self._leaving[name] = asyncio.create_task(_gone(pipeline))
        task.add_done_callback(lambda _: self._leaving.pop(name, None))

    def close(self) -> None:
        """Do what was taken, and end."""
        for pipeline in self.values():
            pipeline.close(10.0)
        self._loaders.shutdown(wait=False, cancel_futures=True)


async def _gone(pipeline: Pipeline) -> None:
    """Wait until nobody asks it, and let it go."""
    await pipeline.unused()
    await asyncio.to_thread(pipeline.close, WAIT)


def _check_alike(old: RewardModel, new: RewardModel) -> None:
    """Raise Refused for a model whose rewards mean something else than those that clients have seen."""
    for name in ("output", "compares", "at_steps"):
        was, now = getattr(old, name), getattr(new, name)
        if was != now:
            raise Refused(f"the new model is of another kind ({name} is {now}, and was {was}); start the server anew")
