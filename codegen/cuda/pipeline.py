"""From a kernel's PrimFunc to a module: for a GPU of an architecture, or for this CPU.

TVM's default passes are not used: they shrink shared arrays to what they see written, which an asynchronous copy is
not, and place barriers of their own, which a loop that differs between warps cannot have.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import tvm
from tvm import s_tir, tirx

from sparsecomp.codegen.cuda.cuda_emitter import CudaEmitter
from sparsecomp.codegen.cuda.kernel import CudaKernel
from sparsecomp.codegen.cuda.serial_emitter import SerialEmitter

FOR_GPU, SERIAL = "sparsecomp.cuda", "sparsecomp.serial"
"""Names of the lists of passes, for a GPU and for loops on a CPU. `codegen/build.py` has that of kernels for CPUs."""


def _pipeline(*made_shorter: Any, with_shared_memory: Sequence[Any] = ()) -> tuple[Any, Any, Any]:
    passes = [
        tirx.transform.FlattenBuffer(),
        tirx.transform.BF16ComputeLegalize(),
        tirx.transform.NarrowDataType(32),
        tirx.transform.VectorizeLoop(True),
        tirx.transform.UnrollLoop(),
        tirx.transform.StmtSimplify(),
        *made_shorter,
        tirx.transform.VerifyMemory(),
        tirx.transform.AnnotateEntryFunc(),
        *with_shared_memory,
        tirx.transform.SplitHostDevice(),
        tirx.transform.MakePackedAPI(),
        tirx.transform.BF16StorageLegalize(),
    ]
    return (
        tvm.ir.transform.Sequential(passes),
        s_tir.pipeline.finalize_host_passes,
        s_tir.pipeline.finalize_device_passes,
    )


def _for_gpu() -> tuple[Any, Any, Any]:
    return _pipeline(
        tirx.transform.RemoveNoOp(),
        tirx.transform.CommonSubexprElim(),
        with_shared_memory=[s_tir.transform.MergeSharedMemoryAllocations()],
    )


tirx.register_tir_pipeline(FOR_GPU, _for_gpu)
tirx.register_tir_pipeline(SERIAL, _pipeline)


def cuda_target(arch: str) -> Any:
    return tvm.target.Target({"kind": "cuda", "arch": arch}, host={"kind": "llvm"})


@lru_cache(maxsize=512)
def compile_for_gpu(kernel: CudaKernel, arch: str) -> Any:
    """TVM's executable. On a machine without a GPU it holds the source alone."""
    return tvm.compile(kernel.function(CudaEmitter()), target=cuda_target(arch), tir_pipeline=FOR_GPU)


@lru_cache(maxsize=64)
def compile_for_cpu(kernel: CudaKernel) -> Any:
    """The same kernel as plain loops on this machine, to be called with tensors: what tests compare."""
    return compile_serially(kernel.function(SerialEmitter()))


def compile_serially(function: tirx.PrimFunc) -> Any:
    """What a `SerialEmitter` wrote, compiled as it stands: it runs once, and LLVM would take longer than it does."""
    here = dict(tvm.target.Target.from_device("cpu").export())
    target = tvm.target.Target(here | {"opt-level": 0})
    return tvm.compile(function, target=target, tir_pipeline=SERIAL)["main"]


def cuda_source(kernel: CudaKernel, arch: str) -> str:
    """CUDA C++ of the device functions."""
    return str(compile_for_gpu(kernel, arch).mod.imports[0].inspect_source("cuda"))
