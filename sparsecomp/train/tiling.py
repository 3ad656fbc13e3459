"""Groups of weights: tiles of a matrix. Every structured form of the field is one.

With a row per output and, per input channel, a column for each tap of the kernel:

    single weights           1 x 1          filters, neurons (rows)     1 x all
    blocks of R rows         R x 1          shapes (columns)          all x 1
    blocks r x c             r x c          input channels            all x taps
    whole layer            all x all        2-d kernels                 1 x taps

"all" rows of a convolution with groups, for shapes and channels, are those of one of its groups: each of them
has columns of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F


class Tiled(Protocol):
    """What of a weight decides how its groups lie: a `Weight`, say."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the matrix."""

    @property
    def taps(self) -> int:
        """Columns of one input channel."""

    @property
    def groups(self) -> int:
        """Of a convolution."""


@dataclass(frozen=True)
class Tiling:
    """Tiles of rows x columns that partition a matrix; those at its right and lower edge may be smaller."""

    rows: int
    columns: int

    def counts(self, shape: tuple[int, int]) -> tuple[int, int]:
        """Tiles down and across a matrix of that shape."""
        return -(-shape[0] // self.rows), -(-shape[1] // self.columns)

    def sums(self, matrix: Tensor) -> Tensor:
        """rows x columns -> the sum within each tile, tiles down x tiles across."""
        rows, columns = matrix.shape
        down, across = self.counts((rows, columns))
        bottom, right = down * self.rows - rows, across * self.columns - columns
        if bottom or right:
            matrix = F.pad(matrix, (0, right, 0, bottom))
        return matrix.reshape(down, self.rows, across, self.columns).sum(dim=(1, 3))

    def sizes(self, shape: tuple[int, int]) -> Tensor:
        """int64: elements in each tile."""
        down, across = self.counts(shape)
        heights, widths = torch.full((down,), self.rows), torch.full((across,), self.columns)
        heights[-1:] -= down * self.rows - shape[0]
        widths[-1:] -= across * self.columns - shape[1]
        return heights[:, None] * widths

    def norms(self, matrix: Tensor) -> Tensor:
        """The Euclidean norm of each tile, at least in single precision."""
        return self.sums(matrix.to(torch.promote_types(matrix.dtype, torch.float32)).square()).sqrt()

    def spread(self, values: Tensor, shape: tuple[int, int]) -> Tensor:
        """A value per tile -> rows x columns, the value at each of the tile's elements."""
        down, across = values.shape
        wide = values[:, None, :, None].expand(down, self.rows, across, self.columns)
        return wide.reshape(down * self.rows, across * self.columns)[: shape[0], : shape[1]]


def kept_share(norms: Tensor, threshold: Tensor | float) -> Tensor:
    """The factor of a group's proximal step: max(0, 1 - threshold / norm), exactly 0 for a group that is zero.

    It minimises  1/2 ||x - w||^2 + threshold ||x||  over x = factor * w  (Yuan and Lin 2006; Parikh and Boyd
    2014, section 6.5.1). A norm that is not a number gives 1: what is broken stays visible.
    """
    return torch.where(norms <= threshold, 0.0, 1 - threshold / norms.clamp(min=1e-38)).nan_to_num(nan=1.0)
