"""Values and gaps: exact inverse, long gaps, bytes."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsecomp.codegen.cuda.gap_format import GapFormat
from tests.codegen.cuda.test_bitmap_format import sparse


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 20),
    st.integers(1, 400),
    st.sampled_from([0.0, 0.01, 0.2, 1.0]),
    st.sampled_from([torch.float16, torch.bfloat16]),
)
def test_unpacking_gives_back_every_bit(rows: int, columns: int, density: float, dtype: torch.dtype) -> None:
    matrix = sparse(rows, columns, density, dtype)
    form = GapFormat(rows, columns)
    found = form.unpack(*form.pack(matrix))
    assert torch.equal(found.view(torch.int16), matrix.view(torch.int16))


def test_a_long_gap_is_filled_with_zeros() -> None:
    matrix = torch.zeros(1, 100, dtype=torch.float16)
    matrix[0, 3], matrix[0, 40] = 1, 2
    starts, first, gaps, values = GapFormat(1, 100).pack(matrix)
    assert starts.tolist() == [0, 1]
    assert first[:4].tolist() == [3, 18, 33, 40]
    assert values.reshape(32, 8)[:4, 0].tolist() == [1, 0, 0, 2]
    assert not gaps.any()


def test_bytes_are_two_and_a_half_for_each_value_and_little_more() -> None:
    matrix = sparse(256, 4096, 0.2, torch.bfloat16)
    operands = GapFormat(256, 4096).pack(matrix)
    assert sum(part.nbytes for part in operands) < 1.13 * 2.5 * int((matrix != 0).sum())
