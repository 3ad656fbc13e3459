"""Vectors for many tokens: numbers on the CPU, machine code for two architectures, schedules."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsecomp.codegen.cuda.vector_tiles import VectorFamily, VectorTiles
from tests.codegen.cuda.assembly import (
    FEW,
    H200,
    MANY,
    assembled,
    assert_multiplies,
    count,
    linear_case,
    name_of,
    needs_nvcc,
    resident_blocks,
)
from tests.codegen.cuda.test_vector_format import in_vectors

PRODUCTS = (
    st.tuples(st.integers(1, 70), st.integers(1, 100), st.integers(1, 200)),
    st.sampled_from([0.0, 0.3, 1.0]),
    st.sampled_from([torch.float16, torch.bfloat16]),
    st.fixed_dictionaries(
        {
            "height": st.sampled_from([8, 16, 32]),
            "tokens": st.sampled_from([64, 128]),
            "warps": st.sampled_from([(2, 1), (4, 1)]),
            "stages": st.sampled_from([2, 3]),
        }
    ),
)


def check(sizes: tuple[int, int, int], density: float, dtype: torch.dtype, schedule: dict[str, Any]) -> None:
    rows, columns, tokens = sizes
    matrix = in_vectors(rows, columns, schedule["height"], density, dtype)
    kernel = replace(VectorTiles(rows, columns, name_of(dtype), "", schedule["height"]), **schedule)
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
    matrix, x = in_vectors(40, 96, 16, 0.3, torch.bfloat16), torch.randn(70, 96).bfloat16()
    steps = (torch.randn(40).bfloat16(), torch.randn(70, 40).bfloat16())
    kernel = VectorTiles(40, 96, "bfloat16", "bias silu multiply", 16, tokens=64)
    assert_multiplies(kernel, matrix, x, "bias silu multiply", steps)


@needs_nvcc
@pytest.mark.parametrize(
    ("arch", "height"), [("sm_90", 8), pytest.param("sm_80", 32, marks=pytest.mark.slow)]
)
def test_machine_code_gathers_transposes_and_does_not_spill(arch: str, height: int) -> None:
    kernel = VectorTiles(4096, 4096, "float16", "", height)
    code = assembled(kernel, arch)
    assert f".target {arch}" in code.ptx
    assert count(code, "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32") == 2 * (height // 8) * 2
    assert count(code, "ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16") == 2 * 2
    assert count(code, "cp.async.cg.shared.global") > 0
    assert code.spilled == 0
    assert resident_blocks(code.registers, kernel.threads, kernel.shared_bytes) >= 4


@pytest.mark.parametrize("height", [16, 32])
def test_the_height_of_the_weight_comes_first_among_schedules(height: int) -> None:
    case = linear_case(in_vectors(512, 1024, height, 0.05, torch.float16), 4096)
    kernels = VectorFamily().kernels(case)
    assert isinstance(kernels[0], VectorTiles)
    assert kernels[0].height == height
    assert all(isinstance(k, VectorTiles) and k.shared_bytes <= H200.shared_bytes for k in kernels)


def test_weights_that_keep_too_much_are_refused_with_the_shares() -> None:
    reason = VectorFamily().refused(linear_case(torch.ones(64, 64).half(), 64))
    assert reason == (
        "100% of vectors 32x1, 100% of vectors 16x1, 100% of vectors 8x1 hold something, "
        "with which reading x takes longer than a dense product"
    )


@pytest.mark.parametrize(
    ("dtype", "tokens", "reason"),
    [
        (torch.float32, 64, "for float16 and bfloat16, not float32"),
        (torch.bfloat16, 63, "for at least 64 tokens; here 63"),
    ],
)
def test_refusals_say_why(dtype: torch.dtype, tokens: int, reason: str) -> None:
    assert VectorFamily().refused(linear_case(torch.zeros(8, 8, dtype=dtype), tokens)) == reason
