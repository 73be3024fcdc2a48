"""What one forward computes: pieces of tree nodes within a token budget, and the arrays that attention needs.

It knows tokens, positions and rows; it knows nothing of models.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from karat import types
from karat.engine.tree import Node, Rows

BLOCK = 64  # positions that share a block of keys; aligned to position 0
TILE = 48  # query rows that go through a block together


@dataclass(frozen=True)
class Piece:
    """Tokens of one node, by position: those that a forward computes."""

    node: Node
    first: int
    stop: int
    keep: bool = True  # its keys and values; not where they are kept already and only a state is missing

    def __len__(self) -> int:
        return self.stop - self.first

    @property
    def last(self) -> bool:
        """Whether nothing of what it was cut from comes after it."""
        return not self.keep or self.stop == self.node.stop

    def ids(self) -> Rows:
        """Its tokens."""
        return self.node.ids[self.first - self.node.start : self.stop - self.node.start]


class Wanted:
    """Positions to be read, by node."""

    def __init__(self) -> None:
        self._positions: dict[int, set[int]] = {}

    def add(self, end: Node, positions: set[int]) -> None:
        """Positions of the sequence that ends with a node."""
        for node, position in places(end, positions):
            self._positions.setdefault(id(node), set()).add(position)

    def missing(self, node: Node, first: int, stop: int) -> list[int]:
        """Those of a node from `first` up to `stop` that were not read yet."""
        return sorted(p for p in self._positions.get(id(node), ()) if first <= p < stop and p not in node.states)


def positions_of(sequence: types.Sequence) -> set[int]:
    """Every position that a sequence is read at."""
    out: set[int] = set()
    for read in sequence.reads.values():
        out |= set(range(read.start, read.stop)) if isinstance(read, types.Span) else set(read)
    return out


def places(end: Node, positions: set[int]) -> Iterator[tuple[Node, int]]:
    """The node of each position of the sequence that ends with a node."""
    left = sorted(positions)
    for node in end.path():
        while left and left[-1] >= node.start:
            yield node, left.pop()


def pieces(nodes: Iterable[Node], wanted: Wanted) -> Iterator[Piece]:
    """What is left to compute of nodes in order: new tokens, and known ones whose states were never read."""
    for node in nodes:
        done = node.done
        for p in wanted.missing(node, node.start, done):
            yield Piece(node, p, p + 1, keep=False)
        if done < node.stop:
            yield Piece(node, done, node.stop)


def batches(todo: Iterable[Piece], budget: int, split: bool = True) -> Iterator[list[Piece]]:
    """Pieces in their order, as many tokens to a batch as the budget takes; a longer one is cut or goes alone."""
    batch: list[Piece] = []
    left = budget
    for piece in todo:
        while piece.keep and split and len(piece) > left:
            if left:
                batch.append(Piece(piece.node, piece.first, piece.first + left))
                piece = Piece(piece.node, piece.first + left, piece.stop)
            yield batch
            batch, left = [], budget
        if len(piece) > left and batch:
            yield batch
            batch, left = [], budget
        batch.append(piece)
        left = max(0, left - len(piece))
    if batch:
        yield batch


@dataclass
class Blocks:
    """The keys of a forward in blocks of 64 positions; prefixes share theirs."""

    rows: list[Rows] = field(default_factory=list)
    _known: dict[int, list[int]] = field(default_factory=dict)

    def of(self, node: Node) -> list[int]:
        """The blocks from position 0 to the last computed one of a node."""
        found: list[int] = []
        for own in reversed(list(node.path())):  # a path may have more nodes than Python has calls
            if id(own) not in self._known:
                shared = own.start // BLOCK
                rows = own.path_rows(shared * BLOCK)
                made = range(len(self.rows), len(self.rows) + -(-len(rows) // BLOCK))
                self.rows += [rows[i : i + BLOCK] for i in range(0, len(rows), BLOCK)]
                self._known[id(own)] = found[:shared] + list(made)
            found = self._known[id(own)]
        return found

    def tensor(self) -> Tensor:
        """Rows by block and place, -1 where there is none: int32 [blocks, 64]."""
        out = np.full((len(self.rows), BLOCK), -1, dtype=np.int32)
        for i, rows in enumerate(self.rows):
            out[i, : len(rows)] = rows
        return torch.from_numpy(out)


@dataclass(frozen=True)
class Queries:
    """Which rows of a forward ask, and which path each of them sees."""

    limits: Tensor  # int32 [T], the last position that each sees
    tiles: Tensor  # int32 [tiles, 4]: first query, count, first entry in `paths`, entries
    paths: Tensor  # int32, blocks by position


@dataclass(frozen=True)
class Reads:
    """Rows of a forward whose states are wanted."""

    rows: Tensor  # int64 [R], rows of the forward
    places: list[tuple[Node, int]]  # node and position of each; rows behind them fill up


@dataclass(frozen=True)
class Batch:
    """One forward: T new rows."""

    ids: Tensor  # int64 [T]
    positions: Tensor  # int64 [T]
    kept: Tensor  # int64 [T'], rows of the forward whose keys and values are kept
    slots: Tensor  # int64 [T'], and where
    block_rows: Tensor  # int32 [blocks, 64]
    queries: Queries
    reads: Reads
    reading: Queries  # the same for the read rows alone
    causal: bool

    def to(self, device: torch.device) -> "Batch":
        """The same with what the model takes on its device."""
        if device.type == "cpu":
            return self
        moved = {name: getattr(self, name).to(device) for name in ("ids", "positions", "kept", "slots")}
        return replace(self, **moved, reads=replace(self.reads, rows=self.reads.rows.to(device)))


def build(pieces: list[Piece], wanted: Wanted, group: int, causal: bool = True, multiple: int = 1) -> Batch:
    """The arrays of a forward, whose nodes have their rows.

    `group` query heads share a key head. The rows of the forward, and those read, are filled up to a multiple of
    `multiple` with rows that attend to nothing and are not read.
    """
    blocks = Blocks()
    at = 0
    limits: list[npt.NDArray[np.int64]] = []
    spans: list[tuple[int, int, list[int]]] = []  # first query, count, path
    kept, slots, places = [], [], []
    read_rows: list[int] = []
    read_spans: list[tuple[int, int, list[int]]] = []
    for piece in pieces:
        node = piece.node
        positions = np.arange(piece.first, piece.stop)
        limits.append(positions if causal else np.full(len(piece), node.stop - 1))
        spans.append((at, len(piece), blocks.of(node)))
        if piece.keep:
            kept.append(np.arange(at, at + len(piece)))
            slots.append(node.rows[piece.first - node.start : piece.stop - node.start])
        here = wanted.missing(node, piece.first, piece.stop)
        if here:
            read_spans.append((len(read_rows), len(here), blocks.of(node)))
            read_rows += [at + p - piece.first for p in here]
            places += [(node, p) for p in here]
        at += len(piece)
    read_rows += [0] * (-len(read_rows) % multiple)
    flat = np.concatenate([*limits, np.zeros(-at % multiple, dtype=np.int64)])
    rows = np.array(read_rows, dtype=np.int64)
    blank = np.zeros(-at % multiple, dtype=np.int64)
    return Batch(
        ids=_long([*(p.ids() for p in pieces), blank]),
        positions=_long([*(np.arange(p.first, p.stop) for p in pieces), blank]),
        kept=_long(kept),
        slots=_long(slots),
        block_rows=blocks.tensor(),
        queries=_queries(flat, spans, group),
        reads=Reads(torch.from_numpy(rows), places),
        reading=_queries(flat[rows], read_spans, group),
        causal=causal,
    )


def _long(parts: Sequence[npt.NDArray[Any]]) -> Tensor:
    return torch.from_numpy(np.concatenate([*parts, np.empty(0, np.int64)]).astype(np.int64))


def _queries(limits: npt.NDArray[np.int64], spans: list[tuple[int, int, list[int]]], group: int) -> Queries:
    size = max(1, TILE // group)
    tiles: list[tuple[int, int, int, int]] = []
    paths: list[int] = []
    for first, count, path in spans:
        tiles += [(i, min(size, first + count - i), len(paths), len(path)) for i in range(first, first + count, size)]
        paths += path
    return Queries(
        torch.from_numpy(limits.astype(np.int32)),
        torch.tensor(tiles, dtype=torch.int32, device="cpu").view(-1, 4),
        torch.tensor(paths, dtype=torch.int32, device="cpu"),
    )
