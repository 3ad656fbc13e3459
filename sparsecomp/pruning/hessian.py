"""The matrix that says how a layer's squared output error grows with a change of its weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

DAMPING = 0.01
"""Added to the diagonal, of its mean; the value of Frantar and Alistarh, "SparseGPT", 2023."""
MORE = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
"""What is tried where less leaves the matrix singular."""
SMALLEST_PIVOT = 1e-12
"""Of the diagonal's mean, below which rounding decides."""


@dataclass(frozen=True, eq=False)
class Hessian:
    """E[x x^T] of a layer's inputs, made invertible: half the Hessian of the mean squared error of an output."""

    matrix: Tensor
    """float64, groups x columns x columns, positive definite: damped; the row of a dead input is a unit vector."""
    moments: Tensor
    """float64, the same without damping."""
    inverse: Tensor
    """float64, the same shape."""
    dead: Tensor
    """bool, groups x columns: inputs that were always zero, whose weights do nothing."""
    damping: float
    """What it took."""

    @staticmethod
    def of(moments: Tensor, damping: float = DAMPING) -> Hessian | None:
        """moments: groups x columns x columns, positive semi-definite. None where no damping helps: not that, then."""
        moments = moments.double()
        diagonal = moments.diagonal(dim1=1, dim2=2)
        dead = diagonal <= 0
        mean = diagonal.sum(dim=1, keepdim=True) / (~dead).sum(dim=1, keepdim=True).clamp(min=1)
        for share in (damping, *(more for more in MORE if more > damping)):
            matrix = moments + torch.diag_embed(torch.where(dead, 1.0, share * mean))
            factor, failed = torch.linalg.cholesky_ex(matrix)
            pivots = factor.diagonal(dim1=1, dim2=2).square()
            if not bool(failed.any()) and bool((pivots > SMALLEST_PIVOT * mean).all()):
                return Hessian(matrix, moments, torch.cholesky_inverse(factor), dead, share)
        return None
