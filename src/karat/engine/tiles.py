"""Functions of rows in tiles of one shape: a row's bits then do not depend on how many others there are.

Matrix products choose their order of summation by shape; with one shape there is one order.
"""

from collections.abc import Callable

import torch
from torch import Tensor

TILE = 64  # rows: enough to be fast, few enough to waste little


def in_tiles(function: Callable[[Tensor], Tensor], rows_RD: Tensor) -> Tensor:
    """A function of rows, [R, D] → [R, E], called with `TILE` rows at a time, the last ones filled up with zeros."""
    rest = len(rows_RD) % TILE
    parts = [function(rows_RD[i : i + TILE]) for i in range(0, len(rows_RD) - rest, TILE)]
    if rest:
        filled = torch.cat([rows_RD[-rest:], rows_RD.new_zeros(TILE - rest, rows_RD.shape[1])])
        parts.append(function(filled)[:rest])
    return torch.cat(parts)
