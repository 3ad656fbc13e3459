"""Vectors of weights, `height` x 1, as tensor cores take them: of each group of rows the columns that are not all 0.

Columns are filled up to steps of 32, with zeros for column 0. Bytes: those of the vectors so filled up, 4 for each of
them and 8 for each group.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

WIDTH = 32
"""Columns of a step."""


@dataclass(frozen=True)
class VectorFormat:
    """A matrix of `rows` x `columns` in groups of `height` rows."""

    rows: int
    columns: int
    height: int

    @property
    def groups(self) -> int:
        return -(-self.rows // self.height)

    def kept(self, matrix: Tensor) -> Tensor:
        """Bool [groups, columns]: which vectors hold something."""
        return self._grouped(matrix != 0).any(dim=1)

    def pack(self, matrix: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """order: int32 [groups], those with most columns first; starts: int32 [groups + 1], of each group (not in
        that order) its first step; columns: int32 [steps * 32]; values: [steps * height * 32], a step row by row.

        Of a matrix of zeros one step is stored, as an operand may not be empty.
        """
        kept = self.kept(matrix)
        counts = kept.sum(dim=1)
        steps = (counts + WIDTH - 1) // WIDTH
        starts = F.pad(steps.cumsum(0), (1, 0))
        size = max(1, int(starts[-1])) * WIDTH
        groups, columns, places = self._found(kept, starts)
        listed = torch.zeros(size, dtype=torch.int32, device=matrix.device)
        listed[places] = columns.int()
        vectors = torch.zeros(size, self.height, dtype=matrix.dtype, device=matrix.device)
        vectors[places] = self._grouped(matrix)[groups, :, columns]
        values = vectors.reshape(-1, WIDTH, self.height).transpose(1, 2).flatten()
        return steps.argsort(descending=True, stable=True).int(), starts.int(), listed, values

    def unpack(self, starts: Tensor, columns: Tensor, values: Tensor) -> Tensor:
        """The matrix, bit for bit but for the sign of zeros in vectors that are not stored."""
        vectors = values.reshape(-1, self.height, WIDTH).transpose(1, 2).reshape(-1, self.height)
        steps = starts.long().diff()
        groups = torch.arange(self.groups, device=values.device).repeat_interleave(steps * WIDTH)
        held = (vectors != 0).any(dim=1)[: len(groups)]
        matrix = torch.zeros(self.groups, self.height, self.columns, dtype=values.dtype, device=values.device)
        matrix[groups[held], :, columns[: len(groups)][held].long()] = vectors[: len(groups)][held]
        return matrix.reshape(-1, self.columns)[: self.rows].contiguous()

    def _grouped(self, matrix: Tensor) -> Tensor:
        return F.pad(matrix, (0, 0, 0, -self.rows % self.height)).reshape(-1, self.height, self.columns)

    def _found(self, kept: Tensor, starts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Group and column of each vector that is kept, and its place among those of all steps."""
        groups, columns = kept.nonzero(as_tuple=True)
        rank = kept.cumsum(dim=1)[groups, columns] - 1
        return groups, columns, starts[groups] * WIDTH + rank
