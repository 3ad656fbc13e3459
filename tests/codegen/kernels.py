"""Calling one kernel by itself, on tensors."""

from __future__ import annotations

import math
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
from sparsecomp.target import Target

MACHINES = (machine_of(Target()), machine_of(Target("cpu", "x86-64-v3")), machine_of(Target("cpu", "x86-64")))
"""This host, and two of its kind with shorter vectors."""
GUARD = 64
"""Floats on either side of a tensor."""

Run = Callable[..., None]
"""Called with a tensor per pointer, then an int per number."""


@cache
def compiled(kernel: Callable[[str, Any, Machine], tvm.tirx.PrimFunc], spec: Any, machine: Machine) -> Run:
    """The kernel behind a public function: kernels are private, and take addresses."""
    private = kernel("kernel", spec, machine)
    module = tvm.IRModule({"kernel": private})
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("main")
        arguments = [
            T.arg(f"a{i}", getattr(T, str(param.ty.dtype))()) for i, param in enumerate(private.params)
        ]
        T.evaluate(T.Call(module.get_global_var("kernel"), arguments, ret_ty="void"))
    module.update_func(tvm.ir.GlobalVar("main"), builder.get())
    executable = build(module, machine.tvm_target)
    main = executable["main"]

    def run(*arguments: Tensor | int) -> None:
        main(*(a.data_ptr() if isinstance(a, Tensor) else a for a in arguments))

    return run


def surrounded(x: Tensor) -> Tensor:
    """A copy between NaN, which shows where a kernel uses what lies outside."""
    whole = torch.full((GUARD + x.numel() + GUARD,), torch.nan)
    inside = whole[GUARD : GUARD + x.numel()].view(x.shape)
    inside.copy_(x)
    return inside


class Output:
    """NaN of a shape between values that no kernel stores."""

    OUTSIDE = 12345.678

    def __init__(self, *shape: int) -> None:
        size = math.prod(shape)
        self._whole = torch.full((GUARD + size + GUARD,), self.OUTSIDE)
        self.tensor = self._whole[GUARD : GUARD + size].view(shape)
        self.tensor.fill_(torch.nan)

    def check(self) -> None:
        """Nothing was stored before or after the tensor."""
        outside = torch.cat([self._whole[:GUARD], self._whole[-GUARD:]])
        torch.testing.assert_close(outside, torch.full_like(outside, self.OUTSIDE), rtol=0, atol=0)


def in_parts(run: Run, tensors: Sequence[Tensor], parts: int, *numbers: int) -> None:
    """The whole of a kernel's work, cut into this many parts."""
    for part in range(parts):
        run(*tensors, part, parts, *numbers)
