"""Unstructured 16-bit weights as bits and kept values, in the order in which tensor cores take them.

A record holds 16 rows x 64 `chunks` columns: the bits of each of the chunks of 64 columns, then the values that are
not 0, then zeros up to 16 bytes. In a chunk, lane 4 g + t of a warp owns 16 columns of rows g and g + 8:

    its word of bits    bit 8 f + 4 h + j    is row g + 8 h, column 16 t + 4 f + j
    the values          in the order chunk, f, lane, h, j

so that a fragment of mma.m16n8k16 (the f-th of the chunk's four: which columns are multiplied together is free, as
long as x is read in the same order) is contiguous, and the eight values of a lane are adjacent in it.

Bytes: 2 for each value that is kept, 1/8 for each element of the matrix, 4 for each record and 7 of it unused on
average. At 60 % of zeros this is 0.46 of the dense matrix, at 80 % 0.26; dense starts to be smaller at 6 %.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

TILE = 16
"""Rows of a record."""
CHUNK = 64
"""Columns whose bits are a word of each lane."""
LANES = 32
PIECE = 16
"""Bytes copied at once; records begin at multiples of them."""
HALVES = PIECE // 2
"""16-bit values in a piece."""
MASK_PIECES = LANES * 4 // PIECE
"""Pieces that the bits of a chunk fill."""


@dataclass(frozen=True)
class BitmapFormat:
    """How a matrix of `rows` x `columns` lies in memory."""

    rows: int
    columns: int
    chunks: int
    """Chunks in a record."""

    @property
    def tiles(self) -> int:
        return -(-self.rows // TILE)

    @property
    def records(self) -> int:
        """In each tile of rows."""
        return -(-self.columns // (CHUNK * self.chunks))

    def fullest(self, matrix: Tensor) -> int:
        """Pieces of the largest record."""
        return int(self._pieces(self._counts(matrix != 0)).max())

    def pack(self, matrix: Tensor) -> tuple[Tensor, Tensor]:
        """starts: int32 [tiles * records + 1], where each record begins, in pieces of 16 bytes; stream: int32.

        Raises OverflowError when a place in the stream does not fit 31 bits.
        """
        values = self._ordered(matrix)
        kept = values != 0
        counts, masks = self._counts(matrix != 0), self.chunks * MASK_PIECES
        ends = self._pieces(counts).cumsum(0)
        if int(ends[-1]) * PIECE // 4 >= 2**31:
            raise OverflowError(f"{int(ends[-1]) * PIECE} bytes: places in them exceed 31 bits")
        starts = F.pad(ends, (1, 0))
        halves = torch.zeros(int(ends[-1]), HALVES, dtype=torch.int16, device=matrix.device)
        of_masks = starts[:-1, None] + torch.arange(masks, device=matrix.device)
        halves[of_masks] = _bits(kept).reshape(-1, masks, HALVES)
        halves.view(-1)[self._places(starts, counts)] = values[kept].view(torch.int16)
        return starts.int(), halves.view(torch.int32).flatten()

    def unpack(self, starts: Tensor, stream: Tensor, dtype: torch.dtype) -> Tensor:
        """The matrix; its zeros are positive."""
        starts, halves = starts.long(), stream.view(torch.int16)
        masks = self.chunks * MASK_PIECES
        of_masks = starts[:-1, None] + torch.arange(masks, device=stream.device)
        words = halves.view(-1, HALVES)[of_masks].view(torch.uint8).reshape(-1)
        bits = words[:, None] >> torch.arange(8, dtype=torch.uint8, device=stream.device) & 1
        shape = (self.tiles, self.records, self.chunks, 8, 4, 4, 2, 4)
        kept = bits.reshape(shape).permute(0, 1, 2, 5, 3, 4, 6, 7).bool().contiguous()
        counts = kept.reshape(self.tiles * self.records, -1).sum(dim=1)
        values = torch.zeros(kept.shape, dtype=torch.int16, device=stream.device)
        values[kept] = halves[self._places(starts, counts)]
        by_row = values.permute(0, 6, 4, 1, 2, 5, 3, 7)  # tile, h, g, record, chunk, t, f, j
        matrix = by_row.reshape(self.tiles * TILE, -1)[: self.rows, : self.columns]
        return matrix.contiguous().view(dtype)

    def _ordered(self, matrix: Tensor) -> Tensor:
        """tile, record, chunk, f, g, t, h, j."""
        shape = (self.tiles * TILE, self.records * self.chunks * CHUNK)
        padded = F.pad(matrix, (0, shape[1] - self.columns, 0, shape[0] - self.rows))
        parts = padded.reshape(self.tiles, 2, 8, self.records, self.chunks, 4, 4, 4)  # ., h, g, ., ., t, f, j
        return parts.permute(0, 3, 4, 6, 2, 5, 1, 7).contiguous()

    def _counts(self, kept: Tensor) -> Tensor:
        """Of each record, how many values."""
        width = self.records * self.chunks * CHUNK
        padded = F.pad(kept, (0, width - self.columns, 0, self.tiles * TILE - self.rows))
        return padded.reshape(self.tiles, TILE, self.records, -1).sum(dim=(1, 3)).flatten()

    def _pieces(self, counts: Tensor) -> Tensor:
        """Of each record, from how many values it holds."""
        return self.chunks * MASK_PIECES + (counts + HALVES - 1) // HALVES

    def _places(self, starts: Tensor, counts: Tensor) -> Tensor:
        """Of all values, in order: where in the stream, in halves."""
        first = (starts[:-1] + self.chunks * MASK_PIECES) * HALVES
        before = counts.cumsum(0) - counts
        rank = torch.arange(int(counts.sum()), device=counts.device)
        return rank + (first - before).repeat_interleave(counts)


def _bits(kept: Tensor) -> Tensor:
    """The words of bits as int16, from what is kept, in the order of the values."""
    by_lane = kept.permute(0, 1, 2, 4, 5, 3, 6, 7).reshape(-1, 8)  # ..., g, t, f, h, j
    weights = (2 ** torch.arange(8, device=kept.device)).to(torch.uint8)
    return (by_lane * weights).sum(dim=1, dtype=torch.uint8).view(torch.int16)
