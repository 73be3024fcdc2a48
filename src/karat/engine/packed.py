"""The forest as a module that trains: shared prefixes are computed, and propagated back through, once.

One row of tokens without padding. Attention has parts: every node to itself, and all that grew from it to it.
"""

from contextlib import nullcontext
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from karat import types
from karat.engine import _patches
from karat.engine._trained import Part, Training
from karat.engine.attention import RUNNING
from karat.engine.padded import PaddedForward
from karat.engine.tree import Node, Separate, Tree, order, packed
from karat.models.backbone import alike_up_to, position_offset


class PackedForward(nn.Module):
    """A backbone's forward over the forest of a batch, with gradients; the interface is `PaddedForward`'s."""

    def __init__(self, backbone: nn.Module, causal: bool = True) -> None:
        super().__init__()
        self.backbone = backbone
        self.causal = causal
        self._configs = _patches.configs_of(backbone)
        self._offset = position_offset(backbone)
        self._alike = alike_up_to(backbone)
        self._padded = (PaddedForward(backbone),)  # in a tuple, or its weights would be these twice
        self.train(backbone.training)

    def collate(self, sequences: list[types.Sequence]) -> dict[str, Any]:
        """Tensors for `forward`: ids and positions of the rows, the parts of attention, and the rows of each read.

        Padded rows where a sequence is so long that its length decides how positions are told.
        """
        if any(len(s.ids) > self._alike for s in sequences):
            return self._padded[0].collate(sequences)
        tree: Tree = Tree() if self.causal else Separate()
        tokens = [packed(s.ids) for s in sequences]
        ends = [tree.insert(t) for t in tokens]
        by_tokens = sorted(range(len(ends)), key=tokens.__getitem__)
        nodes = order(ends[i] for i in by_tokens)
        firsts = accumulate((n.stop - n.start for n in nodes), initial=0)
        begin = {id(node): first for node, first in zip(nodes, firsts, strict=False)}
        reads = [read for end, s in zip(ends, sequences, strict=True) for read in _reads(end, s, begin)]
        return {
            "ids_T": torch.from_numpy(np.concatenate([n.ids for n in nodes]).astype(np.int64)),
            "positions_T": torch.from_numpy(np.concatenate([np.arange(n.start, n.stop) for n in nodes])),
            "parts_P5": torch.tensor(_parts(nodes, begin, self.causal)),
            "rows_N": torch.from_numpy(np.concatenate(reads)),
            "counts_R": torch.tensor([len(r) for r in reads]),
        }

    def forward(self, **batch: Any) -> Tensor:
        """Hidden states at the reads, float32 [R, D], in the order of the sequences and of their names."""
        states_RD: Tensor = self._padded[0](**batch) if "chunks" in batch else self._shared(**batch)
        return states_RD

    def _shared(self, ids_T: Tensor, positions_T: Tensor, parts_P5: Tensor, rows_N: Tensor, counts_R: Tensor) -> Tensor:
        parts = [Part(slice(a, b), slice(c, d), bool(e)) for a, b, c, d, e in parts_P5.tolist()]
        running = Training(parts, self.causal)
        RUNNING.update(dict.fromkeys(self.backbone.modules(), running))
        options: dict[str, Any] = {"use_cache": False} if self.causal else {}
        with _patches.attending(self._configs):
            out = self.backbone(input_ids=ids_T[None], position_ids=positions_T[None] + self._offset, **options)
        states_ND: Tensor = out.last_hidden_state[0][rows_N].float()
        if len(counts_R) == len(rows_N):
            return states_ND
        return torch.segment_reduce(states_ND, "mean", lengths=counts_R, axis=0)

    def again(self, kwargs: dict[str, Any] | None) -> dict[str, Any]:
        """See `TrainingForward`: a layer that runs again attends as it did before."""

        def contexts() -> Any:
            return nullcontext(), _patches.attending(self._configs)

        return {"use_reentrant": False, "context_fn": contexts, **(kwargs or {})}


def _parts(nodes: list[Node], begin: dict[int, int], causal: bool) -> list[tuple[int, int, int, int, int]]:
    """Query rows, key rows, and whether to see only as far as oneself; descendants lie behind their node."""
    stop = {id(n): begin[id(n)] + n.stop - n.start for n in nodes}
    last = dict(stop)
    for node in reversed(nodes):
        if node.parent is not None and id(node.parent) in last:
            last[id(node.parent)] = max(last[id(node.parent)], last[id(node)])
    out = []
    for node in nodes:
        a, b, e = begin[id(node)], stop[id(node)], last[id(node)]
        out.append((a, b, a, b, int(causal)))
        if e > b:
            out.append((b, e, a, b, 0))
    return out


def _reads(end: Node, sequence: types.Sequence, begin: dict[int, int]) -> list[Any]:
    """Rows of each read of the sequence that ends with a node: those of a span, or one of each position."""
    path = [(begin[id(node)], node.stop - node.start) for node in reversed(list(end.path()))]
    row_L = np.concatenate([np.arange(first, first + length) for first, length in path])
    found: list[Any] = []
    for read in sequence.reads.values():
        found += [row_L[read.start : read.stop]] if isinstance(read, types.Span) else list(row_L[list(read), None])
    return found
