"""Weights that are statistically equal have one signature; what changes a kernel's time changes it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sparsecomp.codegen.call import Call
from sparsecomp.codegen.signature import packed_signature
from sparsecomp.layer import Layer
from sparsecomp.pattern import PATTERNS, RowBlocks, pack


def random(density: float, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(64, 256, generator=generator) * (torch.rand(64, 256, generator=generator) < density)


def call(matrix: Tensor) -> Call:
    rows, columns = matrix.shape
    return Call.of(Layer("a", "linear", "a.weight", (rows, columns), (8, columns)), matrix)


def test_other_draws_of_the_same_kind_share_it() -> None:
    first, second = call(random(0.3, 0)), call(random(0.3, 1))
    assert first.signature(RowBlocks(1)) == second.signature(RowBlocks(1)) == "density 0.30, rows even"


def test_other_densities_do_not() -> None:
    assert call(random(0.3)).signature(RowBlocks(1)) != call(random(0.35)).signature(RowBlocks(1))


@pytest.mark.parametrize(("full", "said"), [(64, "even"), (48, "uneven"), (24, "skewed"), (6, "extreme")])
def test_nor_do_rows_of_other_lengths(full: int, said: str) -> None:
    matrix = torch.zeros(64, 256)
    matrix[:full] = 1.0
    assert call(matrix).signature(RowBlocks(1)).endswith(f"rows {said}")


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_it_is_the_same_packed(pattern: RowBlocks) -> None:
    matrix = random(0.1)
    matrix[:, 200:] = 0.0
    assert packed_signature(pack(matrix, pattern)) == call(matrix).signature(pattern)


def test_an_empty_weight_has_one() -> None:
    assert call(torch.zeros(64, 256)).signature(RowBlocks(1)) == "density 0.00, rows even"
