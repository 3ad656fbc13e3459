"""The relative energy that magnitude removes from a weight, for many sparsities at once."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from sparsecomp.pruning.candidate import Candidate
from sparsecomp.pruning.model import layer_weight
from sparsecomp.pruning.prune import prune_weight
from sparsecomp.pruning.selection import removed_count
from sparsecomp.train.pattern import Pattern
from sparsecomp.train.weights import Weight


def removed_energies(weight: Weight, candidates: Sequence[Candidate]) -> dict[Candidate, float]:
    """What `prune_weight(..., method="magnitude").error` is without statistics: the squares removed over all squares.

    The groups of a structure are sorted once, and not once for each sparsity.
    """
    sums: dict[Pattern, tuple[Tensor, Tensor]] = {}
    found = {}
    for candidate in candidates:
        structure = candidate.structure
        if candidate.is_dense or structure.n_of_m:
            found[candidate] = prune_weight(layer_weight(weight), candidate, None, "magnitude").error
            continue
        if structure not in sums:
            sums[structure] = _removed(weight, structure)
        removed, whole = sums[structure]
        count = removed_count(candidate.sparsity, len(removed))
        lost = float(removed[count - 1]) if count else 0.0
        found[candidate] = lost / float(whole) if float(whole) else 0.0
    return found


def _removed(weight: Weight, structure: Pattern) -> tuple[Tensor, Tensor]:
    """float64: of the groups in the order in which they go, the squares removed up to each; and all squares."""
    matrix = weight.matrix(weight.parameter.detach()).double().square()
    tiling = structure.tiling(weight)
    squares = tiling.sums(matrix)
    order = (squares / tiling.sizes(weight.shape)).flatten().argsort(stable=True)
    return squares.flatten()[order].cumsum(0), matrix.sum()
