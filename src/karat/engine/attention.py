"""Attention over the forest, as transformers' AttentionInterface wants it: one function for every architecture.

It knows rows, blocks and layers; it knows nothing of text, and nothing of the model but the tensors that it is handed.
"""

import threading
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface

from karat.engine import _native
from karat.engine.base import EngineError
from karat.engine.plan import BLOCK, Batch, Queries

NAME = "karat"
SPAN = 512  # query rows of one path that torch's attention takes together
GATHERED = 1 << 16  # keys that are gathered for it at a time
# The forward under way of each module: not every architecture hands its keyword arguments on, and recomputation
# for gradients runs in threads of its own.
RUNNING: WeakKeyDictionary[nn.Module, "Attends"] = WeakKeyDictionary()


class Attends(Protocol):
    """A forward under way."""

    def attend(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, how: "Settings") -> Tensor:
        """[1, heads, T, D] each → [1, T, heads, D]."""
        ...


class Captured(Exception):
    """No error: it ends a layer whose keys and values are all that was wanted."""


@dataclass
class Store:
    """Keys and values of up to `capacity` tokens, by layer: float [capacity, heads, size] each."""

    capacity: int
    layers: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def write(self, layer: int, slots: Tensor, k_THD: Tensor, v_THD: Tensor) -> None:
        """Keep keys and values of a layer at some rows."""
        if layer not in self.layers:
            self.layers[layer] = (_empty(self.capacity, k_THD), _empty(self.capacity, v_THD))
        for kept, new in zip(self.layers[layer], (k_THD, v_THD), strict=True):
            kept.index_copy_(0, slots, new)

    def grown(self, capacity: int) -> "Store":
        """The same with room for more."""
        out = Store(capacity)
        for layer, kept in self.layers.items():
            out.layers[layer] = (_empty(capacity, kept[0]), _empty(capacity, kept[1]))
            for new, old in zip(out.layers[layer], kept, strict=True):
                new[: self.capacity] = old
        return out


def _empty(capacity: int, like: Tensor) -> Tensor:
    return torch.empty(capacity, *like.shape[1:], dtype=like.dtype, device=like.device)


class Settings(NamedTuple):
    """How a layer attends, beside its tensors."""

    scale: float
    softcap: float | None  # scores are cap * tanh(score / cap)
    window: int | None  # positions that are seen, one's own included
    sinks: Tensor | None  # by head, a score that takes weight and gives nothing


class Group(NamedTuple):
    """Spans of query rows that go through torch's attention together, filled up to the longest."""

    queries: Tensor  # int64 [S, Q], rows of the forward
    keys: Tensor  # int64 [S, K], rows of the store by position
    seen: Tensor  # bool [S, 1, Q, K]
    real: Tensor  # int64 [N], which of the S * Q are no filling


@dataclass
class Running:
    """One forward that scores: what its attention needs, and what it is at."""

    batch: Batch
    store: Store
    capture: bool = False  # end the layer once its keys and values are stored
    reading: bool = False  # the layer is given the read rows only
    thread: int = field(default_factory=threading.get_ident)
    _layers: dict[int, int] = field(default_factory=dict)
    _groups: dict[tuple[bool, int | None], list[Group]] = field(default_factory=dict)

    def attend(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, how: Settings) -> Tensor:
        """[1, heads, T, D] each → [1, T, heads, D]: every query row over its own path of keys."""
        layer, batch = self._layers.setdefault(id(module), len(self._layers)), self.batch
        asked = batch.reading if self.reading else batch.queries
        if threading.get_ident() != self.thread or query.shape[0] != 1 or query.shape[2] != len(asked.limits):
            raise EngineError("the model was called by others while karat ran it; give karat a model of its own")
        if not self.reading:
            k_THD, v_THD = key[0].transpose(0, 1), value[0].transpose(0, 1)
            if len(batch.kept) < len(k_THD):
                k_THD, v_THD = k_THD[batch.kept], v_THD[batch.kept]
            self.store.write(layer, batch.slots, k_THD, v_THD)
        if self.capture:
            raise Captured
        if how.window and not batch.causal:
            raise NotImplementedError("a window that looks both ways")
        keys, values = self.store.layers[layer]
        q_THD = query[0].transpose(0, 1)
        out_THD = q_THD.new_zeros(*q_THD.shape[:2], values.shape[-1])
        if _native.takes(q_THD, keys, values):
            native(q_THD, keys, values, out_THD, batch.block_rows, asked, how)
        else:
            gathered(q_THD, keys, values, out_THD, self._groups_of(asked, how.window, q_THD.device), how)
        return out_THD[None]

    def _groups_of(self, queries: Queries, window: int | None, device: torch.device) -> list[Group]:
        """Made once for all layers of a forward."""
        key = (self.reading, window)
        if key not in self._groups:
            made = groups_of(self.batch.block_rows, queries, window)
            self._groups[key] = [Group(*(part.to(device) for part in group)) for group in made]
        return self._groups[key]


def forest(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **how: Any,
) -> tuple[Tensor, None]:
    """What transformers calls: [1, heads, T, D] each → [1, T, heads, D], by the forward that is under way."""
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    # Some architectures tell the mask of a window and not the attention.
    window = how.get("sliding_window") if attention_mask is None else int(attention_mask)
    settings = Settings(scale, how.get("softcap"), window or None, how.get("s_aux"))
    # Under autocast some come in float32 and some do not.
    query, key = query.to(value.dtype), key.to(value.dtype)
    return RUNNING[module].attend(module, query, key, value, settings), None


