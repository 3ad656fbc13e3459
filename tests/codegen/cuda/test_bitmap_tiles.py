"""Unstructured weights for few tokens: numbers on the CPU, machine code for two architectures, schedules."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsecomp.codegen.cuda.bitmap_tiles import BitmapFamily, BitmapTiles
from sparsecomp.codegen.cuda.kernel import Gpu
from tests.codegen.cuda.assembly import (
    ARCHITECTURES,
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
from tests.codegen.cuda.test_bitmap_format import sparse

LLM = BitmapTiles(4096, 4096, "bfloat16", "", pieces=112)
"""80 % of zeros."""


def kernel_for(matrix: torch.Tensor, epilogue: str = "", **schedule: Any) -> BitmapTiles:
    rows, columns = matrix.shape
    plain = BitmapTiles(rows, columns, name_of(matrix.dtype), epilogue, 0)
    kernel = replace(plain, **schedule)
    return replace(kernel, pieces=kernel.format.fullest(matrix))


PRODUCTS = (
    st.tuples(st.integers(1, 70), st.integers(1, 400), st.integers(1, 16)),
    st.sampled_from([0.0, 0.2, 0.5, 1.0]),
    st.sampled_from([torch.float16, torch.bfloat16]),
    st.fixed_dictionaries(
        {
            "chunks": st.sampled_from([1, 2, 4]),
            "tiles": st.sampled_from([1, 2]),
            "warps": st.sampled_from([1, 2, 4]),
            "depth": st.sampled_from([2, 3]),
            "splits": st.sampled_from([1, 3]),
            "token_tiles": st.sampled_from([1, 2]),
        }
    ),
)


def check(sizes: tuple[int, int, int], density: float, dtype: torch.dtype, schedule: dict[str, int]) -> None:
    rows, columns, tokens = sizes
    matrix = sparse(rows, columns, density, dtype)
    assert_multiplies(kernel_for(matrix, "", **schedule), matrix, torch.randn(tokens, columns).to(dtype))


@settings(max_examples=FEW, deadline=None)
@given(st.tuples(*PRODUCTS))
def test_products_are_those_of_the_dense_matrix(product: Any) -> None:
    check(*product)


@pytest.mark.slow
@settings(max_examples=MANY, deadline=None)
@given(st.tuples(*PRODUCTS))
def test_more_products_are_those_of_the_dense_matrix(product: Any) -> None:
    check(*product)


@pytest.mark.parametrize("splits", [1, 2])
def test_the_epilogue_is_applied_to_the_whole_sum(splits: int) -> None:
    matrix, x = sparse(50, 256, 0.3, torch.bfloat16), torch.randn(3, 256).bfloat16()
    steps = (torch.randn(50).bfloat16(), torch.randn(3, 50).bfloat16())
    kernel = kernel_for(matrix, "bias gelu add", warps=2, splits=splits)
    assert_multiplies(kernel, matrix, x, "bias gelu add", steps)


def test_a_kernel_takes_more_tokens_than_it_was_made_for() -> None:
    matrix = sparse(20, 128, 0.3, torch.float16)
    assert_multiplies(kernel_for(matrix, warps=2), matrix, torch.randn(19, 128).half())


def test_a_weight_is_not_packed_into_too_little_room() -> None:
    matrix = sparse(16, 64, 1.0, torch.float16)
    with pytest.raises(AssertionError, match="emptier records"):
        replace(kernel_for(matrix), pieces=20).pack(matrix)


@needs_nvcc
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_machine_code_has_tensor_cores_and_no_spills(arch: str) -> None:
    code = assembled(LLM, arch)
    assert f".target {arch}" in code.ptx
    assert count(code, "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32") == 4 * LLM.chunks
    assert count(code, "cp.async.cg.shared.global") > 0
    assert count(code, "prmt.b32") == 4 * 4 * LLM.chunks  # one for each register of the fragments
    assert count(code, "shf.r.wrap.b32") == 4 * 4 * LLM.chunks
    assert code.spilled == 0
    threads = 32 * LLM.warps
    assert resident_blocks(code.registers, threads, LLM.shared_bytes) >= 4
    assert code.registers <= 64


@needs_nvcc
@pytest.mark.slow
@pytest.mark.parametrize(("arch", "tokens"), [("sm_90", 8), ("sm_80", 16)])
def test_no_schedule_spills(arch: str, tokens: int) -> None:
    case = linear_case(sparse(1024, 4096, 0.4, torch.float16), tokens, epilogue="bias silu")
    kernels = BitmapFamily().kernels(case)
    assert all(assembled(kernel, arch).spilled == 0 for kernel in kernels[:: len(kernels) // 5])


def test_schedules_fit_the_device() -> None:
    case = linear_case(sparse(512, 2048, 1.0, torch.float16), 16)
    for gpu in (H200, Gpu("sm_80", 108, 166912), Gpu("sm_86", 84, 101376)):
        kernels = list(BitmapFamily().kernels(linear_case(case.matrix, 16, gpu)))
        assert kernels
        assert all(isinstance(k, BitmapTiles) and k.shared_bytes <= gpu.shared_bytes for k in kernels)
        assert len(set(kernels)) == len(kernels)


def test_few_rows_are_divided_so_that_all_multiprocessors_work() -> None:
    narrow = BitmapFamily().kernels(linear_case(sparse(256, 8192, 0.3, torch.float16), 1))
    tall = BitmapFamily().kernels(linear_case(sparse(4096, 256, 0.3, torch.float16), 1))
    assert isinstance(narrow[0], BitmapTiles)
    assert narrow[0].splits == 4
    assert all(isinstance(kernel, BitmapTiles) and kernel.splits == 1 for kernel in tall)


def test_a_full_weight_is_refused() -> None:
    case = linear_case(torch.ones(8, 8, dtype=torch.float16), 1)
    assert BitmapFamily().refused(case) == (
        "100% of the weight are not zero: with its bits it would not take less to read than dense"
    )


def test_the_first_schedules_differ_in_more_than_depth() -> None:
    first = BitmapFamily().kernels(linear_case(sparse(4096, 1024, 0.2, torch.bfloat16), 8))[:4]
    assert len({(k.tiles, k.warps) for k in first if isinstance(k, BitmapTiles)}) == 4


@pytest.mark.parametrize(
    ("dtype", "tokens", "reason"),
    [
        (torch.float32, 1, "for float16 and bfloat16, not float32"),
        (torch.float16, 17, "for at most 16 tokens, as reading the weights decides; here 17"),
    ],
)
def test_refusals_say_why(dtype: torch.dtype, tokens: int, reason: str) -> None:
    assert BitmapFamily().refused(linear_case(torch.zeros(8, 8, dtype=dtype), tokens)) == reason


def test_few_tokens_of_half_precision_are_taken() -> None:
    assert BitmapFamily().refused(linear_case(torch.zeros(8, 8, dtype=torch.float16), 16)) is None
