"""How many weights a candidate leaves, and their bytes, before any weight is chosen."""

from __future__ import annotations

import math

from sparsecomp.pruning.candidate import Candidate
from sparsecomp.pruning.selection import removed_count
from sparsecomp.pruning.storage import BLOCKS, counted
from sparsecomp.train.tiling import Tiling
from sparsecomp.train.weights import Weight


def weight_bytes(weight: Weight, candidate: Candidate) -> int:
    """Of the smallest exact format that the count of weights decides, so that no choice of weights needs more: what is
    chosen may lie so that another format, "delta" or blocks, is still smaller (`storage`)."""
    size, width = weight.parameter.numel(), weight.parameter.element_size()
    if candidate.is_dense:
        return size * width
    blocks = {own_blocks(weight, candidate): _most_groups(weight, candidate)}
    return counted(weight.shape, most_kept(weight, candidate), blocks, 8 * width)[0].nbytes


def formats_of(weight: Weight, candidate: Candidate) -> tuple[Tiling, ...]:
    """The blocks that formats are tried with: the usual ones and the candidate's, if these are any."""
    own = own_blocks(weight, candidate)
    return BLOCKS if own.rows == own.columns == 1 else tuple(dict.fromkeys((*BLOCKS, own)))


def own_blocks(weight: Weight, candidate: Candidate) -> Tiling:
    """Its groups; no larger than the weight."""
    tiling = candidate.structure.tiling(weight)
    return Tiling(min(tiling.rows, weight.shape[0]), min(tiling.columns, weight.shape[1]))


def most_kept(weight: Weight, candidate: Candidate) -> int:
    """Weights that pruning by the candidate may leave: a whole number of groups, one more where it does not come out
    even."""
    size = weight.parameter.numel()
    if candidate.is_dense:
        return size
    blocks = own_blocks(weight, candidate)
    return min(size, _most_groups(weight, candidate) * blocks.rows * blocks.columns)


def _most_groups(weight: Weight, candidate: Candidate) -> int:
    limits, (rows, columns) = candidate.structure.n_of_m, weight.shape
    if limits:
        n, m = limits
        return rows * (columns // m * n + min(n, columns % m))
    groups = math.prod(own_blocks(weight, candidate).counts(weight.shape))
    return groups - removed_count(candidate.sparsity, groups)
