"""Optimal Brain Surgeon on one layer: which way of it a layer can afford."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from sparsecomp.pruning.exact_obs import Trace, removal_trace
from sparsecomp.pruning.hessian import Hessian
from sparsecomp.pruning.repair import least_squares
from sparsecomp.pruning.rounds import in_rounds, rounds_flops
from sparsecomp.pruning.selection import lowest, removed_count
from sparsecomp.pruning.sparsegpt import swept, upper_factor
from sparsecomp.train.tiling import Tiling

EXACT_COST = 3e10
"""Blocks of rows x columns^3, up to which groups go one by one: some seconds. Neither that nor rounds is always the
better one, so the better result of both is taken."""
ROUNDS_FLOPS = 2e11
"""Up to which groups go in rounds, unless least squares are asked for: some seconds."""
IN_CACHE, OUT_OF_CACHE = 1024, 4
"""Columns up to which an inverse stays in cache, and how much more each element of a larger one costs."""


@dataclass(frozen=True, eq=False)
class Surgery:
    """A layer that is to lose tiles of its matrix. What does not depend on how many is found once, for all sparsities."""

    weights: Tensor
    """float64, convolution groups x rows x columns; all groups have the same columns."""
    hessian: Hessian
    tiling: Tiling
    limits: tuple[int, int] | None
    """N and M."""

    @property
    def fits(self) -> bool:
        """Whether no tile reaches over convolution groups, whose columns are different inputs."""
        return len(self.weights) == 1 or self.weights.shape[1] % self.tiling.rows == 0

    @property
    def cost(self) -> float:
        """Of removing tiles one by one."""
        groups, rows, columns = self.weights.shape
        weigh = 1 if columns <= IN_CACHE else OUT_OF_CACHE
        return weigh * groups * -(-rows // self.tiling.rows) * float(columns) ** 3

    def run(self, sparsity: float, repair: bool) -> tuple[Tensor, Tensor, str]:
        """The mask, the weights and how they were found; float64, of the weights' shape."""
        assert self.fits
        weights, work, hessian = self.weights, self._work, self.hessian
        rows, width = self._tile.rows, self._tile.columns
        if width == work.shape[2] and not self.limits:
            mask = self._whole_rows(sparsity)
            return mask, weights * mask, "whole rows"
        tiles = -(-work.shape[0] * work.shape[1] // rows) * -(-work.shape[2] // width)
        found = []
        if self.cost <= EXACT_COST:
            mask = self._exact(sparsity)
            found.append((mask, least_squares(work, mask, hessian), "exact"))
        if repair or rounds_flops(work) <= ROUNDS_FLOPS:
            count = removed_count(sparsity, tiles)
            found.append((*in_rounds(work, hessian, self._tile, count, self.limits), "rounds"))
        if not found:
            found.append((*self._swept(sparsity), "sweep"))
        mask, result, how = found[0]
        if len(found) > 1:
            mask, result, how = min(found, key=lambda way: _error(work, way[1], hessian))
        untouched = mask & hessian.dead[:, None]
        return mask, torch.where(untouched, weights, result), how

    @cached_property
    def _work(self) -> Tensor:
        return self.weights.masked_fill(self.hessian.dead[:, None], 0.0)

    @property
    def _tile(self) -> Tiling:
        """No larger than the matrix."""
        _, rows, columns = self.weights.shape
        return Tiling(min(self.tiling.rows, rows), min(self.tiling.columns, columns))

    @cached_property
    def _padded(self) -> tuple[Tensor, Tensor]:
        """Weights and the inverse, filled up to multiples with weights of zero and inputs that nothing depends on."""
        rows, columns = self._tile.rows, self.limits[1] if self.limits else self._tile.columns
        inverse, size = self.hessian.inverse, self.weights.shape[2]
        down, across = -self.weights.shape[1] % rows, -size % columns
        inverse = F.pad(inverse, (0, across, 0, across))
        inverse[:, range(size, size + across), range(size, size + across)] = 1.0
        return F.pad(self._work, (0, across, 0, down)), inverse

    def _whole_rows(self, sparsity: float) -> Tensor:
        """Nothing of a row is left to make up for it: those of least output energy go."""
        work, rows = self._work, self._tile.rows
        energies = ((work @ self.hessian.matrix) * work).sum(dim=2)
        energies = F.pad(energies, (0, -energies.shape[1] % rows)).reshape(len(work), -1, rows).sum(dim=2)
        gone = lowest(energies, removed_count(sparsity, energies.numel()))
        kept = ~gone.repeat_interleave(rows, dim=1)[:, : work.shape[1], None]
        return kept.expand(work.shape)

    @cached_property
    def _trace(self) -> Trace:
        padded, inverse = self._padded
        groups, height, columns = padded.shape
        blocks = padded.reshape(groups * height // self._tile.rows, self._tile.rows, columns)
        if not self.limits:
            return removal_trace(blocks, inverse, self._tile.columns)
        n, m = self.limits
        each = torch.full((columns // m,), m - n, device=padded.device)
        return removal_trace(blocks, inverse, 1, each)

    def _exact(self, sparsity: float) -> Tensor:
        padded, trace = self._padded[0], self._trace
        removals = trace.order.numel()
        kept = trace.kept(removals if self.limits else removed_count(sparsity, removals))
        rows, width = self._tile.rows, 1 if self.limits else self._tile.columns
        mask = kept.repeat_interleave(rows, dim=0).repeat_interleave(width, dim=1).reshape(padded.shape)
        return self._cropped(mask)

    @cached_property
    def _factors(self) -> Tensor:
        return upper_factor(self._padded[1])

    def _swept(self, sparsity: float) -> tuple[Tensor, Tensor]:
        padded, (rows, width) = self._padded[0], (self._tile.rows, self._tile.columns)
        count = removed_count(sparsity, padded[0].numel() // (rows * width))
        found = [
            swept(weight, own, rows, width, count, self.limits)
            for weight, own in zip(padded, self._factors, strict=True)
        ]
        masks, results = zip(*found, strict=True)
        return self._cropped(torch.stack(masks)), self._cropped(torch.stack(results))

    def _cropped(self, padded: Tensor) -> Tensor:
        return padded[:, : self.weights.shape[1], : self.weights.shape[2]]


def _error(weights: Tensor, result: Tensor, hessian: Hessian) -> float:
    change = result - weights
    return float(torch.sum((change @ hessian.moments) * change))
