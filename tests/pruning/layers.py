"""Random layers with correlated inputs."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsecomp.pruning.statistics import Statistics


def moments(columns: int, groups: int = 1, rank: int | None = None, rows: int = 400) -> Tensor:
    """groups x columns x columns: of Gaussian inputs with a few common causes and unequal scales, as layers have."""
    causes = rank or max(1, columns // 3)
    found = []
    for _ in range(groups):
        x = torch.randn(rows, causes) @ torch.randn(causes, columns)
        x = (x + 0.3 * torch.randn(rows, columns) * (rank is None)) * torch.randn(columns).exp()
        found.append(x.double().T @ x.double() / rows)
    return torch.stack(found)


def statistics(columns: int, groups: int = 1, rank: int | None = None) -> Statistics:
    return Statistics(400, moments(columns, groups, rank))


def error(weight: Tensor, pruned: Tensor, matrix: Tensor) -> float:
    """tr(D H D^T), of one convolution group."""
    change = (pruned - weight).double()
    return float(torch.trace(change @ matrix @ change.T))
