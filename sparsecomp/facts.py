"""What is found in a weight: measured, never decided."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from sparsecomp.picture import Picture

Block = tuple[int, int]


@dataclass(frozen=True)
class Facts:
    """The zeros of one layer's weight, and what structure they have.

    `shape` is the weight's own (out x in, or out x in/groups x height x width); "rows" and "columns" are
    those of the weight as a matrix `shape[0] x prod(shape[1:])`.
    """

    layer: str
    shape: tuple[int, ...]
    nonzeros: int
    zero_rows: int
    """Outputs without any weight (SSL's filter-wise sparsity)."""
    zero_columns: int
    """Inputs of the matrix that no output uses (SSL's shape-wise sparsity)."""
    zero_channels: int
    """Input channels that no output uses."""
    zero_kernels: int
    """(output, input channel) pairs of a convolution whose whole kernel is zero; 0 for a linear layer."""
    block_fill: Mapping[Block, float]
    """For each block shape tried: non-zeros / elements stored when every block that is not all zero is kept.

    Blocks are aligned to their own size; of a block across the edge, only elements inside the matrix count.
    """
    best_block: Block
    """The largest block (rows, columns) that keeps no zeros or nearly none; (1, 1) when there is none.

    The zeros must be in blocks: a matrix with few or no zeros beyond whole rows and columns has no block.
    """
    n_of_m: tuple[int, int] | None
    """(n, m) when every aligned group of m consecutive columns holds at most n < m non-zeros in every row, and
    the groups are nearly full: n / m is about the density of the rows that are not zero. Else None."""
    row_mean: float
    row_std: float
    """Spread of the number of non-zeros per row."""
    row_max: int
    structure: str
    """The pattern that explains most of the zeros: "empty", "dense", "rows", "columns", "channels",
    "rows and columns", "rows and channels", "kernels", "blocks 4x1", "2:4" or "unstructured"."""
    picture: Picture = field(default=Picture(), repr=False)
    """Where the zeros are."""

    @property
    def density(self) -> float:
        size = math.prod(self.shape)
        return self.nonzeros / size if size else 0.0
