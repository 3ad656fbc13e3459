"""Passes and options of native code."""

from __future__ import annotations

import pytest

from sparsecomp.codegen.call import single
from sparsecomp.codegen.compiled_region import compile_region
from sparsecomp.codegen.layout import lay_out
from sparsecomp.codegen.machine import machine_of
from sparsecomp.layer import Layer
from sparsecomp.pattern import RowBlocks
from sparsecomp.region import RowsKernelChoice, Schedule
from sparsecomp.target import Target


@pytest.mark.parametrize("target", ["cpu", "cpu:x86-64-v3", "cpu:x86-64-v4"])
def test_kernels_are_compiled_once_not_where_they_are_called_from(target: str) -> None:
    """By one thread, by each of several, by all together."""
    layer = Layer("l", "conv2d", "", (64, 64, 1, 1), (1, 64, 28, 28))
    how = RowsKernelChoice(RowBlocks(2), Schedule(2, 64))
    code = compile_region(lay_out(single(layer), [how], [0]), machine_of(Target.parse(target)))
    functions = code.source("ll").split("\ndefine ")[1:]
    assert len(functions) > 3, "the region, its loops over threads, its list of calls"
    assert sum("call <" in body and "@llvm.fmuladd" in body.split("\ndeclare ")[0] for body in functions) == 1
