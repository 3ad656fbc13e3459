"""What a kernel's time depends on in a weight, so coarse that statistically equal weights share a measurement.

A signature is, for one pattern, the density of what is stored, in steps of 2 %, and how much more the lists of
columns differ in length than zeros at random places would make them. Times are always measured with a layer's own
lists; a signature only says which other layers may use the answer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from sparsecomp.pattern import PackedRows, RowBlocks

DENSITY_STEP, DENSITY_MARGIN = 0.02, 0.005
"""A step begins a margin below its round number: densities that pruning leaves (0.1, 0.19 of pairs, 0.5) lie in it,
not at its border."""
SPREADS: Mapping[str, float] = {"even": 0.3, "uneven": 0.7, "skewed": 1.5}
"""Largest deviation of the lengths, relative to their mean, that is called so; more is "extreme"."""


def signature(lengths: Tensor, pattern: RowBlocks, shape: tuple[int, int]) -> str:
    """ "density 0.10, rows even". lengths: of the list of each block of rows; shape: of the matrix."""
    density = int(lengths.sum()) * pattern.rows / max(1, shape[0] * shape[1])
    text = f"density {math.floor((density + DENSITY_MARGIN) / DENSITY_STEP) * DENSITY_STEP:.2f}"
    return text if pattern.shared else f"{text}, rows {_spread(lengths, shape[1])}"


def packed_signature(packed: PackedRows) -> str:
    """The same of a packed one."""
    lengths = packed.pointers.diff()
    if packed.pattern.shared:
        lengths = lengths.repeat(packed.groups)
    return signature(lengths, packed.pattern, packed.shape)


def _spread(lengths: Tensor, columns: int) -> str:
    mean = max(float(lengths.double().mean()), 1e-9)
    variance = float(lengths.double().var(correction=0))
    by_chance = mean * (1.0 - mean / columns)
    deviation = math.sqrt(max(0.0, variance - by_chance)) / mean
    return next((name for name, most in SPREADS.items() if deviation <= most), "extreme")
