"""Optimal Brain Surgeon in rounds: some groups go at once, then all others make up for them.

Between one group at a time (`exact_obs`), whose inverses a large layer has no room for, and one pass over the columns
(`sparsegpt`). Each round removes the groups of smallest w^2 E[x^2], the cost of OBS for a diagonal Hessian, and moves
what is left towards least squares on the full one. The weights have then already adapted to what is gone, so that
the next round sees what each is still worth. (Gradual pruning with weight updates for one layer: Boza, "Fast and
Effective Weight Update for Pruned Large Language Models", 2024, section 3.3, there with ADMM.)
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from sparsecomp.pruning.hessian import Hessian
from sparsecomp.pruning.repair import conjugate_gradients, least_squares
from sparsecomp.pruning.selection import lowest
from sparsecomp.train.tiling import Tiling

ROUNDS = 12
ITERATIONS = 5
"""Of conjugate gradients in each round."""


def rounds_flops(weight: Tensor) -> float:
    """Of all rounds: a product with the Hessian for each iteration and two more."""
    return 2.0 * weight.numel() * weight.shape[2] * ROUNDS * (ITERATIONS + 2)


def in_rounds(
    weight: Tensor, hessian: Hessian, tiling: Tiling, count: int, limits: tuple[int, int] | None
) -> tuple[Tensor, Tensor]:
    """The mask and the weights that make up for it.

    Args:
        weight: float64, convolution groups x rows x columns; zero at dead inputs.
        hessian: Of the layer.
        tiling: Groups of weights; none reaches over convolution groups.
        count: Groups to remove, with equal steps of the density's logarithm.
        limits: N and M, to keep N of each M columns instead; a round for each that goes.
    """
    diagonal = hessian.matrix.diagonal(dim1=1, dim2=2)[:, None]
    shape = (weight.shape[0] * weight.shape[1], weight.shape[2])
    down, across = tiling.counts(shape)
    value, mask = weight, torch.ones_like(weight, dtype=torch.bool)
    number = limits[1] - limits[0] if limits else ROUNDS
    for step in range(1, number + 1):
        worth = (value.square() * diagonal).masked_fill(~mask, -1.0).reshape(shape)
        if limits:
            gone = _of_each(worth, limits[1], step)
        else:
            density = (1 - count / (down * across)) ** (step / number)
            now = count if step == number else round((1 - density) * down * across)
            gone = tiling.spread(lowest(tiling.sums(worth), now), shape)
        mask = ~gone.reshape(weight.shape)
        if step < number:
            value = conjugate_gradients(weight, mask, hessian.matrix, value, ITERATIONS)
    return mask, least_squares(weight, mask, hessian, value)


def _of_each(worth: Tensor, m: int, count: int) -> Tensor:
    """bool: the `count` smallest of each m columns; where a row ends before, what is missing counts first."""
    lines = F.pad(worth, (0, -worth.shape[1] % m), value=-2.0).reshape(-1, m)
    gone = torch.zeros_like(lines, dtype=torch.bool)
    gone.scatter_(1, lines.argsort(dim=1, stable=True)[:, :count], True)
    return gone.reshape(len(worth), -1)[:, : worth.shape[1]]
