"""A pruned weight, and how far its layer's output is from what it was."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparsecomp.pruning.candidate import Candidate
from sparsecomp.pruning.statistics import Statistics


@dataclass(frozen=True, eq=False)
class Pruned:
    """What `prune_weight` makes of a weight."""

    weight: Tensor
    """Of the shape and dtype that was given; zero wherever the mask is False."""
    mask: Tensor
    """bool, of that shape: what was kept."""
    error: float
    """Relative error of the layer's output on the calibration data; without these, the relative energy removed."""
    candidate: Candidate
    method: str
    """What was done, where that differs from what was asked: see `note`."""
    note: str = ""
    """Why another method was used; "" where none was."""

    @property
    def sparsity(self) -> float:
        return 1 - int(self.mask.count_nonzero()) / max(1, self.mask.numel())

    def __str__(self) -> str:
        note = f" ({self.note})" if self.note else ""
        return f"{self.candidate}, {self.method}: {self.sparsity:.1%} zeros, error {self.error:.3g}{note}"


def output_error(weight: Tensor, pruned: Tensor, statistics: Statistics | None) -> float:
    """tr(D H D^T) / tr(W H W^T) with D = W' - W: ||X W'^T - X W^T||^2 / ||X W^T||^2.

    The layer-wise objective of Frantar et al., "Optimal Brain Compression", 2022, section 3, equation 1, over the
    output's own energy. With several convolution groups, both traces are summed over them.

    Args:
        weight: rows x columns, the weight that was calibrated.
        pruned: The same shape.
        statistics: H; None takes the unit matrix, which gives the relative energy of what was removed.
    """
    return relative_error(pruned.double() - weight.double(), output_energy(weight, statistics), statistics)


def relative_error(change: Tensor, whole: float, statistics: Statistics | None) -> float:
    """The same for a change of the weights, with the energy of the output known."""
    lost = output_energy(change, statistics)
    if whole == 0:
        return 0.0 if lost == 0 else float("inf")
    return max(0.0, lost / whole)


def output_energy(matrix: Tensor, statistics: Statistics | None) -> float:
    """tr(W H W^T); rows x columns."""
    matrix = matrix.double()
    if statistics is None:
        return float(matrix.square().sum())
    moments = statistics.moments.to(matrix.device).double()
    rows = matrix.reshape(len(moments), -1, matrix.shape[1])
    return float(torch.sum((rows @ moments) * rows))
