"""Optimal Brain Surgeon on one layer: which way of it a layer can afford."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from sparsecomp.pruning.exact_obs import removal_trace
from sparsecomp.pruning.hessian import Hessian
from sparsecomp.pruning.repair import least_squares
from sparsecomp.pruning.rounds import in_rounds, rounds_flops
from sparsecomp.pruning.selection import lowest, removed_count
from sparsecomp.pruning.sparsegpt import swept
from sparsecomp.train.tiling import Tiling

EXACT_COST = 3e10
"""Blocks of rows x columns^3, up to which groups go one by one: some seconds. Neither that nor rounds is always the
better one, so the better result of both is taken."""
ROUNDS_FLOPS = 2e11
"""Up to which groups go in rounds, unless least squares are asked for: some seconds."""
IN_CACHE, OUT_OF_CACHE = 1024, 4
"""Columns up to which an inverse stays in cache, and how much more each element of a larger one costs."""


@dataclass(frozen=True)
class Surgery:
    """What is removed from a layer: tiles of its matrix. All convolution groups have the same columns."""

    tiling: Tiling
    sparsity: float
    limits: tuple[int, int] | None
    """N and M."""

    def fits(self, weights: Tensor) -> bool:
        """Whether no tile reaches over convolution groups, whose columns are different inputs."""
        return len(weights) == 1 or weights.shape[1] % self.tiling.rows == 0

    def cost(self, weights: Tensor) -> float:
        groups, rows, columns = weights.shape
        weigh = 1 if columns <= IN_CACHE else OUT_OF_CACHE
        return weigh * groups * -(-rows // self.tiling.rows) * float(columns) ** 3

    def run(self, weights: Tensor, hessian: Hessian, repair: bool) -> tuple[Tensor, Tensor, str]:
        """The mask, the weights and how they were found; float64, convolution groups x rows x columns."""
        assert self.fits(weights)
        work = weights.masked_fill(hessian.dead[:, None], 0.0)
        rows, width = min(self.tiling.rows, work.shape[1]), min(self.tiling.columns, work.shape[2])
        if width == work.shape[2] and not self.limits:
            mask = self._whole_rows(work, hessian, rows)
            return mask, weights * mask, "whole rows"
        padded, inverse = _padded(work, hessian.inverse, rows, self.limits[1] if self.limits else width)
        count = removed_count(
            self.sparsity, -(-work.shape[0] * work.shape[1] // rows) * -(-work.shape[2] // width)
        )
        found = []
        if self.cost(work) <= EXACT_COST:
            mask = self._exact(padded, inverse, rows, width)[:, : work.shape[1], : work.shape[2]]
            found.append((mask, least_squares(work, mask, hessian), "exact"))
        if repair or rounds_flops(work) <= ROUNDS_FLOPS:
            found.append((*in_rounds(work, hessian, Tiling(rows, width), count, self.limits), "rounds"))
        if not found:
            mask, result = self._swept(padded, inverse, rows, width)
            found.append(
                (
                    mask[:, : work.shape[1], : work.shape[2]],
                    result[:, : work.shape[1], : work.shape[2]],
                    "sweep",
                )
            )
        mask, result, how = min(found, key=lambda way: _error(work, way[1], hessian))
        untouched = mask & hessian.dead[:, None]
        return mask, torch.where(untouched, weights, result), how

    def _whole_rows(self, work: Tensor, hessian: Hessian, rows: int) -> Tensor:
        """Nothing of a row is left to make up for it: those of least output energy go."""
        energies = ((work @ hessian.matrix) * work).sum(dim=2)
        energies = F.pad(energies, (0, -energies.shape[1] % rows)).reshape(len(work), -1, rows).sum(dim=2)
        gone = lowest(energies, removed_count(self.sparsity, energies.numel()))
        kept = ~gone.repeat_interleave(rows, dim=1)[:, : work.shape[1], None]
        return kept.expand(work.shape)

    def _exact(self, padded: Tensor, inverse: Tensor, rows: int, width: int) -> Tensor:
        groups, height, columns = padded.shape
        blocks = padded.reshape(groups * height // rows, rows, columns)
        if self.limits:
            n, m = self.limits
            each = torch.full((columns // m,), m - n, device=padded.device)
            trace = removal_trace(blocks, inverse, 1, each)
            kept = trace.kept(trace.order.numel())
        else:
            trace = removal_trace(blocks, inverse, width)
            kept = trace.kept(removed_count(self.sparsity, trace.order.numel()))
        return kept.repeat_interleave(rows, dim=0).repeat_interleave(width, dim=1).reshape(padded.shape)

    def _swept(self, padded: Tensor, inverse: Tensor, rows: int, width: int) -> tuple[Tensor, Tensor]:
        tiles = padded[0].numel() // (rows * width)
        found = [
            swept(weight, own, rows, width, removed_count(self.sparsity, tiles), self.limits)
            for weight, own in zip(padded, inverse, strict=True)
        ]
        masks, results = zip(*found, strict=True)
        return torch.stack(masks), torch.stack(results)


def _error(weights: Tensor, result: Tensor, hessian: Hessian) -> float:
    change = result - weights
    return float(torch.sum((change @ hessian.moments) * change))


def _padded(weights: Tensor, inverse: Tensor, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """Filled up to multiples with weights of zero and inputs that nothing depends on."""
    down, across = -weights.shape[1] % rows, -weights.shape[2] % columns
    size = inverse.shape[1]
    inverse = F.pad(inverse, (0, across, 0, across))
    inverse[:, range(size, size + across), range(size, size + across)] = 1.0
    return F.pad(weights, (0, across, 0, down)), inverse
