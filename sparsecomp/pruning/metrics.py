"""The survey's measures of a sparse network: quality per parameter, and bits on disk in each format.

Hoefler, Alistarh, Ben-Nun, Dryden, Peste, "Sparsity in Deep Learning", 2021: section 2.2 for storage. Its measure of
"pruned parameter efficiency" is taken as the accuracy density of Bianco et al., "Benchmark Analysis of Representative
Deep Neural Network Architectures", 2018, with what is not zero in place of all parameters; the names are ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsecomp.errors import InputError
from sparsecomp.train.tiling import Tiling

BLOCKS = ((1, 4), (4, 1), (4, 4))
"""Of BSR, rows x columns."""


def accuracy_density(quality: float, parameters: int) -> float:
    """Quality per million parameters that are not zero. quality: larger is better, accuracy in percent say."""
    if parameters <= 0:
        raise InputError(f"accuracy density needs at least one parameter that is not zero, got {parameters}.")
    return quality / (parameters / 1e6)


@dataclass(frozen=True)
class Measurement:
    """Of one network at some sparsity: what it costs and how good it is."""

    cost: float
    """Parameters that are not zero, FLOPs, milliseconds or bytes: smaller is better."""
    quality: float
    """Accuracy, say: larger is better. Of a loss, give its negative."""


def smallest_within(
    measurements: Sequence[Measurement], dense: float, tolerance: float
) -> Measurement | None:
    """The cheapest whose quality is at least that of the dense network less tolerance x |dense|; None: no one.

    With parameters that are not zero as cost it is "nnz at epsilon"; with FLOPs or milliseconds, the same for these.

    Raises:
        InputError: the tolerance is negative, or a number is not finite.
    """
    numbers = [dense, tolerance, *(n for m in measurements for n in (m.cost, m.quality))]
    if not all(map(math.isfinite, numbers)) or tolerance < 0:
        raise InputError("costs, qualities and the tolerance must be finite, and the tolerance not negative.")
    good = [m for m in measurements if m.quality >= dense - tolerance * abs(dense)]
    return min(good, key=lambda m: (m.cost, -m.quality), default=None)


@dataclass(frozen=True)
class Storage:
    """What a weight would need in one format, all of it exact."""

    format: str
    """ "dense", "bitmap", "delta", "csr", "coo", or "bsr 4x1"."""
    values: int
    """Bits of stored values; explicit zeros of blocks and of long gaps are among them."""
    overhead: int
    """Bits that say where they are."""

    @property
    def bits(self) -> int:
        return self.values + self.overhead

    def __str__(self) -> str:
        return f"{self.format}: {self.bits / 8 / 1024:.1f} KiB, {self.overhead / max(1, self.bits):.1%} of it positions"


def storage(mask: Tensor, bits: int = 32) -> tuple[Storage, ...]:
    """Of every format, the smallest first. Section 2.2, with n positions, m of them not zero, rows x columns:

    dense n k; bitmap m k + n; csr m k + m log2(columns) + rows log2(m + 1); coo m k + m log2(n); bsr the same as csr,
    with whole blocks; delta: runs of b bits between neighbours, with an explicit zero wherever a gap needs more, and
    the b that is best. Logarithms are rounded up to whole bits.

    Args:
        mask: bool, outputs first: what is not zero. What follows the first dimension is a row.
        bits: k, of a value.

    Raises:
        InputError: the mask is empty or no matrix, or there are no bits.
    """
    if mask.dim() < 2 or not mask.numel() or bits < 1:
        raise InputError(
            f"storage needs a mask of rows x columns and bits >= 1, not {tuple(mask.shape)} and {bits}."
        )
    matrix = mask.bool().reshape(len(mask), -1)
    (rows, columns), n, m = matrix.shape, matrix.numel(), int(matrix.count_nonzero())
    found = [
        Storage("dense", n * bits, 0),
        Storage("bitmap", m * bits, n),
        Storage("csr", m * bits, m * index_bits(columns) + rows * index_bits(m + 1)),
        Storage("coo", m * bits, m * index_bits(n)),
        _delta(matrix, bits),
        *(_bsr(matrix, Tiling(*block), bits) for block in BLOCKS),
    ]
    return tuple(sorted(found, key=lambda storage: storage.bits))


def smallest_storage(mask: Tensor, bits: int = 32) -> Storage:
    """The smallest format; as `storage`."""
    return storage(mask, bits)[0]


def index_bits(count: int) -> int:
    """To tell so many things apart: ceil(log2(count))."""
    return max(0, count - 1).bit_length()


def _bsr(matrix: Tensor, tiling: Tiling, bits: int) -> Storage:
    kept = tiling.sums(matrix.float()) > 0
    blocks, (down, across) = int(kept.count_nonzero()), kept.shape
    overhead = blocks * index_bits(across) + down * index_bits(blocks + 1)
    size = tiling.rows * tiling.columns
    return Storage(f"bsr {tiling.rows}x{tiling.columns}", blocks * size * bits, overhead)


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
