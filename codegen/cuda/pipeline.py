"""From a kernel's PrimFunc to a module: for a GPU of an architecture, or for this CPU.

TVM's default passes are not used: they shrink shared arrays to what they see written, which an asynchronous copy is
not, and place barriers of their own, which a loop that differs between warps cannot have.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import tvm
from tvm import s_tir, tirx

from sparsecomp.codegen.cuda.cuda_emitter import CudaEmitter
from sparsecomp.codegen.cuda.kernel import CudaKernel
from sparsecomp.codegen.cuda.serial_emitter import SerialEmitter

PIPELINE = "sparsecomp"


def _pipeline() -> tuple[Any, Any, Any]:
    passes = [
        tirx.transform.FlattenBuffer(),
        tirx.transform.BF16ComputeLegalize(),
        tirx.transform.NarrowDataType(32),
        tirx.transform.VectorizeLoop(True),
        tirx.transform.UnrollLoop(),
        tirx.transform.StmtSimplify(),
        tirx.transform.RemoveNoOp(),
        tirx.transform.CommonSubexprElim(),
        tirx.transform.VerifyMemory(),
        tirx.transform.AnnotateEntryFunc(),
        s_tir.transform.MergeSharedMemoryAllocations(),
        tirx.transform.SplitHostDevice(),
        tirx.transform.MakePackedAPI(),
        tirx.transform.BF16StorageLegalize(),
    ]
    return (
        tvm.ir.transform.Sequential(passes),
        s_tir.pipeline.finalize_host_passes,
        s_tir.pipeline.finalize_device_passes,
    )


tirx.register_tir_pipeline(PIPELINE, _pipeline)


def cuda_target(arch: str) -> Any:
    return tvm.target.Target({"kind": "cuda", "arch": arch}, host={"kind": "llvm"})


@lru_cache(maxsize=512)
def compile_for_gpu(kernel: CudaKernel, arch: str) -> Any:
    """TVM's executable. On a machine without a GPU it holds the source alone."""
    return tvm.compile(kernel.function(CudaEmitter()), target=cuda_target(arch), tir_pipeline=PIPELINE)


@lru_cache(maxsize=64)
def compile_for_cpu(kernel: CudaKernel) -> Any:
    """The same kernel as plain loops on this machine, to be called with tensors: what tests compare."""
    host = tvm.target.Target.from_device("cpu")
    return tvm.compile(kernel.function(SerialEmitter()), target=host, tir_pipeline=PIPELINE)["main"]


def cuda_source(kernel: CudaKernel, arch: str) -> str:
    """CUDA C++ of the device functions."""
    return str(compile_for_gpu(kernel, arch).mod.imports[0].inspect_source("cuda"))
