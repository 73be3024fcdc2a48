"""The reference path: rows padded to the longest of their batch, masks made from lengths, positions explicit.

Slow and plain on purpose: faster paths are held to its answers.
"""

import inspect
import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from karat import types
from karat.engine.base import EngineError, States, check, out_of_memory
from karat.models.backbone import alike_up_to, position_offset, vocabulary


class PaddedForward(nn.Module):
    """A backbone's forward over padded rows: the one that trains and the one that scores."""

    def __init__(
        self,
        backbone: nn.Module,
        side: Literal["right", "left"] = "right",
        pad_id: int = 0,
        budget: int = 4096,
    ) -> None:
        """`pad_id` may be any id of the vocabulary: the mask alone says what is real.

        `budget` is the number of tokens, pads included, that are padded to one length; a longer sequence goes alone.
        """
        super().__init__()
        self.backbone = backbone
        self.side = side
        self.pad_id = pad_id
        self.budget = budget
        takes = inspect.signature(backbone.forward).parameters
        self.takes_positions = "position_ids" in takes
        self._takes_cache = "use_cache" in takes
        self._takes_types = "token_type_ids" in takes
        if side == "left" and not self.takes_positions:
            raise EngineError("this architecture cannot be told positions, so its rows can only be padded on the right")
        self._offset = position_offset(backbone)
        self.train(backbone.training)

    def collate(self, sequences: list[types.Sequence]) -> dict[str, Any]:
        """Tensors for `forward`: padded chunks of rows of like lengths, and the place of each read among all."""
        first_read, count = [], 0
        for sequence in sequences:
            first_read.append(count)
            count += len(_spans(sequence))
        chunks, order = [], []
        for batch in self.plan(sequences):
            chunks.append(self._pad([sequences[i] for i in batch]))
            order += [first_read[i] + k for i in batch for k in range(len(_spans(sequences[i])))]
        return {"chunks": chunks, "order_R": torch.tensor(order, dtype=torch.long)}

    def plan(self, sequences: list[types.Sequence]) -> list[list[int]]:
        """Which are padded to one length; those go alone whose length decides how positions are told."""
        return plan([len(s.ids) for s in sequences], self.budget, alike_up_to(self.backbone))

    def _pad(self, sequences: list[types.Sequence]) -> dict[str, Tensor]:
        width = max(len(s.ids) for s in sequences)
        ids_BL = torch.full((len(sequences), width), self.pad_id)
        mask_BL = torch.zeros_like(ids_BL)
        positions_BL = torch.full_like(ids_BL, self._offset)
        reads: list[tuple[int, int, int]] = []
        for row, sequence in enumerate(sequences):
            length = len(sequence.ids)
            start = 0 if self.side == "right" else width - length
            ids_BL[row, start : start + length] = torch.tensor(sequence.ids)
            mask_BL[row, start : start + length] = 1
            positions_BL[row, start : start + length] = torch.arange(length) + self._offset
            reads += [(row, start + first, start + stop) for first, stop in _spans(sequence)]
        batch = {
            "input_ids": ids_BL,
            "attention_mask": mask_BL,
            "position_ids": positions_BL,
            "reads_R3": torch.tensor(reads, dtype=torch.long).view(-1, 3),
        }
        if self._takes_types and any(s.type_ids for s in sequences):
            batch["token_type_ids"] = self._types(sequences, width)
        return batch

    def _types(self, sequences: list[types.Sequence], width: int) -> Tensor:
        types_BL = torch.zeros(len(sequences), width, dtype=torch.long)
        for row, sequence in enumerate(sequences):
            start = 0 if self.side == "right" else width - len(sequence.ids)
            own = sequence.type_ids or (0,) * len(sequence.ids)
            types_BL[row, start : start + len(own)] = torch.tensor(own)
        return types_BL

    def forward(self, chunks: list[dict[str, Tensor]], order_R: Tensor) -> Tensor:
        """Hidden states at the reads, float32 [R, D], in the order of the sequences and of their names."""
        states_RD = torch.cat([self._read(**chunk) for chunk in chunks])
        return states_RD[torch.argsort(order_R)]

    def again(self, kwargs: dict[str, Any] | None) -> dict[str, Any] | None:
        """See `TrainingForward`: nothing but what was asked for."""
        return kwargs

    def _read(
        self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, reads_R3: Tensor, **options: Any
    ) -> Tensor:
        """The reads of one chunk; a read of several positions is their mean."""
        if self.takes_positions:
            options["position_ids"] = position_ids
        if self._takes_cache:
            options["use_cache"] = False
        states_BLD = self.backbone(input_ids=input_ids, attention_mask=attention_mask, **options).last_hidden_state
        row_R, start_R, stop_R = reads_R3.unbind(-1)
        if bool((stop_R - start_R == 1).all()):
            at_reads: Tensor = states_BLD[row_R, start_R].float()
            return at_reads
        return torch.stack([states_BLD[r, a:b].float().mean(0) for r, a, b in reads_R3.tolist()])


