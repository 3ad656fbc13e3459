"""Kernels that take activations as PyTorch holds them, built alone and run in guarded memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
import tvm
from torch import Tensor
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from sparsecomp.codegen.build import build
from sparsecomp.codegen.machine import Machine, machine_of
from sparsecomp.epilogue import STEPS, apply, split_steps
from sparsecomp.target import Target

MACHINE = machine_of(Target())
GUARD = 16
"""Floats before and behind every tensor that a kernel must not read (NaN) or write."""


def operand_kinds(epilogue: str) -> list[str]:
    return [STEPS[step] for step in split_steps(epilogue) if STEPS[step] != "none"]


@cache
def compiled(make: Callable[..., Any], *specs: Any, machine: Machine = MACHINE) -> Any:
    """A module of one public function for each kernel: f0, f1, ..."""
    kernels = {f"kernel{i}": make(f"kernel{i}", spec, machine) for i, spec in enumerate(specs)}
    module = tvm.IRModule(kernels)
    for i in range(len(specs)):
        callee = module.get_global_var(f"kernel{i}")
        *pointers, part, parts, tokens = kernels[f"kernel{i}"].params
        with IRBuilder() as builder, T.prim_func(s_tir=True):
            T.func_name(f"f{i}")
            addresses = [T.arg(pointer.name, T.int64()) for pointer in pointers]
            numbers = [T.arg(number.name, T.int32()) for number in (part, parts, tokens)]
            T.evaluate(T.Call(callee, [*addresses, *numbers], ret_ty="void"))
        module.update_func(tvm.ir.GlobalVar(f"f{i}"), builder.get())
    return build(module, machine.tvm_target)


def guarded(tensor: Tensor) -> Tensor:
    """A copy, unaligned, with NaN on both sides of it in memory."""
    padded = torch.full((tensor.numel() + 2 * GUARD + 1,), torch.nan)
    view = padded[GUARD + 1 : len(padded) - GUARD].view(tensor.shape)
    view.copy_(tensor)
    return view


def untouched_around(view: Tensor) -> bool:
    whole = torch.empty(0).set_(view.untyped_storage())
    return bool(whole.isnan()[: GUARD + 1].all() and whole.isnan()[len(whole) - GUARD :].all())


def run(
    function: Callable[..., None],
    weights: Sequence[Tensor],
    rows: int,
    x: Tensor,
    operands: Sequence[Tensor] = (),
    parts: int = 1,
) -> Tensor:
    """y, in memory that held NaN; all parts, the last one first."""
    held = [guarded(tensor) for tensor in (x, *operands)]
    y = guarded(torch.full((len(x), rows), torch.nan))
    addresses = [tensor.data_ptr() for tensor in (*weights, held[0], y, *held[1:])]
    for part in reversed(range(parts)):
        function(*addresses, part, parts, len(x))
    assert untouched_around(y)
    return y


Product = Callable[[Tensor, Sequence[Tensor], int], Tensor]
"""x, operands, number of parts -> y."""


def sparse_matrix(rows: int, columns: int, density: float, seed: int) -> Tensor:
    """Random, scaled so that sums stay near 1."""
    torch.manual_seed(seed)
    kept = torch.rand(rows, columns) < density
    matrix: Tensor = torch.randn(kept.shape) * kept * (columns * max(density, 0.1)) ** -0.5
    return matrix


def check_product(
    product: Product, matrix: Tensor, epilogue: str, tokens: Sequence[int], parts: Sequence[int]
) -> None:
    """Against plain PyTorch in float64, for each number of tokens in each number of parts."""
    rows, columns = matrix.shape
    for count in tokens:
        x = torch.randn(count, columns)
        shapes = {"vector": (rows,), "tensor": (count, rows)}
        operands = [torch.randn(shapes[kind]) for kind in operand_kinds(epilogue)]
        exact = x.double() @ matrix.double().T
        expected = apply(exact, epilogue, [o.double() for o in operands], channel=-1)
        scale = max(1.0, float(expected.abs().max())) if expected.numel() else 1.0
        for split in parts:
            actual = product(x, operands, split)
            torch.testing.assert_close(actual.double(), expected, rtol=0, atol=1e-5 * scale)
