"""Parallel loops of generated code run on the OpenMP threads that PyTorch already has.

TVM would start a pool of its own, whose idle threads spin and take the cores from PyTorch between calls. Its
launcher is a symbol that a module looks up when it is loaded; here it is replaced by one, written in LLVM IR
so that no compiler is needed, that hands the loop to `GOMP_parallel`. Where no OpenMP runtime is found, TVM's
own pool serves.
"""

from __future__ import annotations

import ctypes
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
import tvm
import tvm_ffi
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T
from tvm.target import codegen

# Tasks are taken one by one: each thread asks for the next until none is left. TVM's lambda splits its loop
# by (task, number of tasks), whatever their number.
LAUNCHER = """
{layout}
define void @sparsecomp_worker(ptr %job) #0 {{
  %env = alloca {{ ptr, i32 }}
  %f = load ptr, ptr %job
  %data.at = getelementptr {{ ptr, ptr, i32, i32 }}, ptr %job, i32 0, i32 1
  %data = load ptr, ptr %data.at
  %count.at = getelementptr {{ ptr, ptr, i32, i32 }}, ptr %job, i32 0, i32 2
  %count = load i32, ptr %count.at
  %next.at = getelementptr {{ ptr, ptr, i32, i32 }}, ptr %job, i32 0, i32 3
  store ptr null, ptr %env
  %env.count = getelementptr {{ ptr, i32 }}, ptr %env, i32 0, i32 1
  store i32 %count, ptr %env.count
  br label %loop
loop:
  %task = atomicrmw add ptr %next.at, i32 1 monotonic
  %more = icmp slt i32 %task, %count
  br i1 %more, label %run, label %done
run:
  %status = call i32 %f(i32 %task, ptr %env, ptr %data)
  br label %loop
done:
  ret void
}}
define i32 @sparsecomp_launch(ptr %f, ptr %data, i32 %wanted) #0 {{
  %job = alloca {{ ptr, ptr, i32, i32 }}
  %threads = call i32 inttoptr (i64 {max_threads} to ptr)()
  %default = icmp eq i32 %wanted, 0
  %count = select i1 %default, i32 %threads, i32 %wanted
  store ptr %f, ptr %job
  %data.at = getelementptr {{ ptr, ptr, i32, i32 }}, ptr %job, i32 0, i32 1
  store ptr %data, ptr %data.at
  %count.at = getelementptr {{ ptr, ptr, i32, i32 }}, ptr %job, i32 0, i32 2
  store i32 %count, ptr %count.at
  %next.at = getelementptr {{ ptr, ptr, i32, i32 }}, ptr %job, i32 0, i32 3
  store i32 0, ptr %next.at
  call void inttoptr (i64 {parallel} to ptr)(ptr @sparsecomp_worker, ptr %job, i32 %count, i32 0)
  ret i32 0
}}
define i32 @__tvm_ffi_launch_address(ptr %self, ptr %arguments, i32 %count, ptr %result) #0 {{
  store {{ i32, i32, i64 }} {{ i32 1, i32 0, i64 ptrtoint (ptr @sparsecomp_launch to i64) }}, ptr %result
  ret i32 0
}}
attributes #0 = {{ nounwind }}
!llvm.module.flags = !{{!0}}
!0 = !{{i32 2, !"tvm_target", !"{target}"}}
"""
"""A module of LLVM IR as TVM loads it: `launch_address` is a function of TVM's calling convention."""


@cache
def share_pytorch_threads() -> bool:
    """Use PyTorch's OpenMP threads in all modules loaded from now on; False where that cannot be done."""
    runtime = _openmp()
    if runtime is None:
        return False
    address = _compile_launcher(runtime)
    ffi = ctypes.CDLL(tvm_ffi.libinfo.find_libtvm_ffi())
    register = ffi.TVMFFIEnvModRegisterContextSymbol
    return bool(register(b"__TVMBackendParallelLaunch", ctypes.c_void_p(address)) == 0)


@contextmanager
def team_of(threads: int) -> Iterator[None]:
    """Parallel loops that this thread starts meanwhile use so many threads."""
    runtime = _openmp()
    before = runtime.omp_get_max_threads() if runtime else threads
    if runtime is None or before == threads:
        yield
        return
    runtime.omp_set_num_threads(threads)
    try:
        yield
    finally:
        runtime.omp_set_num_threads(before)


@cache
def _openmp() -> ctypes.CDLL | None:
    """The OpenMP runtime of PyTorch; other libraries may have loaded one of their own."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        return None
    paths = {line.split()[-1] for line in maps.read_text().splitlines() if "omp" in line.rpartition("/")[2]}
    own = str(Path(torch.__file__).parent)
    for path in sorted(paths, key=lambda path: (not path.startswith(own), path)):
        if not path.startswith("/"):
            continue
        library = ctypes.CDLL(path)
        if hasattr(library, "GOMP_parallel") and hasattr(library, "omp_get_max_threads"):
            return library
    return None


def _compile_launcher(runtime: ctypes.CDLL) -> int:
    def address_of(name: str) -> int:
        address = ctypes.cast(getattr(runtime, name), ctypes.c_void_p).value
        assert address is not None
        return address

    cpu = codegen.llvm_get_system_cpu()
    flag = json.dumps({"kind": "llvm", "mcpu": cpu}).replace('"', r"\22")
    text = LAUNCHER.format(
        layout=_host_layout(cpu),
        parallel=address_of("GOMP_parallel"),
        max_threads=address_of("omp_get_max_threads"),
        target=flag,
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "launcher.ll"
        path.write_text(text)
        module = tvm.runtime.load_module(str(path))
    _KEPT.append(module)
    return int(module["launch_address"]())


def _host_layout(cpu: str) -> str:
    """The `target datalayout` and `target triple` lines of modules made for this host."""
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("nothing")
        T.arg("x", T.int32())
        T.evaluate(T.int32(0))
    lines = (
        tvm.compile(builder.get(), target={"kind": "llvm", "mcpu": cpu}).mod.inspect_source("ll").splitlines()
    )
    return "\n".join(line for line in lines if line.startswith("target "))


_KEPT: list[Any] = []
"""The launcher's code, which every later module calls."""
