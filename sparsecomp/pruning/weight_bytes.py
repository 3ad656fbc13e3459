"""How many weights a candidate leaves, and their bytes in the smallest of three exact formats."""

from __future__ import annotations

import math

from sparsecomp.pruning.candidate import Candidate
from sparsecomp.pruning.selection import removed_count
from sparsecomp.train.weights import Weight

POINTER = 4


def weight_bytes(weight: Weight, candidate: Candidate, kept: int | None = None) -> int:
    """Of the values that are kept and of where they lie: the least of dense, a bitmap, and lists of columns.

    Hoefler et al. 2021, section 2.2: a bitmap has a bit for each weight; lists have a column index, of 16 bits where
    that suffices, for each block of rows that are kept together, and a pointer for each list.

    Args:
        weight: Its shape and type count.
        candidate: What it becomes; a structure whose columns rows do not share has lists for single rows.
        kept: Weights that are not zero; by default as many as the candidate leaves at most.
    """
    size, width = weight.parameter.numel(), weight.parameter.element_size()
    if candidate.is_dense:
        return size * width
    if kept is None:
        kept = most_kept(weight, candidate)
    rows, columns = weight.shape
    shared = min(candidate.structure.tiling(weight).rows, rows)
    index = 2 if columns <= 1 << 16 else 4
    lists = math.ceil(kept / shared) * index + (math.ceil(rows / shared) + 1) * POINTER
    return min(size * width, kept * width + min(math.ceil(size / 8), lists))


def most_kept(weight: Weight, candidate: Candidate) -> int:
    """Weights that pruning by the candidate may leave: a whole number of groups, one more where it does not come out
    even."""
    size, (rows, columns) = weight.parameter.numel(), weight.shape
    limits = candidate.structure.n_of_m
    if candidate.is_dense:
        return size
    if limits:
        n, m = limits
        return rows * (columns // m * n + min(n, columns % m))
    tiling = candidate.structure.tiling(weight)
    groups = math.prod(tiling.counts(weight.shape))
    largest = min(tiling.rows, rows) * min(tiling.columns, columns)
    return min(size, (groups - removed_count(candidate.sparsity, groups)) * largest)
