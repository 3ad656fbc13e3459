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
from collections.abc import Iterable, Iterator
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
#
# After a rest Linux may wake a worker on its caller's processor although another is idle. It would get no
# turn until the caller, out of tasks, had spun for milliseconds in OpenMP's barrier. So the caller gives way
# until everyone has come, and a worker that finds itself there moves over to another processor it may use.
LAUNCHER = """
{layout}
%job = type {{ ptr, ptr, i32, i32, i32, i32 }} ; loop, its data, tasks, next task, threads here, caller's processor
define void @sparsecomp_worker(ptr %job) #0 {{
  %thread = call i32 inttoptr (i64 {omp_get_thread_num} to ptr)()
  %calls = icmp eq i32 %thread, 0
  br i1 %calls, label %start, label %look
look:
  %here = call i32 inttoptr (i64 {sched_getcpu} to ptr)()
  %caller.at = getelementptr %job, ptr %job, i32 0, i32 5
  %caller = load i32, ptr %caller.at
  %together = icmp eq i32 %here, %caller
  br i1 %together, label %move, label %start
move:
  call void @sparsecomp_move_over(i32 %here)
  br label %start
start:
  %present.at = getelementptr %job, ptr %job, i32 0, i32 4
  %before = atomicrmw add ptr %present.at, i32 1 seq_cst
  %team = call i32 inttoptr (i64 {omp_get_num_threads} to ptr)()
  %f = load ptr, ptr %job
  %data.at = getelementptr %job, ptr %job, i32 0, i32 1
  %data = load ptr, ptr %data.at
  %count.at = getelementptr %job, ptr %job, i32 0, i32 2
  %count = load i32, ptr %count.at
  %next.at = getelementptr %job, ptr %job, i32 0, i32 3
  %env = alloca {{ ptr, i32 }}
  store ptr null, ptr %env
  %env.count = getelementptr {{ ptr, i32 }}, ptr %env, i32 0, i32 1
  store i32 %count, ptr %env.count
  br label %loop
loop:
  %task = atomicrmw add ptr %next.at, i32 1 monotonic
  %more = icmp slt i32 %task, %count
  br i1 %more, label %run, label %wait
run:
  %status = call i32 %f(i32 %task, ptr %env, ptr %data)
  br label %loop
wait:
  %present = load atomic i32, ptr %present.at seq_cst, align 4
  %missing = icmp slt i32 %present, %team
  br i1 %missing, label %yield, label %done
yield:
  %yielded = call i32 inttoptr (i64 {sched_yield} to ptr)()
  br label %wait
done:
  ret void
}}
define void @sparsecomp_move_over(i32 %here) #0 {{
  %own = alloca [16 x i64]
  %other = alloca [16 x i64]
  %known = call i32 inttoptr (i64 {sched_getaffinity} to ptr)(i32 0, i64 128, ptr %own)
  %failed = icmp ne i32 %known, 0
  br i1 %failed, label %done, label %move
move:
  %all = load [16 x i64], ptr %own
  store [16 x i64] %all, ptr %other
  %word = lshr i32 %here, 6
  %word.at = getelementptr i64, ptr %other, i32 %word
  %place = and i32 %here, 63
  %place.wide = zext i32 %place to i64
  %bit = shl i64 1, %place.wide
  %bits = load i64, ptr %word.at
  %rest = xor i64 %bits, %bit
  store i64 %rest, ptr %word.at
  %moved = call i32 inttoptr (i64 {sched_setaffinity} to ptr)(i32 0, i64 128, ptr %other)
  %back = call i32 inttoptr (i64 {sched_setaffinity} to ptr)(i32 0, i64 128, ptr %own)
  br label %done
done:
  ret void
}}
define i32 @sparsecomp_launch(ptr %f, ptr %data, i32 %wanted) #0 {{
  %job = alloca %job
  %threads = call i32 inttoptr (i64 {omp_get_max_threads} to ptr)()
  %default = icmp eq i32 %wanted, 0
  %count = select i1 %default, i32 %threads, i32 %wanted
  store ptr %f, ptr %job
  %data.at = getelementptr %job, ptr %job, i32 0, i32 1
  store ptr %data, ptr %data.at
  %count.at = getelementptr %job, ptr %job, i32 0, i32 2
  store i32 %count, ptr %count.at
  %next.at = getelementptr %job, ptr %job, i32 0, i32 3
  store i32 0, ptr %next.at
  %present.at = getelementptr %job, ptr %job, i32 0, i32 4
  store i32 0, ptr %present.at
  %caller = call i32 inttoptr (i64 {sched_getcpu} to ptr)()
  %caller.at = getelementptr %job, ptr %job, i32 0, i32 5
  store i32 %caller, ptr %caller.at
  call void inttoptr (i64 {GOMP_parallel} to ptr)(ptr @sparsecomp_worker, ptr %job, i32 %count, i32 0)
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


FROM_OPENMP = ("GOMP_parallel", "omp_get_max_threads", "omp_get_num_threads", "omp_get_thread_num")
FROM_SYSTEM = ("sched_getaffinity", "sched_getcpu", "sched_setaffinity", "sched_yield")


def _compile_launcher(runtime: ctypes.CDLL) -> int:
    addresses = _addresses(runtime, FROM_OPENMP) | _addresses(ctypes.CDLL(None), FROM_SYSTEM)
    cpu = codegen.llvm_get_system_cpu()
    flag = json.dumps({"kind": "llvm", "mcpu": cpu}).replace('"', r"\22")
    text = LAUNCHER.format(layout=_host_layout(cpu), target=flag, **addresses)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "launcher.ll"
        path.write_text(text)
        module = tvm.runtime.load_module(str(path))
    _KEPT.append(module)
    return int(module["launch_address"]())


def _addresses(library: ctypes.CDLL, names: Iterable[str]) -> dict[str, int]:
    found = {name: ctypes.cast(getattr(library, name), ctypes.c_void_p).value for name in names}
    return {name: address for name, address in found.items() if address is not None}


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
