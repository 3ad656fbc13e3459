"""Prune by what a change of the weights does to the loss: the empirical Fisher matrix, in blocks.

Singh and Alistarh, "WoodFisher: Efficient Second-Order Approximation for Neural Network Compression", NeurIPS 2020,
section 3: F = lambda I + (1/N) sum_n g_n g_n^T with gradients g_n of single samples. The matrix is cut into blocks
along its diagonal; within a block, groups of weights go one by one as in `exact_obs`, with F in place of H. A block
is so small that its inverse is computed at once and not by the paper's recursion (equation 9), which it equals.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from sparsecomp.pruning.exact_obs import Trace, removal_trace
from sparsecomp.pruning.selection import lowest, removed_count
from sparsecomp.train.tiling import Tiling

BLOCK = 64
"""Weights of a block, or a few more or less, so that it holds whole groups."""
MEMORY = 64 << 20


@dataclass(frozen=True)
class FisherSurgery:
    """What is removed, and how strongly the matrix is damped: lambda over the mean of its diagonal."""

    tiling: Tiling
    sparsity: float
    limits: tuple[int, int] | None
    damping: float

    def run(self, weight: Tensor, gradients: Tensor) -> tuple[Tensor, Tensor]:
        """The mask and the weights that make up for it.

        Args:
            weight: float64, rows x columns.
            gradients: samples x rows x columns.
        """
        rows, columns = weight.shape
        height, width = min(self.tiling.rows, rows), min(self.tiling.columns, columns)
        damp = self.damping * float(gradients.double().square().mean()) or 1.0
        if height * width > BLOCK:
            return self._whole(weight, gradients, height, width, damp)
        per_block = BLOCK // (height * width)
        if self.limits:
            per_block = self.limits[1] * max(1, BLOCK // self.limits[1])
        across = -(-columns // width)
        m = self.limits[1] if self.limits else 1
        blocked = _Blocked(height, width, min(per_block, -(-across // m) * m))
        values, samples = blocked.split(weight[None])[0], blocked.split(gradients)
        real = blocked.real(columns).repeat(-(-rows // height)).to(weight.device)
        trace = self._trace(values, samples, damp, real, height * width)
        if self.limits:
            kept = trace.kept(trace.order.numel())
        else:
            kept = trace.kept(removed_count(self.sparsity, -(-rows // height) * across))
        kept = kept.repeat_interleave(height * width, dim=1)
        result = _compensated(values, samples, kept, damp)
        mask = blocked.join(kept, (rows, columns))
        return mask, blocked.join(result, (rows, columns))

    def _whole(
        self, weight: Tensor, gradients: Tensor, height: int, width: int, damp: float
    ) -> tuple[Tensor, Tensor]:
        """Groups larger than a block cost w_P^T F w_P, and nothing makes up for them."""
        tiling = Tiling(height, width)
        along = torch.stack([tiling.sums(sample.double() * weight) for sample in gradients])
        costs = along.square().mean(dim=0) + damp * tiling.sums(weight.square())
        gone = lowest(costs, removed_count(self.sparsity, costs.numel()))
        mask = tiling.spread(~gone, (weight.shape[0], weight.shape[1]))
        return mask, weight * mask

    def _trace(self, values: Tensor, samples: Tensor, damp: float, real: Tensor, together: int) -> Trace:
        """together: weights of a group. real: per block, how many of its groups are no filling; these are never removed, but for N:M, where they
        count as removed first."""
        size = values.shape[1]
        width = 1 if self.limits else together
        limits = None
        if self.limits:
            limits = torch.full(
                (size // self.limits[1],), self.limits[1] - self.limits[0], device=values.device
            )
        parts = [
            removal_trace(values[chunk][:, None], torch.linalg.inv(matrix), width, limits)
            for chunk, matrix in _matrices(samples, damp)
        ]
        order = torch.cat([part.order for part in parts])
        losses = torch.cat([part.losses for part in parts])
        if not self.limits:
            filling = order >= real[:, None]
            last = filling.long().argsort(dim=1, stable=True)
            order, losses = order.gather(1, last), losses.masked_fill(filling, torch.inf).gather(1, last)
        return Trace(order, losses, size // width)


@dataclass(frozen=True)
class _Blocked:
    """A matrix as blocks of `count` groups that lie beside each other, the groups height x width."""

    height: int
    width: int
    count: int

    def split(self, matrices: Tensor) -> Tensor:
        """n x rows x columns -> n x blocks x count * height * width, filled up with zeros."""
        n, rows, columns = matrices.shape
        wide = self.width * self.count
        matrices = F.pad(matrices, (0, -columns % wide, 0, -rows % self.height))
        parts = matrices.reshape(n, -1, self.height, matrices.shape[2] // self.width, self.width)
        return parts.transpose(2, 3).reshape(n, -1, self.count * self.height * self.width)

    def join(self, blocks: Tensor, shape: tuple[int, int]) -> Tensor:
        """Inverse of `split`, of one matrix."""
        down = -(-shape[0] // self.height)
        parts = blocks.reshape(down, -1, self.height, self.width).transpose(1, 2)
        return parts.reshape(down * self.height, -1)[: shape[0], : shape[1]]

    def real(self, columns: int) -> Tensor:
        """Of the blocks of one row of groups, how many groups are no filling."""
        across = -(-columns // self.width)
        blocks = -(-across // self.count)
        real = torch.full((blocks,), self.count)
        real[-1] = across - (blocks - 1) * self.count
        return real


def _matrices(samples: Tensor, damp: float) -> Iterator[tuple[slice, Tensor]]:
    """Chunks of blocks, and their Fisher matrices: blocks x size x size, float64."""
    count, blocks, size = samples.shape
    at_once = max(1, MEMORY // (8 * size * max(size, count)))
    for start in range(0, blocks, at_once):
        chunk = slice(start, start + at_once)
        own = samples[:, chunk].double()
        matrix = torch.einsum("nbi,nbj->bij", own, own) / count
        matrix.diagonal(dim1=1, dim2=2).add_(damp)
        yield chunk, matrix


def _compensated(values: Tensor, samples: Tensor, kept: Tensor, damp: float) -> Tensor:
    """The best values of what is kept: w_K = (F_KK)^-1 (F w)_K, block by block."""
    result = torch.zeros_like(values)
    for chunk, matrix in _matrices(samples, damp):
        mask, value = kept[chunk], values[chunk]
        goal = (matrix @ value[:, :, None]) * mask[:, :, None]
        square = matrix * (mask[:, :, None] & mask[:, None, :])
        square.diagonal(dim1=1, dim2=2).add_((~mask).double())
        result[chunk] = torch.linalg.solve(square, goal)[:, :, 0] * mask
    return result
