"""Attention over a forest with gradients: small trees side by side in one call, large ones by parts.

Parts are merged by their log-sum-exp, forwards and backwards (Dao 2023, arXiv:2307.08691, §3.1). For short answers a
call each would cost more than its arithmetic, so trees of about the same size are computed together, with every
score that a tree could have.
"""

from collections.abc import Iterator
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from karat.engine.attention import Settings

SMALL = 128  # rows of a tree up to which it is computed with its like
FILLED = 0.75  # of the largest tree of a group, so much at least has every other one


class Part(NamedTuple):
    """Query rows that see a run of key rows: all of it, or as far as themselves."""

    query: slice
    key: slice
    causal: bool


class Group(NamedTuple):
    """N trees of about the same size, each filled up to L rows with its first one."""

    rows_NL: Tensor  # int64: the rows of each tree
    seen_N1LL: Tensor  # bool: which rows of its tree a row sees


class Split(NamedTuple):
    """What is computed by groups and what by parts, and where each of T rows is found in what comes out."""

    groups: list[Group]
    parts: list[Part]
    order_T: Tensor


class Training:
    """One forward under way."""

    def __init__(self, parts: list[Part], causal: bool) -> None:
        self._parts, self._causal = parts, causal

    def attend(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, how: Settings) -> Tensor:
        """[1, heads, T, D] each → [1, T, heads, D]."""
        if how.window and not self._causal:
            raise NotImplementedError("a window that looks both ways")
        count = query.shape[1] // key.shape[1]
        qkv = (query, key.repeat_interleave(count, 1), value.repeat_interleave(count, 1))
        plain = query.device.type == "cpu" and how.softcap is None and how.sinks is None and how.window is None
        split, attention = (self._by_size, _fused) if plain else (self._all, _written_out)
        found = [_within(g, attention, [t[0].transpose(0, 1) for t in qkv], how) for g in split.groups]
        if split.parts:
            out: Tensor = _ByParts.apply(*qkv, split.parts, how.scale)  # type: ignore[no-untyped-call]
            found.append(out[0].transpose(0, 1))
        return torch.cat(found).index_select(0, split.order_T.to(query.device))[None]

    @cached_property
    def _by_size(self) -> Split:
        return _split(self._parts, SMALL)

    @cached_property
    def _all(self) -> Split:
        return _split(self._parts, max(p.query.stop for p in self._parts))


def _split(parts: list[Part], small: int) -> Split:
    trees = sorted(_trees(parts), key=_size)
    large = [part for tree in trees if _size(tree) > small for part in tree]
    groups, order = [], np.zeros(max(p.query.stop for p in parts), dtype=np.int64)
    found = 0
    for alike in _alike([tree for tree in trees if _size(tree) <= small]):
        group = _group(alike)
        for number, tree in enumerate(alike):
            order[_span(tree)] = found + number * group.rows_NL.shape[1] + np.arange(_size(tree))
        found += group.rows_NL.numel()
        groups.append(group)
    for tree in trees:
        if _size(tree) > small:
            order[_span(tree)] = found + np.arange(_span(tree).start, _span(tree).stop)
    return Split(groups, large, torch.from_numpy(order))


def _trees(parts: list[Part]) -> Iterator[list[Part]]:
    """The parts of each tree; a node comes before what grew from it."""
    tree: list[Part] = []
    for part in parts:
        if tree and part.key.start >= _span(tree).stop:
            yield tree
            tree = []
        tree.append(part)
    yield tree


def _span(tree: list[Part]) -> slice:
    return slice(tree[0].query.start, max(part.query.stop for part in tree[:2]))


def _size(tree: list[Part]) -> int:
    span = _span(tree)
    return int(span.stop - span.start)


def _alike(trees: list[list[Part]]) -> Iterator[list[list[Part]]]:
    """Runs of trees, smallest first, whose sizes differ by little."""
    run: list[list[Part]] = []
    for tree in trees:
        if run and _size(run[0]) < FILLED * _size(tree):
            yield run
            run = []
        run.append(tree)
    if run:
        yield run


def _group(trees: list[list[Part]]) -> Group:
    length = _size(trees[-1])
    rows = np.zeros((len(trees), length), dtype=np.int64)
    seen = np.zeros((len(trees), 1, length, length), dtype=bool)
    seen[..., 0] = True  # also by the rows that only fill, whose states nobody takes
    for number, tree in enumerate(trees):
        first, size = _span(tree).start, _size(tree)
        rows[number] = first
        rows[number, :size] += np.arange(size)
        for part in tree:
            a, b, c, d = (n - first for n in (part.query.start, part.query.stop, part.key.start, part.key.stop))
            seen[number, 0, a:b, c:d] = np.tri(b - a, dtype=bool) if part.causal else True
    return Group(torch.from_numpy(rows), torch.from_numpy(seen))


def _within(group: Group, attention: Any, qkv_THD: list[Tensor], how: Settings) -> Tensor:
    """The trees of a group, each over itself: [N * L, heads, D]."""
    rows = group.rows_NL.to(qkv_THD[0].device)
    q, k, v = (t[rows].transpose(1, 2) for t in qkv_THD)
    out: Tensor = attention(q, k, v, group.seen_N1LL.to(rows.device), how)
    return out.transpose(1, 2).flatten(0, 1)


def _fused(q: Tensor, k: Tensor, v: Tensor, seen: Tensor, how: Settings) -> Tensor:
    return scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=how.scale)


def _written_out(q: Tensor, k: Tensor, v: Tensor, seen: Tensor, how: Settings) -> Tensor:
    """The same in float32 with windows, soft caps and sinks: [N, heads, L, D]."""
    if how.window:
        # A row's keys are its ancestors in order: the number of those behind a key is its distance.
        seen = seen & (seen.flip(-1).cumsum(-1).flip(-1) <= how.window)
    scores = torch.einsum("nhqd,nhkd->nhqk", q.float(), k.float()) * how.scale
    if how.softcap:
        scores = how.softcap * torch.tanh(scores / how.softcap)
    scores = scores.masked_fill(~seen, float("-inf"))
    if how.sinks is not None:
        sinks = how.sinks.float().view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        scores = torch.cat([scores, sinks], -1)
    weights = scores.softmax(-1)[..., : k.shape[2]]
    return torch.einsum("nhqk,nhkd->nhqd", weights, v.float()).to(q.dtype)


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
