"""A model in a worker of a cluster: scores shards, and gives rows that cannot be scored the reason."""

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, NamedTuple

from karat.formats.base import json_line
from karat.rewards import _offline
from karat.scaling._shards import Open, Shard
from karat.types import Example, KaratError, Unscored


class Ready(NamedTuple):
    """What a replica has opened; the driver compares it with what the others have."""

    fingerprint: str
    at_steps: bool


class Replica:
    """A model in a worker of its own."""

    def __init__(self, opened: Open) -> None:
        self._problem: KaratError | None = None
        try:
            self._model = opened()
            list(self._model.score_many([]))  # one that has no reward for an answer refuses
        except KaratError as error:
            self._problem = error

    def ready(self) -> Ready | KaratError:
        """What was opened, or why nothing was."""
        return self._problem or Ready(str(getattr(self._model, "fingerprint", "")), self._model.at_steps)

    def score(self, shard: Shard) -> list[str]:
        """What each row gets, as a line of JSON."""
        return list(map(json_line, self._scored(shard.read)))

    def _scored(self, read: Sequence[Example | Unscored]) -> Iterator[dict[str, Any]]:
        """The rows' results; of rows that raise together, each half by itself until it is found which one does."""
        try:
            yield from list(chain.from_iterable(_offline.scored(self._model, iter(read))))
        except Exception as error:
            if len(read) == 1:
                yield _offline.columns(Unscored(f"{type(error).__name__}: {error}"), self._model.at_steps)
                return
            at = len(read) // 2
            yield from chain(self._scored(read[:at]), self._scored(read[at:]))
