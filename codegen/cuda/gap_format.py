"""Unstructured 16-bit weights as values and the gaps between their columns, for kernels without tensor cores.

The entries of a row, in the order of columns, are divided evenly among 8 lanes; a warp has 4 rows. An entry is a value
and by how many columns it lies behind the entry before, 4 bits. Where that is more than 15, entries of value 0 lie
between. All lanes of a warp have as many steps of 8 entries.

Bytes: 2.5 for each entry, of which there are 1.035 for each value at 80 % of zeros and 1.0005 at 60 %; 4 for each
lane; and what fills up the steps, about 5 % for rows of 800 values.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

ROWS = 4
"""Of a warp."""
LANES = 8
"""Of a row."""
STEP = 8
"""Entries whose gaps are one word."""
MOST = 15
"""The longest gap."""


@dataclass(frozen=True)
class GapFormat:
    """How a matrix of `rows` x `columns` lies in memory."""

    rows: int
    columns: int

    @property
    def warps(self) -> int:
        return -(-self.rows // ROWS)

    def pack(self, matrix: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """starts: int32 [warps + 1], in steps; first: int32 [warps * 32], of each lane the column that its gaps begin
        at; gaps: int32 [steps * 32]; values: [steps * 32 * 8] of the matrix's dtype."""
        rows, columns, values = self._entries(matrix)
        counts = torch.bincount(rows, minlength=self.warps * ROWS)
        share = (counts + LANES - 1) // LANES
        steps = ((share + STEP - 1) // STEP).reshape(self.warps, ROWS).amax(dim=1)
        starts = F.pad(steps.cumsum(0), (1, 0))
        rank = torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[rows]
        lane, number = rank // share.clamp(min=1)[rows], rank % share.clamp(min=1)[rows]
        begins = number == 0
        advance = torch.where(begins, 0, columns - F.pad(columns, (1, 0))[:-1])
        warp, of_warp = rows // ROWS, rows % ROWS * LANES + lane
        first = torch.zeros(self.warps * ROWS * LANES, dtype=torch.int32, device=matrix.device)
        first[(warp * ROWS * LANES + of_warp)[begins]] = columns[begins].int()
        size = max(1, int(starts[-1])) * ROWS * LANES * STEP
        place = ((starts[warp] + number // STEP) * ROWS * LANES + of_warp) * STEP + number % STEP
        listed, nibbles = values.new_zeros(size), torch.zeros(size, dtype=torch.int64, device=matrix.device)
        listed[place], nibbles[place] = values, advance
        shifts = 4 * torch.arange(STEP, device=matrix.device)
        gaps = (nibbles.reshape(-1, STEP) << shifts).sum(dim=1)
        return starts.int(), first, gaps.to(torch.uint32).view(torch.int32), listed

    def unpack(self, starts: Tensor, first: Tensor, gaps: Tensor, values: Tensor) -> Tensor:
        """The matrix; its zeros are positive."""
        counts, lanes = starts.long().diff(), ROWS * LANES
        shifts = 4 * torch.arange(STEP, device=gaps.device)
        advance = ((gaps.long()[:, None] >> shifts) & MOST).reshape(-1, lanes, STEP)
        matrix = torch.zeros(self.warps * ROWS, self.columns, dtype=values.dtype, device=values.device)
        for warp in counts.nonzero().flatten().tolist():
            steps = slice(int(starts[warp]), int(starts[warp + 1]))
            moves = advance[steps].transpose(0, 1).reshape(lanes, -1)
            columns = first[warp * lanes : (warp + 1) * lanes, None].long() + moves.cumsum(dim=1)
            found = values.reshape(-1, lanes, STEP)[steps].transpose(0, 1).reshape(lanes, -1)
            rows = (warp * ROWS + torch.arange(lanes, device=gaps.device) // LANES)[:, None].expand_as(
                columns
            )
            kept = found != 0
            matrix[rows[kept], columns[kept]] = found[kept]
        return matrix[: self.rows].contiguous()

    def _entries(self, matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Row, column and value of each entry, with those that fill long gaps."""
        rows, columns = (matrix != 0).nonzero(as_tuple=True)
        before = F.pad(columns, (1, 0))[:-1]
        gap = torch.where(rows == F.pad(rows, (1, 0), value=-1)[:-1], columns - before, 0)
        fillers = (gap - 1).clamp(min=0) // MOST
        source = torch.arange(len(rows), device=rows.device).repeat_interleave(fillers + 1)
        ends = (fillers + 1).cumsum(0)
        left = ends[source] - 1 - torch.arange(len(source), device=rows.device)
        # Of the gap g of an entry with f fillers, the last leaves g - 15 f.
        column = torch.where(
            left > 0, (columns - gap)[source] + MOST * (fillers[source] - left + 1), columns[source]
        )
        values = torch.where(left > 0, matrix.new_zeros(()), matrix[rows, columns][source])
        return rows[source], column, values
