"""Bits of a weight in each exact format, from what is counted of its zeros.

Hoefler, Alistarh, Ben-Nun, Dryden, Peste, "Sparsity in Deep Learning", 2021, section 2.2. With n positions, m of them not
zero, in rows x columns, and k bits to a value:

    dense        n k
    bitmap       m k + n
    csr          m k + m log2(columns) + rows log2(m + 1)
    coo          m k + m log2(n)
    bsr RxC      whole blocks R x C, and the places of these as in csr
    bitmap RxC   whole blocks R x C, and a bit for each place: what `save` writes for kernels of R rows
    delta        runs of b bits between neighbours, with an explicit zero wherever a gap needs more; the best b

Logarithms are rounded up to whole bits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsecomp.errors import InputError
from sparsecomp.train.tiling import Tiling

BLOCKS = (Tiling(1, 4), Tiling(4, 1), Tiling(4, 4))
"""Rows x columns, of BSR and of bitmaps."""


@dataclass(frozen=True)
class Storage:
    """What a weight needs in one format, all of it exact."""

    format: str
    """ "dense", "bitmap", "delta", "csr", "coo", "bsr 4x1" or "bitmap 4x1"."""
    values: int
    """Bits of stored values; explicit zeros of blocks and of long gaps are among them."""
    overhead: int
    """Bits that say where they are."""

    @property
    def bits(self) -> int:
        return self.values + self.overhead

    @property
    def nbytes(self) -> int:
        """Whole bytes."""
        return -(-self.bits // 8)

    def __str__(self) -> str:
        return f"{self.format}: {self.bits / 8 / 1024:.1f} KiB, {self.overhead / max(1, self.bits):.1%} of it positions"


def storage(mask: Tensor, bits: int = 32, blocks: Sequence[Tiling] = BLOCKS) -> tuple[Storage, ...]:
    """Of every format, the smallest first.

    Args:
        mask: bool, outputs first: what is not zero. What follows the first dimension is a row.
        bits: k, of a value.
        blocks: Of the formats that keep whole blocks.

    Raises:
        InputError: the mask is empty or no matrix, or there are no bits.
    """
    if mask.dim() < 2 or not mask.numel() or bits < 1:
        raise InputError(
            f"storage needs a mask of rows x columns and bits >= 1, not {tuple(mask.shape)} and {bits}."
        )
    matrix = mask.bool().reshape(len(mask), -1)
    kept = {tiling: int((tiling.sums(matrix.float()) > 0).count_nonzero()) for tiling in blocks}
    shape, count = (matrix.shape[0], matrix.shape[1]), int(matrix.count_nonzero())
    return _sorted([*counted(shape, count, kept, bits), _delta(matrix, bits)])


def smallest_storage(mask: Tensor, bits: int = 32, blocks: Sequence[Tiling] = BLOCKS) -> Storage:
    """The smallest format; as `storage`."""
    return storage(mask, bits, blocks)[0]


def counted(
    shape: tuple[int, int], kept: int, blocks: Mapping[Tiling, int], bits: int = 32
) -> tuple[Storage, ...]:
    """Of every format whose size follows from counts, which are all but delta; the smallest first. It grows with each
    count.

    Args:
        shape: Rows and columns.
        kept: Weights that are not zero.
        blocks: Blocks of each kind that hold any of these.
        bits: Of a value.
    """
    rows, columns = shape
    size = rows * columns
    found = [
        Storage("dense", size * bits, 0),
        Storage("bitmap", kept * bits, size),
        Storage("csr", kept * bits, kept * index_bits(columns) + rows * index_bits(kept + 1)),
        Storage("coo", kept * bits, kept * index_bits(size)),
    ]
    for tiling, count in blocks.items():
        (down, across), name = tiling.counts(shape), f"{tiling.rows}x{tiling.columns}"
        values = count * tiling.rows * tiling.columns * bits
        places = count * index_bits(across) + down * index_bits(count + 1)
        found += [Storage(f"bsr {name}", values, places), Storage(f"bitmap {name}", values, down * across)]
    return _sorted(found)


def index_bits(count: int) -> int:
    """To tell so many things apart: ceil(log2(count))."""
    return max(0, count - 1).bit_length()


def _sorted(found: Sequence[Storage]) -> tuple[Storage, ...]:
    return tuple(sorted(found, key=lambda storage: storage.bits))


def _delta(matrix: Tensor, bits: int) -> Storage:
    """A gap is the number of zeros before a value, in reading order; b bits hold gaps up to 2^b - 1, and an explicit
    zero takes the place of 2^b positions."""
    places = matrix.flatten().nonzero().flatten()
    gaps = torch.diff(places, prepend=places.new_tensor([-1])) - 1
    best: tuple[int, int] | None = None
    for width in range(index_bits(int(gaps.max()) + 1) + 1 if len(gaps) else 1):
        entries = len(gaps) + int((gaps >> width).sum())
        if best is None or entries * (bits + width) < sum(best):
            best = entries * bits, entries * width
    assert best is not None
    return Storage("delta", *best)
