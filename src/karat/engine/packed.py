"""The forest as a module that trains: shared prefixes are computed, and propagated back through, once.

One row of tokens without padding. Attention goes by parts: every node to itself, and all that grew from it to it;
parts are merged by their log-sum-exp, forwards and backwards (Dao 2023, arXiv:2307.08691, §3.1).
"""

from contextlib import nullcontext
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from karat import types
from karat.engine import _patches
from karat.engine.attention import RUNNING, Settings
from karat.engine.tree import Node, Separate, Tree, order, packed
from karat.models.backbone import position_offset


class Part(NamedTuple):
    """Query rows that see a run of key rows: all of it, or as far as themselves."""

    query: slice
    key: slice
    causal: bool


class PackedForward(nn.Module):
    """A backbone's forward over the forest of a batch, with gradients; the interface is `PaddedForward`'s."""

    def __init__(self, backbone: nn.Module, causal: bool = True) -> None:
        super().__init__()
        self.backbone = backbone
        self.causal = causal
        self._configs = _patches.configs_of(backbone)
        self._offset = position_offset(backbone)
        self.train(backbone.training)

    def collate(self, sequences: list[types.Sequence]) -> dict[str, Tensor]:
        """Tensors for `forward`: ids and positions of the rows, the parts of attention, and the rows of each read."""
        tree: Tree = Tree() if self.causal else Separate()
        tokens = [packed(s.ids) for s in sequences]
        ends = [tree.insert(t) for t in tokens]
        by_tokens = sorted(range(len(ends)), key=tokens.__getitem__)
        nodes = order(ends[i] for i in by_tokens)
        firsts = accumulate((n.stop - n.start for n in nodes), initial=0)
        begin = {id(node): first for node, first in zip(nodes, firsts, strict=False)}
        reads = [_rows(end, span, begin) for end, s in zip(ends, sequences, strict=True) for span in _spans(s)]
        return {
            "ids_T": torch.from_numpy(np.concatenate([n.ids for n in nodes]).astype(np.int64)),
            "positions_T": torch.from_numpy(np.concatenate([np.arange(n.start, n.stop) for n in nodes])),
            "parts_P5": torch.tensor(_parts(nodes, begin, self.causal)),
            "rows_N": torch.from_numpy(np.concatenate(reads)),
            "counts_R": torch.tensor([len(r) for r in reads]),
        }

    def forward(self, ids_T: Tensor, positions_T: Tensor, parts_P5: Tensor, rows_N: Tensor, counts_R: Tensor) -> Tensor:
        """Hidden states at the reads, float32 [R, D], in the order of the sequences and of their names."""
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


@dataclass(frozen=True)
class Training:
    """One forward under way."""

    parts: list[Part]
    causal: bool

    def attend(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, how: Settings) -> Tensor:
        """[1, heads, T, D] each → [1, T, heads, D]."""
        if how.window and not self.causal:
            raise NotImplementedError("a window that looks both ways")
        group = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
        if how.softcap or how.sinks is not None or how.window or query.device.type != "cpu":
            out = _dense(query, key, value, self.parts, how)
        else:
            out = _ByParts.apply(query, key, value, self.parts, how.scale)  # type: ignore[no-untyped-call]
        return out.transpose(1, 2)


class _ByParts(torch.autograd.Function):
    """Attention whose probabilities are spread over parts, each computed by torch's fused kernel."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, parts: list[Part], scale: float) -> Tensor:
        out = torch.zeros_like(q, dtype=torch.float32, memory_format=torch.contiguous_format)
        top = torch.full(q.shape[:3], float("-inf"))
        for rows, keys, causal in parts:
            new, high = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                q[:, :, rows], k[:, :, keys], v[:, :, keys], 0.0, causal, scale=scale
            )
            both = torch.logaddexp(top[:, :, rows], high)
            out[:, :, rows] *= (top[:, :, rows] - both).exp()[..., None]
            out[:, :, rows] += new * (high - both).exp()[..., None]
            top[:, :, rows] = both
        out = out.to(q.dtype)
        ctx.save_for_backward(q, k, v, out, top)
        ctx.parts, ctx.scale = parts, scale
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        q, k, v, out, top = ctx.saved_tensors
        grad = grads[0].contiguous()
        found = [torch.zeros_like(t, memory_format=torch.contiguous_format) for t in (q, k, v)]
        for rows, keys, causal in ctx.parts:
            new = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                *(grad[:, :, rows], q[:, :, rows], k[:, :, keys], v[:, :, keys], out[:, :, rows], top[:, :, rows]),
                *(0.0, causal),
                scale=ctx.scale,
            )
            for total, part, at in zip(found, new, (rows, keys, keys), strict=True):
                total[:, :, at] += part
        return (*found, None, None)


def _dense(q: Tensor, k: Tensor, v: Tensor, parts: list[Part], how: Settings) -> Tensor:
    """The same with every score written out: for windows, soft caps and sinks, and where there is no such kernel."""
    count = q.shape[2]
    seen = torch.zeros(count, count, dtype=torch.bool)
    for rows, keys, causal in parts:
        size = (rows.stop - rows.start, keys.stop - keys.start)
        seen[rows, keys] = torch.ones(size, dtype=torch.bool).tril() if causal else True
    if how.window:
        # A row's keys are its ancestors in order: the number of those behind a key is its distance.
        behind = seen.flip(1).cumsum(1).flip(1)
        seen &= behind <= how.window
    scores = torch.einsum("bhqd,bhkd->bhqk", q.float(), k.float()) * how.scale
    if how.softcap:
        scores = how.softcap * torch.tanh(scores / how.softcap)
    scores = scores.masked_fill(~seen.to(q.device), float("-inf"))
    if how.sinks is not None:
        sinks = how.sinks.float().view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        scores = torch.cat([scores, sinks], -1)
    weights = scores.softmax(-1)[..., :count]
    return torch.einsum("bhqk,bhkd->bhqd", weights, v.float()).to(q.dtype)


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


def _spans(sequence: types.Sequence) -> list[range]:
    spans: list[range] = []
    for read in sequence.reads.values():
        spans += [range(read.start, read.stop)] if isinstance(read, types.Span) else [range(p, p + 1) for p in read]
    return spans


def _rows(end: Node, positions: range, begin: dict[int, int]) -> Any:
    """Rows of a run of positions of the sequence that ends with a node."""
    parts = []
    for node in end.path():
        first, stop = max(positions.start, node.start), min(positions.stop, node.stop)
        if first < stop:
            parts.append(np.arange(first, stop) + begin[id(node)] - node.start)
    return np.concatenate(parts[::-1])
