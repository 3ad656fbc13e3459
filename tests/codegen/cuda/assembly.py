"""CUDA kernels without a GPU: their numbers on the CPU, their machine code by nvcc."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from sparsecomp.codegen.cuda.assemble import Assembled, assemble, has_compiler
from sparsecomp.codegen.cuda.kernel import Case, CudaKernel, Gpu
from sparsecomp.codegen.cuda.pipeline import compile_for_cpu, cuda_source
from sparsecomp.epilogue import apply
from sparsecomp.layer import Layer

H200 = Gpu(arch="sm_90", multiprocessors=132, shared_bytes=232448, name="NVIDIA H200")
SHARED_IN_ALL = 233472
"""Bytes of shared memory of a multiprocessor of compute capability 9.0, 1024 of which each block takes for itself."""
ARCHITECTURES = ["sm_90", pytest.param("sm_80", marks=pytest.mark.slow)]
"""The fast tests look at one: nvcc takes a second and more for each kernel."""
FEW, MANY = 5, 20
"""Examples of a fast and of a slow test: each is a kernel of its own, compiled anew."""
needs_nvcc = pytest.mark.skipif(not has_compiler(), reason="nvcc is not installed")
GUARD = 64
"""Elements on either side of a tensor that a kernel must not read (NaN) or write."""


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def linear_case(matrix: Tensor, tokens: int, gpu: Gpu = H200, epilogue: str = "") -> Case:
    """A linear layer on so many tokens."""
    layer = Layer("fc", "linear", "weight", tuple(matrix.shape), (tokens, matrix.shape[1]))
    return Case(layer, matrix, gpu, epilogue)


def surrounded(shape: Sequence[int], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A tensor of NaN, and all of what it lies in."""
    size = int(torch.tensor(shape).prod())
    around = torch.full((size + 2 * GUARD,), float("nan"), dtype=dtype)
    return around[GUARD : GUARD + size].view(*shape), around


def run(
    kernel: CudaKernel, x: Tensor, operands: Sequence[Tensor], of_steps: Sequence[Tensor], rows: int
) -> Tensor:
    """y of the kernel on the CPU, which wrote all of it and nothing else, and read x alone."""
    (own, _), (y, around) = surrounded(x.shape, x.dtype), surrounded((len(x), rows), x.dtype)
    own.copy_(x)
    lent = kernel.workspace(len(x))
    workspace = [torch.full((lent,), float("nan"))] if lent else []
    compile_for_cpu(kernel)(own, *operands, *of_steps, y, *workspace)
    assert around[:GUARD].isnan().all()
    assert around[GUARD + y.numel() :].isnan().all()
    return y


def assert_multiplies(
    kernel: Any, matrix: Tensor, x: Tensor, epilogue: str = "", of_steps: Sequence[Tensor] = ()
) -> None:
    """The kernel's y is the dense one: sums in float32, rounded once."""
    operands = kernel.pack(matrix)
    y = run(kernel, x, operands, of_steps, len(matrix)).double()
    wide = x.double() @ matrix.double().T
    want = apply(wide, epilogue, [step.double() for step in of_steps], channel=-1)
    size = x.double().abs() @ matrix.double().abs().T
    rounding = 2.0**-8 if x.dtype == torch.bfloat16 else 2.0**-11
    allowed = rounding * want.abs() + 1e-5 * (size + want.abs()) + 1e-7
    assert ((y - want).abs() <= allowed).all(), (y - want).abs().max()


@cache
def assembled(kernel: Any, arch: str) -> Assembled:
    """A kernel's machine code."""
    return assemble(cuda_source(kernel, arch), arch)


def count(code: Assembled, instruction: str) -> int:
    """How often the PTX has an instruction whose name starts so."""
    return len(re.findall(rf"^\s+{re.escape(instruction)}", code.ptx, re.MULTILINE))


def resident_blocks(registers: int, threads: int, shared_bytes: int) -> int:
    """How many blocks a multiprocessor of compute capability 9.0 holds at once (CUDA C++ programming guide, table of
    technical specifications): 64 warps, 65536 registers given to warps by 256, shared memory."""
    warps = threads // 32
    of_warp = -(-registers * 32 // 256) * 256
    return min(32, 64 // warps, 65536 // (of_warp * warps), SHARED_IN_ALL // (shared_bytes + 1024))
