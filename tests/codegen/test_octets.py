"""Octets hold exactly the weights they were made of, in 5.5 bytes a value."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparsecomp.codegen.octets import OCTET, REACH, WORDS, Octets, make_octets, read_octets, read_places
from sparsecomp.codegen.shares import SHARES
from sparsecomp.pattern import RowBlocks, pack

UNSTRUCTURED = RowBlocks(1)


def octets_of(matrix: Tensor) -> Octets:
    return make_octets(pack(matrix, UNSTRUCTURED))


@st.composite
def matrices(draw: st.DrawFn) -> Tensor:
    rows, columns = draw(st.integers(1, 70)), draw(st.one_of(st.integers(1, 70), st.sampled_from([256, 700])))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    density = draw(st.sampled_from([0.0, 0.005, 0.02, 0.3, 1.0]))
    kept = torch.rand(rows, columns, generator=generator) < density
    return torch.randn(rows, columns, generator=generator) * kept


@settings(max_examples=200, deadline=None)
@given(matrices())
def test_reading_is_the_inverse_of_making(matrix: Tensor) -> None:
    assert torch.equal(read_octets(octets_of(matrix)), matrix)


@settings(max_examples=100, deadline=None)
@given(matrices())
def test_nothing_is_read_beside_the_matrix(matrix: Tensor) -> None:
    """Nor by what fills an octet up: a kernel reads x there."""
    octets = octets_of(matrix)
    row, columns = read_places(octets.index, octets.data)
    assert bool((row < matrix.shape[0]).all())
    assert bool((columns >= 0).all() and (columns < matrix.shape[1]).all())


def test_other_patterns_have_no_octets() -> None:
    for pattern in (RowBlocks(2), RowBlocks(4, shared=True)):
        with pytest.raises(AssertionError):
            make_octets(pack(torch.ones(4, 4), pattern))


def test_an_octet_ends_with_its_row_and_where_a_byte_does_not_reach() -> None:
    matrix = torch.zeros(2, 700)
    matrix[0, 1], matrix[0, REACH], matrix[0, REACH + 1] = 1, 2, 3
    matrix[1, 699] = 4
    octets = octets_of(matrix)
    assert octets.index[:3].tolist() == [0, 2, 3]
    assert set(octets.index[3:].tolist()) == {3}
    words = octets.data.reshape(-1, WORDS)
    assert words[:, :OCTET].tolist() == [[1, 2, *[0] * 6], [3, *[0] * 7], [4, *[0] * 7]]
    assert words[:, -1].contiguous().view(torch.int32).tolist() == [1, REACH + 1, 699]
    away = words[:, OCTET:-1].contiguous().view(torch.uint8)
    assert away.tolist() == [[0, REACH - 1, *[0] * 6], [0] * 8, [0] * 8]


@pytest.mark.parametrize(("sparsity", "most"), [(0.5, 0.72), (0.7, 0.44), (0.9, 0.16)])
def test_bytes(sparsity: float, most: float) -> None:
    matrix = torch.randn(256, 768)
    kept = torch.rand(matrix.shape).argsort(dim=1) >= round(sparsity * 768)
    octets = octets_of(matrix * kept)
    nbytes = sum(part.numel() * part.element_size() for part in (octets.index, octets.data, octets.balance))
    assert nbytes < most * matrix.numel() * 4


def test_shares_are_equal_work() -> None:
    """A full row of 64 columns has 8 octets, and every row the work of two more."""
    matrix = torch.zeros(64 * 16, 64)
    matrix[: 32 * 16] = 1
    balance = octets_of(matrix).balance.tolist()
    assert len(balance) == SHARES + 1
    assert balance == sorted(balance)
    assert (balance[0], balance[-1]) == (0, 64)
    assert 18 <= balance[SHARES // 2] <= 20
