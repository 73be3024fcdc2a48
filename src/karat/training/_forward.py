"""A forward over states that were computed once: what a frozen backbone needs to train its head in seconds."""

import torch
from torch import Tensor, nn

from karat import types
from karat.engine.base import Engine


class StoredForward(nn.Module):
    """Hidden states by sequence, with the interface of the engine's forward."""

    def __init__(self, engine: Engine, sequences: list[types.Sequence]) -> None:
        super().__init__()
        states = engine.run(sequences)
        self._states = {s.ids: torch.cat(list(mine.values())).cpu() for s, mine in zip(sequences, states, strict=True)}

    def collate(self, sequences: list[types.Sequence]) -> dict[str, Tensor]:
        """The stored states of these sequences, [R, D]."""
        return {"states_RD": torch.cat([self._states[s.ids] for s in sequences])}

    def forward(self, states_RD: Tensor) -> Tensor:
        """The states themselves."""
        return states_RD
