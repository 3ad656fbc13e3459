"""Parallel loops of generated code run on the OpenMP threads that PyTorch already has.

TVM would start a pool of its own, whose idle threads spin and take the cores from PyTorch between calls. Its
launcher is a symbol that a module looks up when it is loaded; here it is replaced by one, written in LLVM IR
so that no compiler is needed, that hands the loop to `GOMP_parallel`. Where no OpenMP runtime is found, TVM's
own pool serves.
"""

from __future__ import annotations

import ctypes
import json
import platform
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

# Each thread is one task, and all run the same code: loops in it are split by (task, number of tasks), whatever their
# number, and a barrier ends each. The threads start and end once for a list of calls, not for every call.
#
# After a rest Linux may wake a worker on its caller's processor although another is idle. It would get no
# turn until the caller, waiting for it, had spun for milliseconds. So who waits long gives way, and a worker that
# finds itself there moves over to another processor it may use.
LAUNCHER = """
{layout}
; loop, its data, threads here, caller's processor, -, threads at the barrier, -, barriers passed
%job = type {{ ptr, ptr, i32, i32, [10 x i32], i32, [15 x i32], i32, [15 x i32] }}
%env = type {{ ptr, i32 }} ; TVM's: a handle, tasks
define void @sparsecomp_worker(ptr %job) #0 {{
  %thread = call i32 inttoptr (i64 {omp_get_thread_num} to ptr)()
  %calls = icmp eq i32 %thread, 0
  br i1 %calls, label %start, label %look
look:
  %here = call i32 inttoptr (i64 {sched_getcpu} to ptr)()
  %caller.at = getelementptr %job, ptr %job, i32 0, i32 3
  %caller = load i32, ptr %caller.at
  %together = icmp eq i32 %here, %caller
  br i1 %together, label %move, label %start
move:
  call void @sparsecomp_move_over(i32 %here)
  br label %start
start:
  %present.at = getelementptr %job, ptr %job, i32 0, i32 2
  %before = atomicrmw add ptr %present.at, i32 1 seq_cst
  %team = call i32 inttoptr (i64 {omp_get_num_threads} to ptr)()
  %f = load ptr, ptr %job
  %data.at = getelementptr %job, ptr %job, i32 0, i32 1
  %data = load ptr, ptr %data.at
  %env = alloca %env
  store ptr %job, ptr %env
  %env.tasks = getelementptr %env, ptr %env, i32 0, i32 1
  store i32 %team, ptr %env.tasks
  %status = call i32 %f(i32 %thread, ptr %env, ptr %data)
  br label %wait
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
define i32 @sparsecomp_barrier(i32 %task, ptr %env) #0 {{
  %job = load ptr, ptr %env
  %env.tasks = getelementptr %env, ptr %env, i32 0, i32 1
  %tasks = load i32, ptr %env.tasks
  %arrived.at = getelementptr %job, ptr %job, i32 0, i32 5
  %passed.at = getelementptr %job, ptr %job, i32 0, i32 7
  %passed = load atomic i32, ptr %passed.at acquire, align 4
  %arrived = atomicrmw add ptr %arrived.at, i32 1 acq_rel
  %others = sub i32 %tasks, 1
  %last = icmp eq i32 %arrived, %others
  br i1 %last, label %open, label %wait
open:
  store i32 0, ptr %arrived.at
  %next = add i32 %passed, 1
  store atomic i32 %next, ptr %passed.at release, align 4
  ret i32 0
wait:
  %turn = phi i32 [ 0, %0 ], [ %turn.next, %again ]
  %now = load atomic i32, ptr %passed.at acquire, align 4
  %through = icmp ne i32 %now, %passed
  br i1 %through, label %done, label %again.which
again.which:
  %long = icmp sgt i32 %turn, {patience}
  br i1 %long, label %yield, label %spin
yield:
  %yielded = call i32 inttoptr (i64 {sched_yield} to ptr)()
  br label %again
spin:
  call void asm sideeffect "{relax}", ""()
  %turn.more = add i32 %turn, 1
  br label %again
again:
  %turn.next = phi i32 [ %turn, %yield ], [ %turn.more, %spin ]
  br label %wait
done:
  ret i32 0
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
  %job = alloca %job, align 64
  %threads = call i32 inttoptr (i64 {omp_get_max_threads} to ptr)()
  %default = icmp eq i32 %wanted, 0
  %count = select i1 %default, i32 %threads, i32 %wanted
  store %job zeroinitializer, ptr %job
  store ptr %f, ptr %job
  %data.at = getelementptr %job, ptr %job, i32 0, i32 1
  store ptr %data, ptr %data.at
  %caller = call i32 inttoptr (i64 {sched_getcpu} to ptr)()
  %caller.at = getelementptr %job, ptr %job, i32 0, i32 3
  store i32 %caller, ptr %caller.at
  call void inttoptr (i64 {GOMP_parallel} to ptr)(ptr @sparsecomp_worker, ptr %job, i32 %count, i32 0)
  ret i32 0
}}
define i32 @__tvm_ffi_barrier_address(ptr %self, ptr %arguments, i32 %count, ptr %result) #0 {{
  store {{ i32, i32, i64 }} {{ i32 1, i32 0, i64 ptrtoint (ptr @sparsecomp_barrier to i64) }}, ptr %result
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
PATIENCE = 500
"""Turns of waiting at a barrier, some ten nanoseconds each, before a thread gives way to others."""
RELAX = {"x86_64": "pause", "aarch64": "yield"}
"""The instruction that tells a processor that it waits."""


@cache
def share_pytorch_threads() -> bool:
    """Use PyTorch's OpenMP threads in all modules loaded from now on; False where that cannot be done."""
    runtime = _openmp()
    if runtime is None:
        return False
    launcher = _compile_launcher(runtime)
    ffi = ctypes.CDLL(tvm_ffi.libinfo.find_libtvm_ffi())
    register = ffi.TVMFFIEnvModRegisterContextSymbol
    found = [
        register(symbol, ctypes.c_void_p(int(launcher[name]())))
        for symbol, name in (
            (b"__TVMBackendParallelLaunch", "launch_address"),
            (b"__TVMBackendParallelBarrier", "barrier_address"),
        )
    ]
    return not any(found)


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


def _compile_launcher(runtime: ctypes.CDLL) -> Any:
    addresses = _addresses(runtime, FROM_OPENMP) | _addresses(ctypes.CDLL(None), FROM_SYSTEM)
    cpu = codegen.llvm_get_system_cpu()
    flag = json.dumps({"kind": "llvm", "mcpu": cpu}).replace('"', r"\22")
    layout, relax = _host_layout(cpu), RELAX.get(platform.machine(), "")
    text = LAUNCHER.format(layout=layout, target=flag, patience=PATIENCE, relax=relax, **addresses)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "launcher.ll"
        path.write_text(text)
        module = tvm.runtime.load_module(str(path))
    _KEPT.append(module)
    return module


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
