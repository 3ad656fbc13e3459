"""Optimal Brain Surgeon, exactly: groups of weights go one by one, and all others make up for each.

Frantar and Alistarh, "Optimal Brain Compression", NeurIPS 2022, section 4, for single weights (there "ExactOBS"),
groups of columns and N:M; blocks of several rows share one inverse, as they lose the same columns. With H the mean
of x x^T, removing the columns P of a row w raises the error by  w_P ([H^-1]_PP)^-1 w_P^T  (the paper's equation 3
for one column, 5 for several; H there is twice as large and the error half), and the best change of the others is
-w_P ([H^-1]_PP)^-1 [H^-1]_P,:.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

MEMORY = 64 << 20
"""Bytes of the inverses at work at a time."""


@dataclass(frozen=True, eq=False)
class Trace:
    """The order in which each block of rows loses its groups of columns, down to none (for N:M, to N of each M)."""

    order: Tensor
    """int64, blocks x removals: group numbers."""
    losses: Tensor
    """float64, blocks x removals: by how much each raises the squared error."""
    groups: int
    """Of columns in a row."""

    def kept(self, count: int) -> Tensor:
        """bool, blocks x groups: what is left when `count` groups are gone, over all blocks those that cost least.

        The blocks' losses are merged as in the paper's section 4, "global step", each block in its own order.
        """
        blocks, removals = self.order.shape
        rising = self.losses.cummax(dim=1).values if removals else self.losses
        chosen = rising.flatten().argsort(stable=True)[:count]
        each = torch.bincount(chosen // max(1, removals), minlength=blocks)
        removed = torch.arange(removals, device=each.device) < each[:, None]
        kept = torch.ones(blocks, self.groups + 1, dtype=torch.bool, device=each.device)
        kept.scatter_(1, torch.where(removed, self.order, self.groups), False)
        return kept[:, : self.groups]


def removal_trace(weights: Tensor, inverses: Tensor, width: int, limits: Tensor | None = None) -> Trace:
    """Remove every group, the cheapest of each block first.

    Args:
        weights: float64, blocks x rows x columns.
        inverses: float64, H^-1, one for as many consecutive blocks each: some x columns x columns.
        width: Columns of a group, a divisor of their number.
        limits: For N:M, with width 1: how many of each M consecutive columns may go, int64, buckets. The columns
            are then a multiple of the buckets.
    """
    blocks, _, columns = weights.shape
    each = blocks // len(inverses)
    at_once = max(1, MEMORY // (8 * columns * columns))
    traces = []
    for start in range(0, blocks, at_once):
        numbers = torch.arange(start, min(start + at_once, blocks), device=weights.device)
        surgery = _Surgery(weights[numbers].clone(), inverses[numbers // each], width, limits)
        traces.append(surgery.run())
    order, losses = (torch.cat(parts) for parts in zip(*traces, strict=True))
    return Trace(order, losses, columns // width)


class _Surgery:
    """Some blocks while they lose their groups. What is gone is dropped from the arrays now and then."""

    def __init__(self, weights: Tensor, inverses: Tensor, width: int, limits: Tensor | None) -> None:
        self.weights, self.inverses, self.width = weights, inverses, width
        blocks, _, columns = weights.shape
        self.groups = columns // width
        self.number = torch.arange(self.groups, device=weights.device).expand(blocks, -1)
        """Of the groups that are still in the arrays."""
        self.gone = torch.zeros(blocks, self.groups, dtype=torch.bool, device=weights.device)
        self.every = torch.arange(blocks, device=weights.device)
        self.left = None if limits is None else limits.expand(blocks, -1).clone()
        self.per_bucket = 0 if limits is None else columns // len(limits)
        self.removals = self.groups if limits is None else int(limits.sum())

    def run(self) -> tuple[Tensor, Tensor]:
        """Order and losses, blocks x removals."""
        blocks = len(self.weights)
        order = torch.empty(blocks, self.removals, dtype=torch.long, device=self.weights.device)
        losses = torch.empty(blocks, self.removals, dtype=torch.double, device=self.weights.device)
        since = 0
        for step in range(self.removals):
            order[:, step], losses[:, step] = self._remove_cheapest()
            since += 1
            if since * 8 >= self.gone.shape[1] and self.gone.shape[1] > since:
                self._drop_gone()
                since = 0
        return order, losses.clamp_(min=0)

    def _remove_cheapest(self) -> tuple[Tensor, Tensor]:
        costs, solved = self._costs()
        forbidden = self.gone
        if self.left is not None:
            forbidden = forbidden | (self.left == 0).gather(1, self.number // self.per_bucket)
        chosen = costs.masked_fill(forbidden, torch.inf).argmin(dim=1)
        columns = chosen[:, None] * self.width + torch.arange(self.width, device=chosen.device)
        rows = self.inverses[self.every[:, None], columns]  # blocks x width x columns
        square = rows.gather(2, columns[:, None, :].expand(-1, self.width, -1))
        self.weights.baddbmm_(solved[self.every, chosen], rows, alpha=-1)
        scaled = rows / square if self.width == 1 else torch.linalg.solve(square, rows)
        self.inverses.baddbmm_(rows.transpose(1, 2), scaled, alpha=-1)
        self.gone[self.every, chosen] = True
        numbers = self.number[self.every, chosen]
        if self.left is not None:
            self.left[self.every, numbers // self.per_bucket] -= 1
        return numbers, costs[self.every, chosen]

    def _costs(self) -> tuple[Tensor, Tensor]:
        """What removing each group costs, blocks x groups, and w_P ([H^-1]_PP)^-1, blocks x groups x rows x width."""
        blocks, rows, columns = self.weights.shape
        count, width = columns // self.width, self.width
        parts = self.weights.reshape(blocks, rows, count, width).transpose(1, 2)
        if width == 1:
            diagonal = self.inverses.diagonal(dim1=1, dim2=2).masked_fill(self.gone, 1.0)
            solved = parts / diagonal[:, :, None, None]
        else:
            squares = self.inverses.reshape(blocks, count, width, count, width).diagonal(dim1=1, dim2=3)
            squares = squares.permute(0, 3, 1, 2)
            unit = torch.eye(width, dtype=squares.dtype, device=squares.device)
            squares = torch.where(self.gone[:, :, None, None], unit, squares)
            solved = torch.linalg.solve(squares, parts, left=False)
        return (solved * parts).sum(dim=(2, 3)), solved

    def _drop_gone(self) -> None:
        """Keep what every block still has; all have lost equally many groups."""
        kept = (~self.gone).nonzero()[:, 1].reshape(len(self.gone), -1)
        columns = (kept[:, :, None] * self.width + torch.arange(self.width, device=kept.device)).flatten(1)
        self.weights = self.weights.gather(2, columns[:, None].expand(-1, self.weights.shape[1], -1))
        rows = self.inverses.gather(1, columns[:, :, None].expand(-1, -1, self.inverses.shape[2]))
        self.inverses = rows.gather(2, columns[:, None].expand(-1, columns.shape[1], -1))
        self.number = self.number.gather(1, kept)
        self.gone = torch.zeros_like(kept, dtype=torch.bool)
