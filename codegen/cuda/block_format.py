"""Blocks of weights as tensor cores take them: the blocks that are not all 0, row after row of blocks.

Bytes: those of the kept blocks, 4 for each of them and 8 for each row of blocks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class BlockFormat:
    """A matrix of `rows` x `columns` in square blocks; beyond its edge their elements are 0."""

    rows: int
    columns: int
    size: int
    """Rows and columns of a block."""

    @property
    def block_rows(self) -> int:
        return -(-self.rows // self.size)

    @property
    def block_columns(self) -> int:
        return -(-self.columns // self.size)

    def blocks(self, matrix: Tensor) -> Tensor:
        """block_rows x block_columns x size x size."""
        shape = (self.block_rows * self.size, self.block_columns * self.size)
        padded = F.pad(matrix, (0, shape[1] - self.columns, 0, shape[0] - self.rows))
        return padded.reshape(self.block_rows, self.size, self.block_columns, self.size).transpose(1, 2)

    def kept(self, matrix: Tensor) -> Tensor:
        """Bool [block_rows, block_columns]: which blocks hold something."""
        return self.blocks(matrix != 0).any(dim=3).any(dim=2)

    def pack(self, matrix: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """order: int32 [block_rows], the rows of blocks, those with most blocks first; starts: int32
        [block_rows + 1], of each row (not in that order) its first block; columns: int32 [blocks], in units of
        blocks; values: [blocks * size * size] of the matrix's dtype.

        Of a matrix of zeros one block is stored, as an operand may not be empty.
        """
        kept = self.kept(matrix)
        counts = kept.sum(dim=1)
        order = counts.argsort(descending=True, stable=True)
        starts = F.pad(counts.cumsum(0), (1, 0))
        columns, values = kept.nonzero()[:, 1], self.blocks(matrix)[kept]
        if not columns.numel():
            columns, values = columns.new_zeros(1), values.new_zeros(1, self.size, self.size)
        return order.int(), starts.int(), columns.int(), values.flatten()

    def unpack(self, starts: Tensor, columns: Tensor, values: Tensor) -> Tensor:
        """The matrix, bit for bit but for the sign of zeros in blocks that are not stored."""
        counts = starts.long().diff()
        count = int(counts.sum())
        rows = torch.arange(self.block_rows, device=values.device).repeat_interleave(counts)
        shape = (self.block_rows, self.block_columns, self.size, self.size)
        blocks = torch.zeros(shape, dtype=values.dtype, device=values.device)
        blocks[rows, columns[:count].long()] = values.reshape(-1, self.size, self.size)[:count]
        matrix = blocks.transpose(1, 2).reshape(self.block_rows * self.size, -1)
        return matrix[: self.rows, : self.columns].contiguous()
