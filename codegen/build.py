"""TIR of kernels -> native code: the few passes of TVM that they need, and an LLVM that copies nothing.

TVM's own list of passes is for schedules: blocks, thread bindings and pipelines that no kernel here has. On kernels
it takes as long as LLVM does.
"""

from __future__ import annotations

from typing import Any

import tvm
from tvm import tirx
from tvm.target import Target

PIPELINE = "sparsecomp"
INLINE_COST = 50
"""What LLVM's inliner takes an instruction to cost, where 5 is usual: a list of calls is called in three places (by one
thread, by each of several, by all together), and with the usual cost all its kernels are compiled in each."""


def build(module: tvm.IRModule | tirx.PrimFunc, target: Target) -> Any:
    """Compile functions made of loops, vectors and plain buffers."""
    options = {"cl-opt": [f"-inline-instr-cost:int={INLINE_COST}"]}
    return tvm.compile(module, target=Target(dict(target.export()) | options), tir_pipeline=PIPELINE)


def _pipeline() -> tuple[Any, Any, Any]:
    passes = tirx.transform

    @tvm.transform.module_pass(opt_level=0)  # type: ignore[untyped-decorator]
    def lower(module: tvm.IRModule, _: Any) -> tvm.IRModule:
        return tvm.ir.transform.Sequential(
            [
                passes.FlattenBuffer(),
                passes.NarrowDataType(32),
                passes.VectorizeLoop(True),
                passes.StorageRewrite(),
                passes.StmtSimplify(),
                passes.VerifyMemory(),
                passes.AnnotateEntryFunc(),
                passes.SplitHostDevice(),
                passes.MakePackedAPI(),
            ]
        )(module)

    _, host, device = tirx.get_tir_pipeline("s_tir")
    return lower, host, device


tirx.compilation_pipeline.PIPELINE_MAP[PIPELINE] = _pipeline
