"""Optimal Brain Surgeon for large layers: columns from left to right, each made up for by those to its right.

Frantar and Alistarh, "SparseGPT", ICML 2023, section 3.2 to 3.4 and algorithm 1. With H^-1 = U^T U, U upper
triangular, the inverse of H restricted to the columns from j on is U_j:,j:^T U_j:,j:; so removing column j of a row
raises the error by (w_j / U_jj)^2, and the best change of what is to its right is -(w_j / U_jj) U_j,j:. A group P of
columns costs ||w_P (U_PP)^-1||^2.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sparsecomp.pruning.selection import lowest

COLUMNS = 128
"""Whose masks are chosen together and whose changes reach the columns after them at once."""


def swept(
    weight: Tensor, factor: Tensor, rows: int, width: int, count: int, limits: tuple[int, int] | None = None
) -> tuple[Tensor, Tensor]:
    """The mask and the weights that make up for it, of one convolution group.

    Args:
        weight: float64, rows x columns, multiples of the group's.
        factor: float64, U, columns x columns: `upper_factor` of H^-1.
        rows: Of a group of weights.
        width: Columns of a group.
        count: Groups to remove. How many go from each 128 columns is settled before, by what they would cost as the
            weights are then; which ones, when their columns are reached.
        limits: N and M, to keep N of each M columns instead, for groups of one weight.
    """
    step = (limits[1] if limits else width) * max(1, COLUMNS // (limits[1] if limits else width))
    result, mask = weight.clone(), torch.ones_like(weight, dtype=torch.bool)
    quotas = [] if limits else _quotas(weight, factor, rows, width, count, step)
    for number, start in enumerate(range(0, weight.shape[1], step)):
        part = slice(start, min(start + step, weight.shape[1]))
        block, square = result[:, part].clone(), factor[part, part]
        kept = mask[:, part]
        if not limits:
            costs = _costs(block, square, rows, width)
            kept &= _spread(~lowest(costs, quotas[number]), rows, width)
        errors = _sweep(block, square, kept, limits)
        result[:, part] = block
        result[:, part.stop :] -= errors @ factor[part, part.stop :]
    return mask, result


def upper_factor(inverse: Tensor) -> Tensor:
    """H^-1, ... x columns x columns -> U, upper triangular, with H^-1 = U^T U."""
    factor: Tensor = torch.linalg.cholesky(inverse).mT.contiguous()
    return factor


def _quotas(weight: Tensor, factor: Tensor, rows: int, width: int, count: int, step: int) -> list[int]:
    """How many groups go from each `step` columns."""
    costs = torch.cat(
        [
            _costs(
                weight[:, start : start + step],
                factor[start : start + step, start : start + step],
                rows,
                width,
            )
            for start in range(0, weight.shape[1], step)
        ],
        dim=1,
    )
    each = lowest(costs, count).sum(dim=0)
    return [int(part.sum()) for part in torch.split(each, step // width)]


def _costs(block: Tensor, square: Tensor, rows: int, width: int) -> Tensor:
    """Of each group: rows / rows of a group x columns / width."""
    if width == 1:
        single = (block / square.diagonal()).square()
        return single.reshape(-1, rows, block.shape[1]).sum(dim=1)
    parts = block.reshape(len(block), -1, width)
    squares = (
        square.reshape(parts.shape[1], width, parts.shape[1], width).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    )
    scaled = torch.linalg.solve_triangular(squares, parts.transpose(0, 1), upper=True, left=False)
    costs: Tensor = scaled.square().sum(dim=2).T
    return costs.reshape(-1, rows, parts.shape[1]).sum(dim=1)


def _spread(groups: Tensor, rows: int, width: int) -> Tensor:
    return groups.repeat_interleave(rows, dim=0).repeat_interleave(width, dim=1)


def _sweep(block: Tensor, square: Tensor, kept: Tensor, limits: tuple[int, int] | None) -> Tensor:
    """Remove column by column what the mask says, in place; for N:M the mask is chosen on the way. The scaled errors."""
    errors = torch.zeros_like(block)
    diagonal = square.diagonal()
    for column in range(block.shape[1]):
        if limits and column % limits[1] == 0:
            group = slice(column, column + limits[1])
            costs = (block[:, group] / diagonal[group]).square()
            kept[:, group].scatter_(1, costs.argsort(dim=1, stable=True)[:, : limits[1] - limits[0]], False)
        error = (block[:, column] / diagonal[column]).masked_fill(kept[:, column], 0.0)
        block[:, column:].addr_(error, square[column, column:], alpha=-1)
        errors[:, column] = error
    block.masked_fill_(~kept, 0.0)
    return errors
