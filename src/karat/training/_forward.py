"""A forward over states that were computed once: what a frozen backbone needs to train its head in seconds."""

from collections.abc import Iterator
from contextlib import closing

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor, nn

from karat import types
from karat.engine.base import Engine, States
from karat.rewards._local import CHUNK
from karat.training._progress import shown


class StoredForward(nn.Module):
    """Hidden states by sequence, with the interface of the engine's forward, and of an engine."""

    def __init__(self, engine: Engine, sequences: list[types.Sequence]) -> None:
        """Each process computes its share of the distinct sequences, and all get all of them."""
        super().__init__()
        process = PartialState()
        distinct = list({s.ids: s for s in sequences}.values())
        share = distinct[process.process_index :: process.num_processes]
        with closing(shown(_computed(engine, share), len(share), "computing features")) as computing:
            computed = list(computing)
        self._states: dict[tuple[int, ...], States] = dict(gather_object(computed))
        self._engine = engine

    def run(self, sequences: list[types.Sequence]) -> list[States]:
        """See `Engine.run`; sequences that are not stored are computed."""
        new = [s for s in sequences if s.ids not in self._states]
        computed = dict(zip((s.ids for s in new), self._engine.run(new), strict=True)) if new else {}
        return [self._states[s.ids] if s.ids in self._states else computed[s.ids] for s in sequences]

    def collate(self, sequences: list[types.Sequence]) -> dict[str, Tensor]:
        """The stored states of these sequences, [R, D]."""
        return {"states_RD": torch.cat([t for s in sequences for t in self._states[s.ids].values()])}

    def forward(self, states_RD: Tensor) -> Tensor:
        """The states themselves."""
        return states_RD


def _computed(engine: Engine, sequences: list[types.Sequence]) -> Iterator[tuple[tuple[int, ...], States]]:
    for start in range(0, len(sequences), CHUNK):
        chunk = sequences[start : start + CHUNK]
        yield from ((s.ids, _on_cpu(found)) for s, found in zip(chunk, engine.run(chunk), strict=True))


def _on_cpu(states: States) -> States:
    moved = States({name: tensor.cpu() for name, tensor in states.items()})
    moved.cached_tokens = states.cached_tokens
    return moved
