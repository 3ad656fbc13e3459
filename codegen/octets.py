"""Weights as octets: eight kept values of a row, and a byte each for how far their columns lie behind the first.

With one token a weight is used once, and a kernel is as fast as it finds what belongs to each. A bitmap
(`codegen/bitmap.py`) costs the same time for every block of columns, kept or not; octets cost time for what is
kept alone. From two thirds of zeros on they are faster, though of 5.5 bytes a value where a bitmap has 4.4.

    octet   eight values, 32 bytes; their eight bytes; an int32, the column that these count from
    unit    16 rows

Octets lie row after row. One holds fewer values where its row ends, or where the next kept column is 256 or more
behind its first: then it is filled up with zeros at its first column.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sparsecomp.codegen.shares import UNIT, balance
from sparsecomp.pattern import PackedRows, RowBlocks

OCTET = 8
"""Values of an octet."""
WORDS = OCTET + OCTET // 4 + 1
"""Floats of space that an octet takes."""
REACH = 256
"""Columns that a byte tells apart."""
ROW_COST = 2
"""Adding up a row's sums and finishing it takes about as long as this many octets."""

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Octets:
    """The weights of one linear layer.

    index: int32 [units * UNIT + 1], the first octet of each row; rows that are none have none.
    data: float32 [octets * WORDS], of which the last three words of an octet are bits of integers.
    balance: int32 [SHARES + 1], the units at which the work is cut into equal shares.
    """

    shape: tuple[int, int]
    index: Tensor
    data: Tensor
    balance: Tensor


def make_octets(packed: PackedRows) -> Octets:
    """Of unstructured weights.

    Raises OverflowError when a position does not fit 32 bits.
    """
    assert packed.pattern == RowBlocks(1)
    pointers, columns = packed.pointers.numpy().astype(np.int64), packed.columns.numpy().astype(np.int64)
    row, first, count = _cut(pointers, columns)
    place = first[:, None] + np.minimum(np.arange(OCTET), count[:, None] - 1)
    held = np.arange(OCTET) < count[:, None]
    base = columns[first]
    words = np.zeros((len(row), WORDS), dtype=np.int32)
    words[:, :OCTET] = np.where(held, packed.values.flatten().numpy()[place], np.float32(0)).view(np.int32)
    away = np.where(held, columns[place] - base[:, None], 0).astype(np.uint8)
    words[:, OCTET:-1] = away.view("<i4")
    words[:, -1] = base
    return Octets(packed.shape, *_ends(row, packed.shape[0], words))


def _ends(row: Integers, rows: int, words: npt.NDArray[np.int32]) -> tuple[Tensor, Tensor, Tensor]:
    units = -(-rows // UNIT)
    lengths = np.bincount(row, minlength=units * UNIT)
    if words.size >= 2**31:
        raise OverflowError(f"{len(words)} octets: their positions exceed 32 bits")
    index = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    work = torch.from_numpy(lengths).reshape(units, UNIT).sum(dim=1) + UNIT * ROW_COST
    return torch.from_numpy(index), torch.from_numpy(words.view(np.float32).reshape(-1)), balance(work)


def _cut(pointers: Integers, columns: Integers) -> tuple[Integers, Integers, Integers]:
    """Row, first entry and number of entries of each octet: as many as fit, of all rows at once."""
    padded = np.concatenate([columns, np.zeros(OCTET, dtype=np.int64)])
    row, at, found = np.arange(len(pointers) - 1), pointers[:-1].copy(), []
    while True:
        left = at < pointers[row + 1]
        row, at = row[left], at[left]
        if not len(row):
            break
        entries = at[:, None] + np.arange(OCTET)
        inside = (entries < pointers[row + 1][:, None]) & (padded[entries] - padded[at][:, None] < REACH)
        count = inside.sum(axis=1)
        found.append((row, at, count))
        at = at + count
    nothing = (np.empty(0, dtype=np.int64),) * 3
    rows, starts, counts = map(np.concatenate, zip(nothing, *found, strict=True))
    order = np.argsort(rows, kind="stable")
    return rows[order], starts[order], counts[order]


def read_octets(octets: Octets) -> Tensor:
    """The matrix rows x columns, exactly as it was packed."""
    row, columns = read_places(octets.index, octets.data)
    values = octets.data.reshape(-1, WORDS)[:, :OCTET]
    matrix, kept = torch.zeros(octets.shape), values != 0
    matrix[row.expand(kept.shape)[kept], columns[kept]] = values[kept]
    return matrix


def read_places(index: Tensor, data: Tensor) -> tuple[Tensor, Tensor]:
    """int64: row (octets x 1) and columns (octets x 8) of the values.

    Raises AssertionError when the index does not fit the data.
    """
    integers = data.reshape(-1, WORDS)[:, OCTET:].contiguous().view(torch.int32)
    lengths = index.diff().long()
    assert int(index[0]) == 0, "its index does not begin at 0"
    assert bool((lengths >= 0).all()), "its index falls"
    assert int(index[-1]) == len(integers), "its index ends elsewhere than its data"
    away = integers[:, :-1].contiguous().view(torch.uint8).long()
    row = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    return row[:, None], integers[:, -1:].long() + away
