"""The tree and the plan: every sequence can be read back, nothing twice, no budget exceeded."""

from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from karat.engine.plan import Wanted, batches, build, pieces, places
from karat.engine.tree import Tree, order, packed

# Few tokens, so that much is shared.
SEQUENCES = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=150).map(tuple), min_size=1, max_size=12)


def whole(end):
    return tuple(int(i) for node in reversed(list(end.path())) for i in node.ids)


@given(SEQUENCES)
def test_every_sequence_can_be_read_back(asked):
    tree = Tree()
    ends = [tree.insert(packed(ids)) for ids in asked]
    assert [whole(end) for end in ends] == asked
    prefixes = {ids[:n] for ids in asked for n in range(1, len(ids) + 1)}
    assert sum(node.stop - node.start for node in tree.nodes()) == len(prefixes), "every distinct prefix once"


@given(SEQUENCES, st.integers(1, 40))
@settings(deadline=None)
def test_forwards_keep_the_budget_and_compute_nothing_twice(asked, budget):
    tree = Tree()
    ends = [tree.insert(packed(ids)) for ids in asked]
    nodes = order(sorted(ends, key=lambda end: packed(whole(end))))
    wanted = Wanted()
    for end, ids in zip(ends, asked, strict=True):
        wanted.add(end, {0, len(ids) - 1})
    at, seen, reads = 0, set(), set()
    for batch in batches(pieces(nodes, wanted), budget):
        assert sum(map(len, batch)) <= budget
        for piece in batch:
            rows = np.arange(at, at + len(piece), dtype=np.int32)
            piece.node.rows = np.concatenate([piece.node.rows, rows])
            at += len(piece)
            assert piece.node.parent is tree.root or piece.node.parent.done == piece.node.start, "parents first"
            new = {whole(piece.node)[: p + 1] for p in range(piece.first, piece.stop)}
            assert not new & seen
            seen |= new
        built = build(batch, wanted, group=1)
        for (node, position), row in zip(built.reads.places, built.reads.rows.tolist(), strict=True):
            assert built.positions[row] == position and built.ids[row] == whole(node)[position]
            reads.add(whole(node)[: position + 1])
            node.states[position] = row
        for first, count, start, blocks in built.queries.tiles.tolist():
            path = built.block_rows[built.queries.paths[start : start + blocks].long()].flatten()
            for query in range(first, first + count):
                limit = int(built.queries.limits[query])
                assert limit == built.positions[query]
                assert (path[: limit + 1] >= 0).all(), "a query's whole path lies before it"
    assert len(seen) == len({ids[:n] for ids in asked for n in range(1, len(ids) + 1)})
    assert reads == {ids[:1] for ids in asked} | set(asked)


@given(SEQUENCES, st.sets(st.integers(0, 149)))
def test_places(asked, positions):
    tree = Tree()
    ends = [tree.insert(packed(ids)) for ids in asked]
    for end, ids in zip(ends, asked, strict=True):
        inside = {p for p in positions if p < len(ids)}
        found = list(places(end, inside))
        assert {p for _, p in found} == inside
        assert all(node.start <= p < node.stop for node, p in found)


def test_depth_first():
    tree = Tree()
    asked = [(1, 2, 3), (1, 2, 4), (1, 5), (2,), (1, 2, 3, 6)]
    ends = {ids: tree.insert(packed(ids)) for ids in asked}
    found = [whole(node) for node in order(ends[ids] for ids in sorted(asked, key=packed))]
    assert found == [(1,), (1, 2), (1, 2, 3), (1, 2, 3, 6), (1, 2, 4), (1, 5), (2,)]
    assert all(len(a) < len(b) or a[:-1] != b for a, b in pairwise(found))


def test_eviction_takes_the_oldest_leaves_and_spares_what_is_needed():
    tree = Tree()
    for number, ids in enumerate([(1, 1, 1), (1, 2, 2), (3, 3, 3), (4, 4, 4)]):
        node = tree.insert(packed(ids))
        node.used = number
        for part in node.path():
            part.used = number
    at = 0
    for node in tree.nodes():
        node.rows = np.arange(at, at + node.stop - node.start, dtype=np.int32)
        at += len(node.rows)
    tree.root.children[packed((3,))].needed = 1
    assert len(tree.evict(2)) == 2  # the end of (1, 1, 1)
    assert len(tree.evict(3)) == 3  # the end of (1, 2, 2), and then what both began with
    assert len(tree.evict(99)) == 3  # (4, 4, 4); (3, 3, 3) is needed
    assert [whole(n) for n in tree.nodes()] == [(3, 3, 3)]
