"""Vectors: exact inverse, order of the groups, filling up."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsecomp.codegen.cuda.vector_format import WIDTH, VectorFormat


def in_vectors(rows: int, columns: int, height: int, density: float, dtype: torch.dtype) -> torch.Tensor:
    """Whole vectors of zeros."""
    random = torch.Generator().manual_seed(0)
    kept = torch.rand(-(-rows // height), columns, generator=random) < density
    mask = kept.repeat_interleave(height, 0)[:rows]
    return (torch.randn(rows, columns, generator=random) * mask).to(dtype) + 0


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 70),
    st.integers(1, 150),
    st.sampled_from([8, 16, 32]),
    st.sampled_from([0.0, 0.3, 1.0]),
    st.sampled_from([torch.float16, torch.bfloat16]),
)
def test_unpacking_gives_back_every_bit(
    rows: int, columns: int, height: int, density: float, dtype: torch.dtype
) -> None:
    matrix = in_vectors(rows, columns, height, density, dtype)
    form = VectorFormat(rows, columns, height)
    _, *parts = form.pack(matrix)
    assert torch.equal(form.unpack(*parts).view(torch.int16), matrix.view(torch.int16))


def test_groups_with_most_columns_come_first_and_are_filled_up() -> None:
    matrix = torch.zeros(24, 40, dtype=torch.float16)
    matrix[8, 7], matrix[17, :] = 2, 3
    order, starts, columns, values = VectorFormat(24, 40, 8).pack(matrix)
    assert order.tolist() == [2, 1, 0]
    assert starts.tolist() == [0, 0, 1, 3]
    assert columns.tolist() == [7, *[0] * 31, *range(40), *[0] * 24]
    assert values.numel() == 3 * 8 * WIDTH
    assert values[:WIDTH].tolist() == [2, *[0] * 31]
