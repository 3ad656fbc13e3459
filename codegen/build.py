"""TIR of kernels -> native code: the few passes of TVM that they need, and an LLVM that copies nothing.

TVM's own list of passes is for schedules: blocks, thread bindings and pipelines that no kernel here has. On kernels
it takes as long as LLVM does.
"""

from __future__ import annotations

from typing import Any

import tvm
from tvm import s_tir, tirx
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
    passes = [
        tirx.transform.FlattenBuffer(),
        tirx.transform.NarrowDataType(32),
        tirx.transform.VectorizeLoop(True),
        tirx.transform.StorageRewrite(),
        tirx.transform.StmtSimplify(),
        tirx.transform.VerifyMemory(),
        tirx.transform.AnnotateEntryFunc(),
        tirx.transform.SplitHostDevice(),
        tirx.transform.MakePackedAPI(),
    ]
    return (
        tvm.ir.transform.Sequential(passes),
        s_tir.pipeline.finalize_host_passes,
        s_tir.pipeline.finalize_device_passes,
    )


tirx.register_tir_pipeline(PIPELINE, _pipeline)
