"""Unstructured weights for one or two tokens: numbers on the CPU, machine code for two architectures."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsecomp.codegen.cuda.gap_rows import GapFamily, GapRows
from tests.codegen.cuda.assembly import (
    ARCHITECTURES,
    FEW,
    MANY,
    assembled,
    assert_multiplies,
    count,
    linear_case,
    name_of,
    needs_nvcc,
    resident_blocks,
)
from tests.codegen.cuda.test_bitmap_format import sparse

PRODUCTS = (
    st.tuples(st.integers(1, 40), st.integers(1, 500), st.integers(1, 3)),
    st.sampled_from([0.0, 0.02, 0.4, 1.0]),
    st.sampled_from([torch.float16, torch.bfloat16]),
    st.tuples(st.sampled_from([1, 4]), st.sampled_from([1, 4])),
)


def check(sizes: tuple[int, int, int], density: float, dtype: torch.dtype, schedule: tuple[int, int]) -> None:
    rows, columns, tokens = sizes
    matrix = sparse(rows, columns, density, dtype)
    kernel = GapRows(rows, columns, name_of(dtype), "", *schedule)
    assert_multiplies(kernel, matrix, torch.randn(tokens, columns).to(dtype))


@settings(max_examples=FEW, deadline=None)
@given(st.tuples(*PRODUCTS))
def test_products_are_those_of_the_dense_matrix(product: Any) -> None:
    check(*product)


@pytest.mark.slow
@settings(max_examples=MANY, deadline=None)
@given(st.tuples(*PRODUCTS))
def test_more_products_are_those_of_the_dense_matrix(product: Any) -> None:
    check(*product)


def test_the_epilogue_is_applied_once() -> None:
    matrix, x = sparse(50, 256, 0.3, torch.bfloat16), torch.randn(2, 256).bfloat16()
    steps = (torch.randn(50).bfloat16(), torch.randn(2, 50).bfloat16())
    assert_multiplies(GapRows(50, 256, "bfloat16", "bias gelu add"), matrix, x, "bias gelu add", steps)


@needs_nvcc
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_machine_code_loads_whole_vectors_and_does_not_spill(arch: str) -> None:
    kernel = GapRows(4096, 4096, "bfloat16", "")
    code = assembled(kernel, arch)
    assert count(code, "ld.global.nc.v4.u32") == kernel.ahead
    assert count(code, "fma.rn.f32") == 8 * kernel.ahead
    assert code.spilled == 0
    assert resident_blocks(code.registers, 32 * kernel.warps, kernel.shared_bytes) >= 8


@pytest.mark.parametrize(
    ("matrix", "tokens", "reason"),
    [
        (torch.zeros(8, 8), 1, "for float16 and bfloat16, not float32"),
        (torch.zeros(8, 8).half(), 3, "for at most 2 tokens, as each takes its time anew; here 3"),
        (
            torch.ones(8, 8).half(),
            1,
            "100% of the weight are not zero: with its gaps it would not take less to read than dense",
        ),
        (torch.zeros(8, 60000).half(), 1, "x does not fit into shared memory"),
    ],
)
def test_refusals_say_why(matrix: torch.Tensor, tokens: int, reason: str) -> None:
    assert GapFamily().refused(linear_case(matrix, tokens)) == reason
