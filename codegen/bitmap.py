"""Weights as bitmaps: a bit for every element, and the kept values in the order in which a kernel expands them.

A list of columns costs four bytes per kept value, a bit per element an eighth of a byte: below 97 % zeros the
bitmap is smaller. It also says where the kept values of one vector of columns go, so a vector of the dense
weight is made of them in registers (`codegen/cpu/bitmap_rows.py`). Dense weights are the case without bits.

    unit    16 rows, whose sums fill a vector; a start in the values each
    group   4 rows, whose bits for 16 columns fill 64 bits
    block   16 columns

Values lie in the order unit, group, block, row, column.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from sparsecomp.codegen.shares import UNIT, balance
from sparsecomp.pattern import PackedRows, unpack

BLOCK = 16
"""Columns expanded at once: the lanes of a vector."""
GROUP = 4
"""Rows whose bits are one mask."""
EXPANSION_COST = 5
"""Expanding a block of a row takes about as long as reading this many values from memory; whichever is longer
decides (Zen 4: 3 cycles against 27 GB/s)."""


@dataclass(frozen=True)
class Bitmap:
    """The weights of one linear layer.

    index: int32 [units], start of each unit in the values.
    masks: int64 [groups, blocks]; bit 16 r + c says that row r of the group keeps column c of the block. Empty
        for dense weights.
    values: float32, a vector longer than what is kept: a kernel reads a whole vector and uses its first part.
    balance: int32 [SHARES + 1], the units at which the work is cut into equal shares.
    """

    shape: tuple[int, int]
    index: Tensor
    masks: Tensor
    values: Tensor
    balance: Tensor

    @property
    def nbytes(self) -> int:
        parts = (self.index, self.masks, self.values, self.balance)
        return sum(t.numel() * t.element_size() for t in parts)

    @property
    def dense(self) -> bool:
        return not self.masks.numel()


def make_bitmap(packed: PackedRows) -> Bitmap:
    """Of unstructured weights, or dense of those whose rows share one list of columns.

    Raises OverflowError when a start does not fit 32 bits.
    """
    assert packed.pattern.rows == 1 or packed.pattern.shared
    rows, columns = packed.shape
    units, blocks = -(-rows // UNIT), -(-columns // BLOCK)
    matrix = F.pad(unpack(packed), (0, -columns % BLOCK, 0, -rows % UNIT))
    blocked = matrix.reshape(-1, GROUP, blocks, BLOCK).transpose(1, 2).contiguous()
    if packed.pattern.shared:
        masks, values = torch.empty(0, blocks, dtype=torch.int64), blocked.flatten()
        kept = torch.full((units,), UNIT * blocks * BLOCK)
        work = kept
    else:
        used = blocked != 0
        bits = np.packbits(used.numpy(), bitorder="little").view("<i8")
        masks, values = torch.from_numpy(bits.astype(np.int64)).reshape(-1, blocks), blocked[used]
        kept = used.reshape(units, -1).sum(dim=1)
        work = kept.clamp(min=EXPANSION_COST * UNIT * blocks)
    return Bitmap(packed.shape, starts_of(kept), masks, F.pad(values, (0, BLOCK)), balance(work))


def shares_of(rows: int) -> Tensor:
    """The balance of a dense matrix: equal numbers of units."""
    return balance(torch.ones(-(-rows // UNIT), dtype=torch.int64))


def read_bitmap(bitmap: Bitmap) -> Tensor:
    """The matrix rows x columns, exactly as it was packed."""
    rows, columns = bitmap.shape
    units, blocks = -(-rows // UNIT), -(-columns // BLOCK)
    values = bitmap.values[:-BLOCK]
    shape = (units * (UNIT // GROUP), blocks, GROUP, BLOCK)
    if bitmap.dense:
        found = values.reshape(shape)
    else:
        found = values.new_zeros(shape)
        found[torch.from_numpy(bits_of(bitmap.masks))] = values
    return found.transpose(1, 2).reshape(-1, blocks * BLOCK)[:rows, :columns].contiguous()


def bits_of(masks: Tensor) -> npt.NDArray[np.bool_]:
    """Groups x blocks x rows x columns."""
    bits = np.unpackbits(masks.numpy().astype("<i8").view(np.uint8), bitorder="little")
    return bits.view(np.bool_).reshape(*masks.shape, GROUP, BLOCK)


def starts_of(kept: Tensor) -> Tensor:
    """Where the values of each unit begin, given how many each has."""
    starts = kept.cumsum(0) - kept
    if int(kept.sum()) >= 2**31:
        raise OverflowError(f"{int(kept.sum())} values: their positions exceed 32 bits")
    return starts.int()
