"""Functions of rows in shapes that give a row the same bits, however many rows there are.

Matrix products choose their order of summation by shape. Which shapes have the same order is found by trying: the
order does not depend on the numbers, so that random ones tell.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

TILE = 64  # rows of the shape that others are held to: enough to be fast, few enough to waste little
SIZES = (2048, 1024, 512, 256, 128, 32, 16)
GRAIN = SIZES[-1]


def in_tiles(function: Callable[[Tensor], Tensor], rows_RD: Tensor, sizes: Sequence[int] = (TILE,)) -> Tensor:
    """A function of rows, [R, D] → [R, E], called with as many rows as one of `sizes` says, largest first.

    What is left is filled up with zeros to the smallest.
    """
    count, at, parts = len(rows_RD), 0, []
    for size in sizes:
        while count - at >= size:
            parts.append(function(rows_RD[at : at + size]))
            at += size
    if rest := count - at:
        filled = torch.cat([rows_RD[at:], rows_RD.new_zeros(sizes[-1] - rest, rows_RD.shape[1])])
        parts.append(function(filled)[:rest])
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def alike(function: Callable[[Tensor], Tensor], like_D: Tensor) -> tuple[int, ...]:
    """The sizes, largest first, that give rows of `like_D`'s width and type the bits that tiles of `TILE` rows do."""
    chance = torch.Generator().manual_seed(0)
    rows_RD = torch.randn(SIZES[0], len(like_D), generator=chance).to(like_D)
    wanted_RE = in_tiles(function, rows_RD)

    def same(size: int) -> bool:
        rows = rows_RD[: max(size, TILE)]
        return torch.equal(in_tiles(function, rows, (size,)), wanted_RE[: len(rows)])

    return tuple(sorted([TILE, *filter(same, SIZES)], reverse=True))