def native(
    q_THD: Tensor, keys: Tensor, values: Tensor, out_THD: Tensor, block_rows: Tensor, queries: Queries, how: Settings
) -> None:
    """By the compiled kernel."""
    _native.attention(q_THD, keys, values, out_THD, {"block_rows": block_rows, **vars(queries)}, how._asdict())


def groups_of(block_rows: Tensor, queries: Queries, window: int | None) -> list[Group]:
    """Query rows and their paths, spans of about the same size together."""
    alike: dict[tuple[int, int], list[tuple[int, int, int, int]]] = {}
    for span in _spans(queries):
        alike.setdefault((span[1].bit_length(), span[3].bit_length()), []).append(span)
    out = []
    for spans in alike.values():
        count = max(1, GATHERED // (BLOCK * max(span[3] for span in spans)))
        out += [_group(spans[i : i + count], block_rows, queries, window) for i in range(0, len(spans), count)]
    return out


def _spans(queries: Queries) -> list[tuple[int, int, int, int]]:
    """First query row, rows, first entry of the path, and as many entries as they see; tiles of one path are joined."""
    found: list[tuple[int, int, int]] = []
    for first, count, start, _ in queries.tiles.tolist():
        if found and found[-1][2] == start and sum(found[-1][:2]) == first and found[-1][1] + count <= SPAN:
            first, before, _ = found.pop()
            count += before
        found.append((first, count, start))
    return [(*span, int(queries.limits[span[0] : sum(span[:2])].max()) // BLOCK + 1) for span in found]


def _group(spans: list[tuple[int, int, int, int]], block_rows: Tensor, queries: Queries, window: int | None) -> Group:
    first, count, start, blocks = torch.tensor(spans, device="cpu").T[..., None]
    at_Q, at_B = (torch.arange(int(most.max()), device="cpu") for most in (count, blocks))
    rows_SQ = first + at_Q.where(at_Q < count, 0)
    paths_SB = queries.paths[start + at_B.where(at_B < blocks, 0)]
    keys_SK = block_rows[paths_SB.long()].flatten(1).long()
    keys_SK = keys_SK.where(keys_SK >= 0, keys_SK[:, :1])  # a row that holds numbers, whatever they are
    limit, position = queries.limits[rows_SQ][..., None], torch.arange(keys_SK.shape[1], device="cpu")
    seen_SQK = position <= limit
    if window:
        seen_SQK &= position > limit - window
    return Group(rows_SQ, keys_SK, seen_SQK[:, None], (at_Q < count).flatten().nonzero()[:, 0])


def gathered(q_THD: Tensor, keys: Tensor, values: Tensor, out_THD: Tensor, groups: list[Group], how: Settings) -> None:
    """The same by torch's own kernels, on any device: where ours cannot be had, and what it is held to."""
    for group in groups:
        taken = ((q_THD, group.queries), (keys, group.keys), (values, group.keys))
        q, k, v = (kept[rows].transpose(1, 2) for kept, rows in taken)
        attention = _by_scores if how.softcap or how.sinks is not None else _fused
        out = attention(q, k, v, group.seen, how)
        out_THD[group.queries.flatten()[group.real]] = out.transpose(1, 2).flatten(0, 1)[group.real]


def _fused(q: Tensor, k: Tensor, v: Tensor, seen: Tensor, how: Settings) -> Tensor:
    """[S, heads, Q or K, D] → [S, heads, Q, D]; what shares a key head becomes rows of it: few kernels know groups."""
    spans, heads, count, size = q.shape
    times = heads // k.shape[1]
    rows = q.reshape(spans, heads // times, times * count, size)
    out: Tensor = scaled_dot_product_attention(rows, k, v, seen.repeat(1, 1, times, 1), scale=how.scale)
    return out.reshape(spans, heads, count, v.shape[-1])


def _by_scores(q: Tensor, k: Tensor, v: Tensor, seen: Tensor, how: Settings) -> Tensor:
    """[S, heads, Q or K, D] → [S, heads, Q, D], with what torch's fused kernels do not have."""
    k, v = (kept.float().repeat_interleave(q.shape[1] // k.shape[1], 1) for kept in (k, v))
    scores = q.float() @ k.transpose(-1, -2) * how.scale
    if cap := how.softcap:
        scores = cap * torch.tanh(scores / cap)
    scores = scores.masked_fill(~seen, float("-inf"))
    if how.sinks is not None:
        sinks = how.sinks.float().view(-1, 1, 1).expand(*scores.shape[:-1], 1)
        scores = torch.cat([scores, sinks], -1)
    return (scores.softmax(-1)[..., : k.shape[2]] @ v).to(q.dtype)


def window_of_mask(*_: Any, local_size: int | None = None, **__: Any) -> Tensor:
    """What stands for a mask: the window that it would have, 0 for none. The rest is in the plan."""
    return torch.tensor(local_size or 0)


AttentionInterface.register(NAME, forest)
AttentionMaskInterface.register(NAME, window_of_mask)
