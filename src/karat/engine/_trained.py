"""Attention over a forest with gradients: small trees side by side in one call, large ones cut up, by parts or paths.

Parts are merged by their log-sum-exp, forwards and backwards (Dao 2023, arXiv:2307.08691, §3.1). For short answers a
call each would cost more than its arithmetic, so trees of about the same size are computed together, with every
score that a tree could have. Where torch's kernel for parts cannot be had (other devices than CPUs; windows, caps and
sinks), each node of a large tree gets a copy of the keys that it sees.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from karat.engine.attention import Settings

SMALL = 128  # rows of a piece, up to which it is computed with its like
COPIES = 3  # times the rows of a tree: more are not worth the calls that its pieces save
FILLED = 0.75  # of the largest piece of a group, so much at least has every other one


Rows: TypeAlias = "np.ndarray[Any, np.dtype[np.int64]]"


class Part(NamedTuple):
    """Query rows that see a run of key rows: all of it, or as far as themselves."""

    query: slice
    key: slice
    causal: bool


class Group(NamedTuple):
    """N pieces of about the same size, each filled up with its first rows."""

    queries_NQ: Tensor  # int64: rows that are asked
    keys_NK: Tensor  # int64: rows that they see
    seen_N1QK: Tensor  # bool: which of them


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
        plain = how.softcap is None and how.sinks is None and how.window is None
        split = self._by_parts if plain and query.device.type == "cpu" else self._by_paths
        attention = _fused if plain else _written_out
        found = [_within(g, attention, [t[0].transpose(0, 1) for t in qkv], how) for g in split.groups]
        if split.parts:
            out: Tensor = _ByParts.apply(*qkv, split.parts, how.scale)  # type: ignore[no-untyped-call]
            found.append(out[0].transpose(0, 1))
        return torch.cat(found).index_select(0, split.order_T.to(query.device))[None]

    @cached_property
    def _by_parts(self) -> Split:
        return _split(self._parts, SMALL)

    @cached_property
    def _by_paths(self) -> Split:
        return _split(self._parts, SMALL, by_paths=True)


class Piece(NamedTuple):
    """Nodes of a tree that are computed together, with a copy of the rows that they grew from."""

    path: tuple[int, ...]  # rows from the root on
    skipped: int  # of these, the first, for which what comes out is taken from another copy
    parts: list[Part]

    @property
    def own(self) -> slice:
        """The rows of its nodes."""
        return slice(self.parts[0].query.start, max(part.query.stop for part in self.parts[:2]))

    @property
    def taken(self) -> Rows:
        """The rows for which what comes out is taken from here."""
        return np.array([*self.path[self.skipped :], *range(self.own.start, self.own.stop)])

    @property
    def size(self) -> int:
        """Rows with those of the path."""
        return int(len(self.path) + self.own.stop - self.own.start)


def _split(parts: list[Part], small: int, by_paths: bool = False) -> Split:
    pieces, large = list[Piece](), list[Part]()
    for tree in _trees(parts):
        whole = Piece((), 0, tree)
        cut = _cut(whole, small) or []
        pays = 0 < sum(piece.size for piece in cut) <= COPIES * whole.size
        pieces += cut if pays else []
        large += [] if pays else tree
    made: list[tuple[Group, Sequence[Piece | Branch]]] = [(_group(alike), alike) for alike in _alike(pieces)]
    if by_paths:
        made += [(_beside(alike), alike) for alike in _alike_branches(large)]
        large = []
    order_T, at = np.full(max(p.query.stop for p in parts), -1), 0
    for group, alike in made:
        for one in alike:
            order_T[one.taken] = at + one.skipped + np.arange(len(one.taken))
            at += group.queries_NQ.shape[1]
    # What is computed by parts comes behind all groups.
    order_T = np.where(order_T < 0, at + np.arange(len(order_T)), order_T)
    return Split([group for group, _ in made], large, torch.from_numpy(order_T))


def _cut(piece: Piece, small: int) -> list[Piece] | None:
    """It, or what it is made of, each with a copy of its path; None where a path and a node alone are too large."""
    if piece.size <= small:
        return [piece]
    root, *rest = piece.parts
    if not rest or len(piece.path) + root.query.stop - root.query.start >= small:
        return None
    path = (*piece.path, *range(root.query.start, root.query.stop))
    found = list[Piece]()
    for tree in _trees(rest[1:]):  # behind the part by which all that grew from it sees the root
        cut = _cut(Piece(path, len(path) if found else piece.skipped, tree), small)
        if cut is None:
            return None
        found += cut
    return found


def _trees(parts: list[Part]) -> Iterator[list[Part]]:
    """The parts of each tree; a node comes before what grew from it."""
    tree: list[Part] = []
    end = 0
    for part in parts:
        if tree and part.key.start >= end:
            yield tree
            tree = []
        tree.append(part)
        end = max(p.query.stop for p in tree[:2])
    yield tree


def _alike(pieces: list[Piece]) -> Iterator[list[Piece]]:
    """Runs of pieces, smallest first, whose sizes differ by little."""
    run: list[Piece] = []
    for piece in sorted(pieces, key=lambda piece: piece.size):
        if run and run[0].size < FILLED * piece.size:
            yield run
            run = []
        run.append(piece)
    if run:
        yield run


def _group(pieces: list[Piece]) -> Group:
    length = pieces[-1].size
    rows = np.zeros((len(pieces), length), dtype=np.int64)
    seen = np.zeros((len(pieces), 1, length, length), dtype=bool)
    seen[..., 0] = True  # also by the rows that only fill, whose states nobody takes
    for number, piece in enumerate(pieces):
        above, own = len(piece.path), piece.own
        rows[number] = own.start
        rows[number, :above] = piece.path
        rows[number, above : piece.size] = np.arange(own.start, own.stop)
        seen[number, 0, :above, :above] = np.tri(above, dtype=bool)
        seen[number, 0, above : piece.size, :above] = True
        for part in piece.parts:
            moved = (part.query.start, part.query.stop, part.key.start, part.key.stop)
            a, b, c, d = (n - own.start + above for n in moved)
            seen[number, 0, a:b, c:d] = np.tri(b - a, dtype=bool) if part.causal else True
    both = torch.from_numpy(rows)
    return Group(both, both, torch.from_numpy(seen))


class Branch(NamedTuple):
    """A node of a tree with what it grew from."""

    rows: Rows  # that it sees, its own last
    own: int  # how many of them
    causal: bool

    @property
    def skipped(self) -> int:
        """None: each row is asked once."""
        return 0

    @property
    def taken(self) -> Rows:
        """The rows for which what comes out is taken from here."""
        return self.rows[-self.own :]


def _alike_branches(parts: list[Part]) -> Iterable[list[Branch]]:
    """Nodes that have about as many rows, and see about as many."""
    found: dict[tuple[int, int], list[Branch]] = {}
    for branch in _branches(parts):
        found.setdefault((branch.own.bit_length(), len(branch.rows).bit_length()), []).append(branch)
    return found.values()


def _branches(parts: list[Part]) -> Iterator[Branch]:
    above: list[Part] = []
    for part in parts:
        while above and above[-1].query.stop <= part.query.start:
            above.pop()
        if part.query == part.key:
            seen = [np.arange(p.key.start, p.key.stop) for p in (*above, part)]
            yield Branch(np.concatenate(seen), len(seen[-1]), part.causal)
        else:
            above.append(part)


def _beside(branches: list[Branch]) -> Group:
    count, most, longest = len(branches), max(b.own for b in branches), max(len(b.rows) for b in branches)
    queries, keys = np.empty((count, most), dtype=np.int64), np.empty((count, longest), dtype=np.int64)
    seen = np.zeros((count, 1, most, longest), dtype=bool)
    seen[..., 0] = True  # also by the rows that only fill, whose states nobody takes
    for number, (rows, own, causal) in enumerate(branches):
        above, end = len(rows) - own, len(rows)
        queries[number], keys[number] = rows[above], rows[0]
        queries[number, :own], keys[number, :end] = rows[above:], rows
        seen[number, 0, :own, :above] = True
        seen[number, 0, :own, above:end] = np.tri(own, dtype=bool) if causal else True
    return Group(*map(torch.from_numpy, (queries, keys, seen)))


def _within(group: Group, attention: Any, qkv_THD: list[Tensor], how: Settings) -> Tensor:
    """The pieces of a group, each over itself: [N * Q, heads, D]."""
    queries, keys, seen = (part.to(qkv_THD[0].device) for part in group)
    q, k, v = (t[rows].transpose(1, 2) for t, rows in zip(qkv_THD, (queries, keys, keys), strict=True))
    out: Tensor = attention(q, k, v, seen, how)
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
