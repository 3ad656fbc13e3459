"""Bits and values: exact inverse, and the bytes that the format promises."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsecomp.codegen.cuda.bitmap_format import BitmapFormat

DTYPES = (torch.float16, torch.bfloat16)


def sparse(rows: int, columns: int, density: float, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    matrix = torch.randn(rows, columns, generator=random)
    return (matrix * (torch.rand(rows, columns, generator=random) < density)).to(dtype) + 0


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 40),
    st.integers(1, 300),
    st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    st.sampled_from(DTYPES),
    st.sampled_from([1, 2, 4]),
)
def test_unpacking_gives_back_every_bit(
    rows: int, columns: int, density: float, dtype: torch.dtype, chunks: int
) -> None:
    matrix = sparse(rows, columns, density, dtype)
    form = BitmapFormat(rows, columns, chunks)
    found = form.unpack(*form.pack(matrix), dtype)
    assert torch.equal(found.view(torch.int16), matrix.view(torch.int16))


@pytest.mark.parametrize("dtype", DTYPES)
def test_infinities_nan_and_subnormals_are_kept(dtype: torch.dtype) -> None:
    matrix = torch.tensor(
        [[float("inf"), float("nan"), -float("inf"), 0, torch.finfo(dtype).smallest_normal / 4]]
    )
    matrix = matrix.to(dtype)
    form = BitmapFormat(1, 5, 1)
    found = form.unpack(*form.pack(matrix), dtype)
    assert torch.equal(found.view(torch.int16), matrix.view(torch.int16))


def test_a_lane_owns_sixteen_columns_of_two_rows() -> None:
    matrix = torch.zeros(16, 64, dtype=torch.float16)
    matrix[8 + 3, 16 * 2 + 4 * 1 + 3] = 7  # lane 4 * 3 + 2, fragment 1, lower row, the last of four
    starts, stream = BitmapFormat(16, 64, 1).pack(matrix)
    assert starts.tolist() == [0, 9]
    assert stream[:32].nonzero().flatten().tolist() == [14]
    assert stream[14] == 1 << (8 * 1 + 4 + 3)
    assert stream[32:].view(torch.float16).tolist() == [7, 0, 0, 0, 0, 0, 0, 0]


def test_values_lie_in_the_order_of_fragments() -> None:
    matrix = torch.zeros(16, 64, dtype=torch.float16)
    matrix[0, 4], matrix[15, 0], matrix[0, 0], matrix[8, 0] = 4, 3, 1, 2
    _, stream = BitmapFormat(16, 64, 1).pack(matrix)
    assert stream[32:].view(torch.float16).tolist()[:4] == [1, 2, 3, 4]


@pytest.mark.parametrize(("density", "share"), [(0.4, 0.47), (0.2, 0.27), (1.0, 1.08)])
def test_bytes_are_those_of_values_and_bits(density: float, share: float) -> None:
    matrix = sparse(256, 1024, density, torch.float16)
    operands = BitmapFormat(256, 1024, 2).pack(matrix)
    assert sum(part.nbytes for part in operands) < share * matrix.nbytes
