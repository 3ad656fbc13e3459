"""Blocks: exact inverse, order of the rows, bytes."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsecomp.codegen.cuda.block_format import BlockFormat


def in_blocks(
    rows: int, columns: int, size: int, density: float, dtype: torch.dtype, seed: int = 0
) -> torch.Tensor:
    """Whole blocks of zeros."""
    random = torch.Generator().manual_seed(seed)
    form = BlockFormat(rows, columns, size)
    kept = torch.rand(form.block_rows, form.block_columns, generator=random) < density
    mask = kept.repeat_interleave(size, 0).repeat_interleave(size, 1)[:rows, :columns]
    return (torch.randn(rows, columns, generator=random) * mask).to(dtype) + 0


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 150),
    st.integers(1, 150),
    st.sampled_from([32, 64]),
    st.sampled_from([0.0, 0.3, 1.0]),
    st.sampled_from([torch.float16, torch.bfloat16]),
)
def test_unpacking_gives_back_every_bit(
    rows: int, columns: int, size: int, density: float, dtype: torch.dtype
) -> None:
    matrix = in_blocks(rows, columns, size, density, dtype)
    form = BlockFormat(rows, columns, size)
    _, *parts = form.pack(matrix)
    assert torch.equal(form.unpack(*parts).view(torch.int16), matrix.view(torch.int16))


def test_a_negative_zero_in_a_kept_block_stays() -> None:
    matrix = torch.zeros(32, 32, dtype=torch.float16)
    matrix[0, 0], matrix[1, 1] = 1, -0.0
    form = BlockFormat(32, 32, 32)
    _, *parts = form.pack(matrix)
    assert torch.equal(form.unpack(*parts).view(torch.int16), matrix.view(torch.int16))


def test_rows_with_most_blocks_come_first() -> None:
    matrix = torch.zeros(96, 64, dtype=torch.float16)
    matrix[32, 0] = matrix[64, 0] = matrix[64, 32] = 1
    order, starts, columns, values = BlockFormat(96, 64, 32).pack(matrix)
    assert order.tolist() == [2, 1, 0]
    assert starts.tolist() == [0, 0, 1, 3]
    assert columns.tolist() == [0, 0, 1]
    assert values.numel() == 3 * 32 * 32
