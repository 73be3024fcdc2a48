"""Attention over the forest, as transformers' AttentionInterface wants it: one function for every architecture.

It knows rows, blocks and layers; it knows nothing of text, and nothing of the model but the tensors that it is handed.
"""

from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from karat.engine import _native
from karat.engine.plan import BLOCK, Batch, Queries

NAME = "karat"
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


@dataclass
class Running:
    """One forward that scores: what its attention needs, and what it is at."""

    batch: Batch
    store: Store
    capture: bool = False  # end the layer once its keys and values are stored
    reading: bool = False  # the layer is given the read rows only
    _layers: dict[int, int] = field(default_factory=dict)

    def attend(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, how: Settings) -> Tensor:
        """[1, heads, T, D] each → [1, T, heads, D]: every query row over its own path of keys."""
        layer, batch = self._layers.setdefault(id(module), len(self._layers)), self.batch
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
        queries = batch.reading if self.reading else batch.queries
        attention = native if _native.takes(q_THD, keys, values) else plain
        attention(q_THD, keys, values, out_THD, batch.block_rows, queries, how)
        return out_THD[None]


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


def plain(
    q_THD: Tensor, keys: Tensor, values: Tensor, out_THD: Tensor, block_rows: Tensor, queries: Queries, how: Settings
) -> None:
    """The same in torch's own operations, on any device: where the kernel cannot be had, and what it is held to."""
    group = q_THD.shape[1] // keys.shape[1]
    for first, count, start, blocks in queries.tiles.tolist():
        rows = block_rows[queries.paths[start : start + blocks].long()].flatten().long().to(keys.device)
        k, v = keys[rows.clamp(min=0)].float(), values[rows.clamp(min=0)].float()
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        scores = torch.einsum("qhd,khd->hqk", q_THD[first : first + count].float(), k) * how.scale
        if cap := how.softcap:
            scores = cap * torch.tanh(scores / cap)
        limit = queries.limits[first : first + count, None].to(keys.device)
        position = torch.arange(blocks * BLOCK, device=keys.device)[None]
        seen = position <= limit
        if window := how.window:
            seen &= position > limit - window
        scores = scores.masked_fill(~seen, float("-inf"))
        if (sinks := how.sinks) is not None:
            scores = torch.cat([scores, sinks.float().view(-1, 1, 1).expand(-1, count, 1)], -1)
        weights = scores.softmax(-1)[..., : blocks * BLOCK]
        # Rows behind the last key have weight 0 but may hold anything.
        v = v.masked_fill((rows < 0)[:, None, None], 0)
        out_THD[first : first + count] = torch.einsum("hqk,khd->qhd", weights, v).to(out_THD.dtype)


def window_of_mask(*_: Any, local_size: int | None = None, **__: Any) -> Tensor:
    """What stands for a mask: the window that it would have, 0 for none. The rest is in the plan."""
    return torch.tensor(local_size or 0)


AttentionInterface.register(NAME, forest)
AttentionMaskInterface.register(NAME, window_of_mask)
