"""A bitmap holds exactly the weights it was made of, in little more than the bytes of what is kept."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparsecomp.codegen.bitmap import BLOCK, Bitmap, make_bitmap, read_bitmap
from sparsecomp.codegen.shares import SHARES
from sparsecomp.pattern import RowBlocks, pack

UNSTRUCTURED, DENSE = RowBlocks(1), RowBlocks(4, shared=True)


@st.composite
def matrices(draw: st.DrawFn) -> Tensor:
    rows, columns = draw(st.integers(1, 70)), draw(st.integers(1, 70))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    density = draw(st.sampled_from([0.0, 0.02, 0.3, 1.0]))
    kept = torch.rand(rows, columns, generator=generator) < density
    return torch.randn(rows, columns, generator=generator) * kept


@settings(max_examples=200, deadline=None)
@given(matrices(), st.sampled_from([UNSTRUCTURED, DENSE, RowBlocks(8, shared=True)]))
def test_reading_is_the_inverse_of_making(matrix: Tensor, pattern: RowBlocks) -> None:
    bitmap = make_bitmap(pack(matrix, pattern))
    assert bitmap.dense is pattern.shared
    assert torch.equal(read_bitmap(bitmap), matrix)


def test_other_blocks_have_no_bitmap() -> None:
    with pytest.raises(AssertionError):
        make_bitmap(pack(torch.ones(4, 4), RowBlocks(2)))


def test_the_order_of_the_values() -> None:
    """Group, block, row, column; the bits of a row are 16 of the group's 64."""
    matrix = torch.zeros(17, 32)
    matrix[0, 3], matrix[3, 15], matrix[0, 16], matrix[4, 0], matrix[16, 31] = 1, 2, 3, 4, 5
    bitmap = make_bitmap(pack(matrix, UNSTRUCTURED))
    assert bitmap.values[:-BLOCK].tolist() == [1, 2, 3, 4, 5]
    assert bitmap.index.tolist() == [0, 4]
    bits = {0: 1 << 3 | 1 << 63, 1: 1, 2: 1, 9: 1 << 15}
    flat = bitmap.masks.flatten().tolist()
    assert {i: mask % 2**64 for i, mask in enumerate(flat) if mask} == bits


@pytest.mark.parametrize(("sparsity", "most"), [(0.5, 0.54), (0.7, 0.34), (0.9, 0.14)])
def test_bytes(sparsity: float, most: float) -> None:
    matrix = torch.randn(256, 768)
    kept = torch.rand(matrix.shape).argsort(dim=1) >= round(sparsity * 768)
    assert make_bitmap(pack(matrix * kept, UNSTRUCTURED)).nbytes < most * matrix.numel() * 4


def shares(bitmap: Bitmap) -> list[int]:
    balance = bitmap.balance.tolist()
    assert len(balance) == SHARES + 1
    assert balance == sorted(balance)
    return balance


def test_shares_are_equal_work() -> None:
    """Memory delivers a full row in 3 times the time that expanding an empty one takes."""
    matrix = torch.zeros(64 * 16, 64)
    matrix[: 32 * 16] = 1
    balance = shares(make_bitmap(pack(matrix, UNSTRUCTURED)))
    assert balance[0] == 0
    assert balance[-1] == 64
    assert 20 <= balance[SHARES // 2] <= 23
    assert shares(make_bitmap(pack(matrix, DENSE))) == list(range(65))
    assert set(shares(make_bitmap(pack(matrix[:5], UNSTRUCTURED)))) == {0, 1}
