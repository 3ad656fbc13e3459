"""The best values of the weights that are kept: least squares on the calibration data."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsecomp.pruning.hessian import Hessian

CHOLESKY_FLOPS = 2e11
"""Above which least squares is by iteration."""
MEMORY = 128 << 20
"""Bytes of the matrices that are factored at a time."""
ITERATIONS = 30
TOLERANCE = 1e-6


def least_squares(weight: Tensor, mask: Tensor, hessian: Hessian, start: Tensor | None = None) -> Tensor:
    """The weights within the mask that minimise tr((W' - W) H (W' - W)^T), H being the damped matrix.

    w_K = (H_KK)^-1 (H w)_K for each row and the columns K that it keeps: the normal equations of  min ||X w' - X w||
    (Hubara et al., "Accelerated Sparse Neural Training", 2021, "AdaPrune", solves the same by gradient descent).
    Where factoring a matrix for each mask would take too long, conjugate gradients run on all rows at once,
    preconditioned by the diagonal.

    Args:
        weight: float64, groups x rows x columns; all groups of a convolution.
        mask: bool, the same shape: what is kept.
        hessian: Of the layer, groups x columns x columns.
        start: Where iterations begin; by default the weights within the mask.
    """
    if _cholesky_flops(mask) <= CHOLESKY_FLOPS:
        results = [_solved(*parts) for parts in zip(weight, mask, hessian.matrix, strict=True)]
        return torch.stack(results)
    return conjugate_gradients(weight, mask, hessian.matrix, weight if start is None else start, ITERATIONS)


def _cholesky_flops(mask: Tensor) -> float:
    """Of factoring a matrix for each distinct mask."""
    return sum(float((torch.unique(rows, dim=0).sum(dim=1).double() ** 3 / 3).sum()) for rows in mask)


def _solved(weight: Tensor, mask: Tensor, matrix: Tensor) -> Tensor:
    """Of one convolution group: rows x columns. Distinct masks in chunks of similar size."""
    target = weight @ matrix
    masks, which = torch.unique(mask, dim=0, return_inverse=True)
    counts = masks.sum(dim=1)
    result = torch.zeros_like(weight)
    order = counts.argsort().tolist()
    while order:
        size = int(counts[order[-1]])
        if size == 0:
            break
        chunk = order[-max(1, MEMORY // (8 * size * size)) :]
        del order[-len(chunk) :]
        _solve_chunk(masks[chunk], size, _rows_of(which, chunk), target, matrix, result)
    return result


def _rows_of(which: Tensor, chunk: list[int]) -> list[Tensor]:
    return [(which == number).nonzero().flatten() for number in chunk]


def _solve_chunk(
    masks: Tensor, size: int, rows: list[Tensor], target: Tensor, matrix: Tensor, result: Tensor
) -> None:
    """Each mask's columns, filled up to `size` by unit rows; several rows may have one mask."""
    columns = masks.long().argsort(dim=1, descending=True, stable=True)[:, :size]
    valid = masks.gather(1, columns)
    squares = matrix[columns[:, :, None], columns[:, None, :]] * (valid[:, :, None] & valid[:, None, :])
    squares.diagonal(dim1=1, dim2=2).add_((~valid).to(squares.dtype))
    factors = torch.linalg.cholesky(squares)
    most = max(len(found) for found in rows)
    sides = target.new_zeros(len(masks), size, most)
    for number, found in enumerate(rows):
        sides[number, :, : len(found)] = (target[found][:, columns[number]] * valid[number]).T
    values = torch.cholesky_solve(sides, factors)
    for number, found in enumerate(rows):
        chosen = columns[number][valid[number]]
        result[found[:, None], chosen] = values[number, valid[number], : len(found)].T


def conjugate_gradients(
    weight: Tensor, mask: Tensor, matrix: Tensor, start: Tensor, iterations: int
) -> Tensor:
    """Towards least squares: on P H P w' = P H w with P the projection on the mask, every row on its own.

    Shewchuk, "An Introduction to the Conjugate Gradient Method", 1994, B3. The error falls with each iteration.
    """
    diagonal = matrix.diagonal(dim1=1, dim2=2)[:, None]
    goal = (weight @ matrix) * mask
    value = start * mask
    residual = goal - (value @ matrix) * mask
    direction = residual / diagonal
    product = (residual * direction).sum(dim=2, keepdim=True)
    enough = TOLERANCE**2 * (goal * goal / diagonal).sum(dim=2, keepdim=True)
    for _ in range(iterations):
        if bool((product <= enough).all()):
            break
        moved = (direction @ matrix) * mask
        step = product / (direction * moved).sum(dim=2, keepdim=True).clamp(min=1e-300)
        value = value + step * direction
        residual = residual - step * moved
        scaled = residual / diagonal
        previous, product = product, (residual * scaled).sum(dim=2, keepdim=True)
        direction = scaled + product / previous.clamp(min=1e-300) * direction
    return value
