"""Packing loses nothing, whatever the pattern, shape and density."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparsecomp.pattern import PATTERNS, RowBlocks, pack, stored_elements, unpack

patterns = st.sampled_from(PATTERNS)


@st.composite
def matrices(draw: st.DrawFn) -> Tensor:
    """Rows and columns down to 1; whole rows and columns may be zero."""
    rows, columns = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    density, live = draw(st.floats(0, 1)), draw(st.floats(0, 1))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))

    def random(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator)

    kept = (random(rows, columns) < density) & (random(rows, 1) < live) & (random(columns) < live)
    return torch.where(kept, random(rows, columns) + 0.5, 0.0)


@settings(deadline=None)
@given(matrices(), patterns)
def test_unpack_inverts_pack(matrix: Tensor, pattern: RowBlocks) -> None:
    assert torch.equal(unpack(pack(matrix, pattern)), matrix)


@settings(deadline=None)
@given(matrices(), patterns)
def test_stored_elements_agrees_with_pack(matrix: Tensor, pattern: RowBlocks) -> None:
    assert stored_elements(matrix)[pattern] == pack(matrix, pattern).stored


@settings(deadline=None)
@given(matrices(), patterns)
def test_columns_rise_and_none_is_stored_in_vain(matrix: Tensor, pattern: RowBlocks) -> None:
    packed = pack(matrix, pattern)
    pointers = packed.pointers.tolist()
    assert pointers == sorted(pointers)
    assert pointers[0] == 0
    assert pointers[-1] == len(packed.columns)
    for begin, end in itertools.pairwise(pointers):
        columns = packed.columns[begin:end].tolist()
        assert columns == sorted(set(columns))
    entries = packed.values.movedim(0, 1).flatten(1) if pattern.shared else packed.values
    assert (entries != 0).any(dim=1).all()


def test_a_block_keeps_every_column_that_one_of_its_rows_uses() -> None:
    matrix = torch.tensor([[1.0, 0, 0, 2], [0, 0, 3, 4], [0, 5, 0, 0]])
    packed = pack(matrix, RowBlocks(2))
    assert packed.columns.tolist() == [0, 2, 3, 1]
    assert packed.pointers.tolist() == [0, 3, 4]
    assert packed.values.tolist() == [[1, 0], [0, 3], [2, 4], [5, 0]]


def test_a_shared_list_keeps_every_column_that_a_row_uses() -> None:
    matrix = torch.tensor([[1.0, 0, 0, 2], [0, 0, 0, 4], [0, 0, 5, 0]])
    packed = pack(matrix, RowBlocks(4, shared=True))
    assert packed.columns.tolist() == [0, 2, 3]
    assert packed.values.tolist() == [[[1, 0, 0, 0], [0, 0, 5, 0], [2, 4, 0, 0]]]


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_unstructured_zeros_of_either_sign_are_not_stored(pattern: RowBlocks) -> None:
    assert pack(torch.tensor([[0.0, -0.0]]), pattern).stored == 0


def test_patterns_print() -> None:
    assert [str(pattern) for pattern in PATTERNS] == [
        "unstructured",
        "blocks 2x1",
        "blocks 4x1",
        "blocks 8x1",
        "dense rows x4",
        "dense rows x8",
        "blocks 4x1, live rows first",
        "blocks 8x1, live rows first",
    ]
