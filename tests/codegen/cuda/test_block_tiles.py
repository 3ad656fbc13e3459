"""Blocks for many tokens: numbers on the CPU, machine code for two architectures, schedules."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsecomp.codegen.cuda.block_tiles import BlockFamily, BlockTiles
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
from tests.codegen.cuda.test_block_format import in_blocks

LLM = BlockTiles(4096, 4096, "bfloat16", "", 64, tokens=128, warps=(2, 2), stages=3)


PRODUCTS = (
    st.tuples(st.integers(1, 150), st.integers(1, 20), st.integers(1, 200)),
    st.sampled_from([0.0, 0.3, 1.0]),
    st.sampled_from([torch.float16, torch.bfloat16]),
    st.fixed_dictionaries(
        {
            "size": st.sampled_from([32, 64]),
            "tokens": st.sampled_from([64, 128]),
            "warps": st.sampled_from([(2, 2), (4, 1), (2, 1), (4, 2)]),
            "stages": st.sampled_from([2, 3]),
        }
    ),
)


def check(sizes: tuple[int, int, int], density: float, dtype: torch.dtype, schedule: dict[str, Any]) -> None:
    rows, eighths, tokens = sizes
    matrix = in_blocks(rows, 8 * eighths, schedule["size"], density, dtype)
    plain = BlockTiles(rows, 8 * eighths, name_of(dtype), "", schedule["size"])
    kernel = replace(plain, **schedule)
    assert_multiplies(kernel, matrix, torch.randn(tokens, 8 * eighths).to(dtype))


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
    matrix, x = in_blocks(72, 128, 32, 0.5, torch.bfloat16), torch.randn(70, 128).bfloat16()
    steps = (torch.randn(72).bfloat16(), torch.randn(70, 72).bfloat16())
    kernel = BlockTiles(72, 128, "bfloat16", "bias relu add", 32, tokens=64, warps=(2, 1))
    assert_multiplies(kernel, matrix, x, "bias relu add", steps)


@needs_nvcc
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_machine_code_has_tensor_cores_and_no_spills(arch: str) -> None:
    code = assembled(LLM, arch)
    assert f".target {arch}" in code.ptx
    fragments = (128 // 2 // 16) * (64 // 2 // 8) * (64 // 16)
    assert count(code, "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32") == fragments
    assert count(code, "ldmatrix.sync.aligned.m8n8.x4.shared.b16") == (4 + 2) * 4
    assert count(code, "cp.async.cg.shared.global") > 0
    assert count(code, "st.global.v4.u32") > 0
    assert code.spilled == 0
    assert resident_blocks(code.registers, LLM.threads, LLM.shared_bytes) >= 3


@needs_nvcc
@pytest.mark.slow
@pytest.mark.parametrize("size", [32, 64])
def test_no_schedule_spills(size: int) -> None:
    case = linear_case(in_blocks(1024, 1024, size, 0.2, torch.float16), 4096, epilogue="bias")
    kernels = BlockFamily().kernels(case)
    for kernel in kernels[:: len(kernels) // 4]:
        assert isinstance(kernel, BlockTiles)
        code = assembled(kernel, "sm_90")
        assert code.spilled == 0, kernel
        assert resident_blocks(code.registers, kernel.threads, kernel.shared_bytes) >= 1


@pytest.mark.parametrize("size", [32, 64])
def test_the_blocks_of_the_weight_come_first_among_schedules(size: int) -> None:
    case = linear_case(in_blocks(1024, 1024, size, 0.2, torch.float16), 4096)
    kernels = BlockFamily().kernels(case)
    assert isinstance(kernels[0], BlockTiles)
    assert kernels[0].size == size
    assert len(set(kernels)) == len(kernels)
    assert all(isinstance(k, BlockTiles) and k.shared_bytes <= H200.shared_bytes for k in kernels)


@pytest.mark.parametrize(
    ("matrix", "tokens", "reason"),
    [
        (torch.zeros(64, 64), 4096, "for float16 and bfloat16, not float32"),
        (torch.zeros(64, 64).half(), 16, "for at least 64 tokens; here 16"),
        (torch.zeros(64, 60).half(), 64, "rows of 60 elements do not begin at multiples of 16 bytes"),
        (
            torch.ones(64, 64).half(),
            64,
            "100% of blocks 64x64, 100% of blocks 32x32 hold something, and more than 60% cannot be faster than dense",
        ),
    ],
)
def test_refusals_say_why(matrix: torch.Tensor, tokens: int, reason: str) -> None:
    assert BlockFamily().refused(linear_case(matrix, tokens)) == reason


def test_a_weight_of_few_blocks_is_taken() -> None:
    matrix = in_blocks(256, 256, 64, 0.2, torch.bfloat16)
    assert BlockFamily().refused(linear_case(matrix, 64)) is None
