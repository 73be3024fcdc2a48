"""What of scoring on a cluster knows no cluster: which rows go together, and what a replica takes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from karat.rewards._open import open_model
from karat.rewards.base import RewardModel
from karat.types import BadInput, Example, Unscored


class Open(NamedTuple):
    """How each replica opens its model."""

    model: str
    device: str = "auto"
    dtype: str = "auto"
    deterministic: bool = False
    compiled: bool = False
    options: Mapping[str, Any] = {}

    def from_anywhere(self) -> "Open":
        """The same, where the working folder is another."""
        return self._replace(model=str(Path(self.model).absolute())) if Path(self.model).exists() else self

    def __call__(self) -> RewardModel:
        """The model."""
        return open_model(self.model, self.device, self.dtype, self.deterministic, self.compiled, **self.options)


@dataclass(frozen=True)
class Shard:
    """Rows that are scored together."""

    number: int
    places: tuple[int, ...]  # of the rows in the file, from 0
    read: tuple[Example | Unscored, ...]

    def halves(self) -> tuple["Shard", "Shard"]:
        """Both halves, of a shard of several rows; they keep its number."""
        at = len(self.places) // 2
        first = Shard(self.number, self.places[:at], self.read[:at])
        return first, Shard(self.number, self.places[at:], self.read[at:])


class Resources(NamedTuple):
    """How many replicas, and what each takes."""

    replicas: int
    cpus: int
    gpus: int


def share_out(nodes: Sequence[Mapping[str, Any]], replicas: int | None = None) -> Resources:
    """One replica for each GPU, else for each node; with a number of `replicas`, as many CPUs for each as there are.

    >>> share_out([{"Alive": True, "Resources": {"CPU": 16.0}}] * 2, replicas=4)
    Resources(replicas=4, cpus=8, gpus=0)

    Raises:
        BadInput: the cluster has no CPUs, or too few CPUs or GPUs.
    """
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    gpus = sum(int(own.get("GPU", 0)) for own in alive)
    if gpus >= (replicas or 1):
        return Resources(replicas or gpus, 1, 1)
    cpus = [count for own in alive if not gpus and (count := int(own.get("CPU", 0)))]
    wanted = replicas or len(cpus)
    for each in range(max(cpus, default=0), 0, -1):
        if sum(count // each for count in cpus) >= wanted:
            return Resources(wanted, each, 0)
    there = f"{gpus} GPUs" if gpus else f"{sum(cpus)} CPUs and no GPU"
    raise BadInput(f"the cluster has {there}, too few for {max(wanted, 1)} replicas; give fewer --replicas")


def cut(read: Sequence[Example | Unscored], size: int) -> list[Shard]:
    """Shards of at most `size` rows; the answers to a prompt lie together, and prompts that begin alike do.

    A prompt is in one shard if it has no more than `size` answers. The same rows give the same shards.

    >>> [shard.places for shard in cut([Example((), "a"), Unscored("no text"), Example((), "b")], 2)]
    [(0, 1), (2,)]
    """
    places = sorted(range(len(read)), key=lambda place: (_prompt(read[place]), place))
    shards: list[list[int]] = [[]]
    for _, group in groupby(places, key=lambda place: _prompt(read[place])):
        answers = list(group)
        if len(shards[-1]) + len(answers) > size:
            shards.append([])
        for place in answers:
            if len(shards[-1]) == size:
                shards.append([])
            shards[-1].append(place)
    full = (own for own in shards if own)
    return [Shard(number, tuple(own), tuple(read[place] for place in own)) for number, own in enumerate(full)]


def _prompt(read: Example | Unscored) -> tuple[tuple[str, str], ...]:
    return tuple((m.role, m.content) for m in read.prompt) if isinstance(read, Example) else ()
