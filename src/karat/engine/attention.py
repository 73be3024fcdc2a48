"""Attention over the forest, as transformers' AttentionInterface wants it: one function for every architecture.

It knows rows, blocks and layers; it knows nothing of text, and nothing of the model but the tensors that it is handed.
"""

from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from karat.engine import _native
from karat.engine.plan import BLOCK, Batch, Queries

NAME = "karat"
# The forward under way of each module: not every architecture hands its keyword arguments on, and recomputation
# for gradients runs in threads of its own.
RUNNING: WeakKeyDictionary[nn.Module, "Running"] = WeakKeyDictionary()


class Captured(Exception):
    """No error: it ends a layer whose keys and values are all that was wanted."""


@dataclass
class Store:
    """Keys and values of up to `capacity` tokens, by layer: float [capacity, heads, size] each."""

    capacity: int
    layers: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def write(self, layer: int, slots: Tensor, k_THD: Tensor, v_THD: Tensor) -> tuple[Tensor, Tensor]:
        """Keep keys and values of a layer at some rows; returns all of the layer."""
        if layer not in self.layers:
            self.layers[layer] = (_empty(self.capacity, k_THD), _empty(self.capacity, v_THD))
        for kept, new in zip(self.layers[layer], (k_THD, v_THD), strict=True):
            kept.index_copy_(0, slots, new)
        return self.layers[layer]

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


@dataclass
class Running:
    """One forward under way: what the attention function needs, and what it has done."""

    batch: Batch
    store: Store
    capture: bool = False  # end the layer once its keys and values are stored
    reading: bool = False  # the layer is given the read rows only
    _layers: dict[int, int] = field(default_factory=dict)

    def layer(self, module: nn.Module) -> int:
        """The number of an attention module, in the order in which they are met."""
        return self._layers.setdefault(id(module), len(self._layers))


def forest(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **how: Any,
) -> tuple[Tensor, None]:
    """[1, heads, T, D] each → [1, T, heads, D]: every query row over its own path of keys."""
    running = RUNNING[module]
    layer, batch = running.layer(module), running.batch
    if not running.reading:
        k_THD, v_THD = key[0].transpose(0, 1), value[0].transpose(0, 1)
        if len(batch.kept) < len(k_THD):
            k_THD, v_THD = k_THD[batch.kept], v_THD[batch.kept]
        running.store.write(layer, batch.slots, k_THD, v_THD)
    if running.capture:
        raise Captured
    keys, values = running.store.layers[layer]
    q_THD = query[0].transpose(0, 1)
    out_THD = torch.empty(*q_THD.shape[:2], values.shape[-1], dtype=q_THD.dtype, device=q_THD.device)
    settings = {
        "scale": query.shape[-1] ** -0.5 if scaling is None else scaling,
        "softcap": how.get("softcap"),
        "window": how.get("sliding_window"),
        "sinks": how.get("s_aux"),
    }
    queries = batch.reading if running.reading else batch.queries
    if settings["window"] and not batch.causal:
        raise NotImplementedError("a window that looks both ways")
    if _native.takes(q_THD, keys, values):
        where = {"block_rows": batch.block_rows, **vars(queries)}
        _native.attention(q_THD, keys, values, out_THD, where, settings)
    else:
        plain(q_THD, keys, values, out_THD, batch.block_rows, queries, settings)
    return out_THD[None], None


def plain(
    q_THD: Tensor,
    keys: Tensor,
    values: Tensor,
    out_THD: Tensor,
    block_rows: Tensor,
    queries: Queries,
    how: dict[str, Any],
) -> None:
    """The same in torch's own operations, on any device: where the kernel cannot be had, and what it is held to."""
    group = q_THD.shape[1] // keys.shape[1]
    for first, count, start, blocks in queries.tiles.tolist():
        rows = block_rows[queries.paths[start : start + blocks].long()].flatten().long().to(keys.device)
        k, v = keys[rows.clamp(min=0)].float(), values[rows.clamp(min=0)].float()
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        scores = torch.einsum("qhd,khd->hqk", q_THD[first : first + count].float(), k) * how["scale"]
        if cap := how.get("softcap"):
            scores = cap * torch.tanh(scores / cap)
        limit = queries.limits[first : first + count, None].to(keys.device)
        position = torch.arange(blocks * BLOCK, device=keys.device)[None]
        seen = position <= limit
        if window := how.get("window"):
            seen &= position > limit - window
        scores = scores.masked_fill(~seen, float("-inf"))
        if (sinks := how.get("sinks")) is not None:
            scores = torch.cat([scores, sinks.float().view(-1, 1, 1).expand(-1, count, 1)], -1)
        weights = scores.softmax(-1)[..., : blocks * BLOCK]
        # Rows behind the last key have weight 0 but may hold anything.
        v = v.masked_fill((rows < 0)[:, None, None], 0)
        out_THD[first : first + count] = torch.einsum("hqk,khd->qhd", weights, v).to(out_THD.dtype)


AttentionInterface.register(NAME, forest)
AttentionMaskInterface.register(NAME, lambda *_, **__: None)