class PaddedEngine:
    """One `PaddedForward` after another, each within its token budget."""

    def __init__(self, forward: PaddedForward, together: bool = False) -> None:
        """`together`: other processes run the same forwards, so that none may change them for itself."""
        self.forward, self.together = forward, together

    @torch.no_grad()
    def run(self, sequences: list[types.Sequence]) -> list[States]:
        """See `Engine.run`. Equal sequences are computed once."""
        backbone: Any = self.forward.backbone
        check(sequences, vocabulary(backbone))
        keys = [(s.ids, tuple(s.reads.items()), s.type_ids) for s in sequences]
        distinct = dict(zip(keys, sequences, strict=True))
        modes = {module: module.training for module in self.forward.modules()}
        self.forward.eval()
        try:
            computed = self._distinct(distinct)
        finally:
            for module, training in modes.items():
                module.training = training
        return [computed[key] for key in keys]

    def _distinct(self, sequences: dict[Any, types.Sequence]) -> dict[Any, States]:
        keys, rows = list(sequences), list(sequences.values())
        computed: dict[Any, States] = {}
        for batch in self.forward.plan(rows):
            computed |= zip((keys[i] for i in batch), self._in_memory([rows[i] for i in batch]), strict=True)
        return computed

    def _in_memory(self, rows: list[types.Sequence]) -> list[States]:
        """Half as many at a time where memory runs out."""
        device = next(self.forward.parameters()).device
        try:
            return unflatten(rows, self.forward(**to_device(self.forward.collate(rows), device)))
        except (MemoryError, RuntimeError) as error:
            if self.together or not out_of_memory(error):
                raise
        if len(rows) == 1:
            raise EngineError(f"memory ran out on a sequence of {len(rows[0].ids)} tokens; set max_length lower")
        half = len(rows) // 2
        return self._in_memory(rows[:half]) + self._in_memory(rows[half:])


def to_device(tensors: Any, device: torch.device) -> Any:
    """What `collate` gives, on a device."""
    if isinstance(tensors, Tensor):
        return tensors.to(device)
    if isinstance(tensors, dict):
        return {name: to_device(part, device) for name, part in tensors.items()}
    return [to_device(part, device) for part in tensors]


def plan(lengths: list[int], budget: int, limit: float = math.inf) -> list[list[int]]:
    """Indices by batch: sorted by length, as many as fit into `budget` tokens with pads, at least one.

    What is longer than `limit` goes alone.

    >>> plan([3, 9, 2, 4], budget=9)
    [[1], [3, 0], [2]]
    """
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        longest = lengths[batches[-1][0]] if batches else 0
        if batches and longest * (len(batches[-1]) + 1) <= budget and longest <= limit:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches


def unflatten(sequences: list[types.Sequence], states_RD: Tensor) -> list[States]:
    """Flat reads of rows that were padded together, back to one mapping per sequence."""
    out: list[States] = []
    at, width = 0, max(len(s.ids) for s in sequences)
    for sequence in sequences:
        mine = States()
        mine.padding = width - len(sequence.ids)
        for name, read in sequence.reads.items():
            count = 1 if isinstance(read, types.Span) else len(read)
            mine[name] = states_RD[at : at + count]
            at += count
        out.append(mine)
    return out


def _spans(sequence: types.Sequence) -> list[tuple[int, int]]:
    spans: list[tuple[int, int]] = []
    for read in sequence.reads.values():
        spans += [(read.start, read.stop)] if isinstance(read, types.Span) else [(p, p + 1) for p in read]
    return spans
