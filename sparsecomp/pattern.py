"""Execution patterns: how many rows of the weight share one list of columns, and the weights packed by it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class RowBlocks:
    """Each `rows` consecutive rows share one list of columns; a column is kept if any of them is non-zero.

    `rows` = 1 is unstructured sparsity, 2, 4 and 8 are vector blocks, `shared` means that all rows of the
    layer share one list (dense weights, and SSL's shape-wise sparsity); `rows` is then how many are computed
    together.
    """

    rows: int
    shared: bool = False
    live_first: bool = False
    """Whether rows without any weight come last, within each group of a convolution: what is left when whole
    filters are gone then fills its blocks."""

    @property
    def by_length(self) -> bool:
        """Whether kernels take the lists in the order of their lengths."""
        return self.rows == 1 and not self.shared

    @property
    def has_order(self) -> bool:
        """Whether kernels take the rows in an order that is listed."""
        return self.live_first or self.by_length

    def __str__(self) -> str:
        if self.shared:
            return "dense rows" if self.rows == 1 else f"dense rows x{self.rows}"
        name = "unstructured" if self.rows == 1 else f"blocks {self.rows}x1"
        return name + ", live rows first" * self.live_first


IN_PLACE = RowBlocks(1, shared=True)
"""Dense rows that stay where the model has them: the packed values are the matrix itself."""
PATTERNS = (
    RowBlocks(1),
    RowBlocks(2),
    RowBlocks(4),
    RowBlocks(8),
    RowBlocks(4, shared=True),
    RowBlocks(8, shared=True),
    RowBlocks(4, live_first=True),
    RowBlocks(8, live_first=True),
)
"""How a weight may be packed."""


@dataclass(frozen=True)
class PackedRows:
    """Canonical packed weights: independent of layout, schedule and machine.

    `values[i, r]` is the weight of row `order[group * R + r]` at column `columns[i]`, for the i from `pointers[group]`
    to `pointers[group + 1]`; columns rise within a group. With a shared list, `columns` and `pointers` describe
    that one list and `values` is `groups x list length x R`.
    """

    pattern: RowBlocks
    shape: tuple[int, int]
    values: Tensor
    columns: Tensor
    pointers: Tensor
    order: Tensor
    """int32, groups * R: the rows in the order in which they are packed; those past the last row fill up."""

    @property
    def groups(self) -> int:
        return -(-self.shape[0] // self.pattern.rows)

    @property
    def stored(self) -> int:
        """Elements stored, the zeros inside blocks included."""
        return self.values.numel()


def _grouped(matrix: Tensor, rows: int) -> Tensor:
    """rows x columns -> groups x R x columns, the last group padded with zero rows."""
    missing = -matrix.shape[0] % rows
    if missing:
        matrix = torch.cat([matrix, matrix.new_zeros(missing, matrix.shape[1])])
    return matrix.reshape(-1, rows, matrix.shape[1])


def _merged(used: Tensor, rows: int) -> Tensor:
    """Whether any of each `rows` consecutive rows is used; the last ones may be fewer."""
    while rows > 1 and rows % 2 == 0:  # by halves, much faster than `any` over short groups
        used = F.pad(used, (0, 0, 0, len(used) % 2))
        used, rows = used[0::2] | used[1::2], rows // 2
    return _grouped(used, rows).any(dim=1) if rows > 1 else used


def row_order(matrix: Tensor, pattern: RowBlocks, conv_groups: int = 1) -> Tensor:
    """int32: the rows in the order in which the pattern packs them, filled up to whole blocks."""
    rows = matrix.shape[0]
    order = torch.arange(rows + -rows % pattern.rows)
    if pattern.live_first:
        dead = (~(matrix != 0).any(dim=1)).reshape(conv_groups, -1)
        inner = dead.to(torch.uint8).argsort(dim=1, stable=True)
        order[:rows] = (inner + torch.arange(conv_groups)[:, None] * dead.shape[1]).flatten()
    return order.int()


def pack(matrix: Tensor, pattern: RowBlocks, conv_groups: int = 1) -> PackedRows:
    """matrix: rows x columns, finite. Exact: `unpack(pack(w, p)) == w` for every w and p."""
    shape = (matrix.shape[0], matrix.shape[1])
    if pattern == IN_PLACE:
        every = torch.tensor([0, shape[1]], dtype=torch.int32)
        return PackedRows(pattern, shape, matrix, torch.arange(shape[1]).int(), every, torch.empty(0).int())
    order = row_order(matrix, pattern, conv_groups)
    if pattern.live_first:
        matrix = matrix[order[: shape[0]].long()]
    grouped = _grouped(matrix, pattern.rows)
    kept = _merged(matrix != 0, pattern.rows)
    if pattern.shared:
        columns = kept.any(dim=0).nonzero().flatten()
        values = grouped[:, :, columns].transpose(1, 2).contiguous()
        pointers = torch.tensor([0, len(columns)], dtype=torch.int32)
        return PackedRows(pattern, shape, values, columns.int(), pointers, order)
    group, columns = kept.nonzero(as_tuple=True)
    values = grouped[group, :, columns].contiguous()
    pointers = torch.zeros(len(grouped) + 1, dtype=torch.int32)
    pointers[1:] = torch.bincount(group, minlength=len(grouped)).cumsum(0)
    return PackedRows(pattern, shape, values, columns.int(), pointers, order)


def unpack(packed: PackedRows) -> Tensor:
    """The matrix rows x columns, zeros in place."""
    rows, columns = packed.shape
    if packed.pattern == IN_PLACE:
        return packed.values
    dense = packed.values.new_zeros(packed.groups, packed.pattern.rows, columns)
    if packed.pattern.shared:
        dense[:, :, packed.columns.long()] = packed.values.transpose(1, 2)
    else:
        lengths = packed.pointers.diff().long()
        group = torch.repeat_interleave(torch.arange(packed.groups), lengths)
        dense[group, :, packed.columns.long()] = packed.values
    matrix = dense.reshape(-1, columns)[:rows]
    if not packed.pattern.live_first:
        return matrix
    return torch.empty_like(matrix).index_copy_(0, packed.order[:rows].long(), matrix)


def list_lengths(
    matrix: Tensor, patterns: Sequence[RowBlocks] = PATTERNS, conv_groups: int = 1
) -> dict[RowBlocks, Tensor]:
    """For each pattern, how many columns each block of rows would keep, without packing."""
    lengths: dict[RowBlocks, Tensor] = {}
    used, merged = matrix != 0, 1
    for pattern in sorted(patterns, key=lambda pattern: (pattern.live_first, pattern.rows)):
        if pattern.live_first and merged:
            order = row_order(matrix, pattern, conv_groups)[: matrix.shape[0]].long()
            used, merged = matrix[order] != 0, 1
        if pattern.rows % merged:
            used, merged = matrix != 0, 1
        used, merged = _merged(used, pattern.rows // merged), pattern.rows
        if pattern == IN_PLACE:
            lengths[pattern] = torch.full((len(used),), matrix.shape[1])
        elif pattern.shared:
            lengths[pattern] = used.any(dim=0).count_nonzero().repeat(len(used))
        else:
            lengths[pattern] = used.count_nonzero(dim=1)
    return {pattern: lengths[pattern] for pattern in patterns}


def stored_elements(
    matrix: Tensor, patterns: Sequence[RowBlocks] = PATTERNS, conv_groups: int = 1
) -> dict[RowBlocks, int]:
    """How many elements `pack` would store by each pattern, without packing."""
    lengths = list_lengths(matrix, patterns, conv_groups)
    return {pattern: int(found.sum()) * pattern.rows for pattern, found in lengths.items()}
