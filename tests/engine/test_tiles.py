"""Shapes of products that give a row the same bits."""

import architectures
import pytest
import torch

from karat.engine import probe
from karat.engine.forest import ForestEngine
from karat.engine.padded import PaddedEngine
from karat.engine.tiles import SIZES, TILE, alike, in_tiles

WEIGHT = torch.randn(40, 24, generator=torch.Generator().manual_seed(0))


def by_rows(rows):
    return rows * 2 + 1


def changes_order_from(size):
    """A product that sums the other way round where it has many rows, as libraries do."""

    def function(rows):
        columns = range(24) if len(rows) < size else range(23, -1, -1)
        return sum(rows[:, [i]] * WEIGHT[:, i] for i in columns)

    return function


@pytest.mark.parametrize("count", [1, 15, 16, 63, 64, 65, 100, 2047, 5000])
def test_rows_in_tiles_are_the_rows(count):
    rows = torch.randn(count, 24)
    seen = []
    out = in_tiles(lambda x: seen.append(len(x)) or by_rows(x), rows, SIZES)
    assert torch.equal(out, by_rows(rows))
    assert set(seen) <= set(SIZES) and sum(seen) < count + SIZES[-1]


def test_sizes_with_another_order_are_left_out():
    like = torch.zeros(24)
    assert alike(by_rows, like) == tuple(sorted({*SIZES, TILE}, reverse=True))
    assert alike(changes_order_from(512), like) == (256, 128, 64, 32, 16)
    assert alike(changes_order_from(33), like) == tuple(s for s in sorted({*SIZES, TILE}, reverse=True) if s >= TILE)


@pytest.mark.parametrize("shape", [(64, 24), (1, 768), (2560, 768), (100, 300)])
def test_a_row_has_the_same_bits_among_any_others(shape):
    layer = torch.nn.Linear(shape[1], shape[0])
    sizes = alike(layer, layer.weight[0])
    rows = torch.randn(700, shape[1])
    wanted = torch.cat([in_tiles(layer, row[None], sizes) for row in rows[:40]])
    for first, stop in ((0, 40), (3, 700), (7, 300), (0, 41)):
        found = in_tiles(layer, rows[first:stop], sizes)[: 40 - first]
        assert torch.equal(found, wanted[first:40])


def test_with_more_threads_every_sequence_runs_alone(monkeypatch):
    """torch then shares out an activation's numbers so that their bits depend on how many there are."""
    model = architectures.build("Qwen3")
    assert isinstance(probe.choose(model, deterministic=True), ForestEngine)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    engine = probe.choose(model, deterministic=True)
    assert isinstance(engine, PaddedEngine) and engine.forward.budget == 1
