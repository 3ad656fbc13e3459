"""The small vocabulary in which kernels are written: raw-pointer buffers, vectors, accumulators."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import tvm
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from sparsecomp.geometry import FLOAT

Expr = Any
"""A TIR expression."""
UNBOUNDED = 1 << 28
"""Declared length of a buffer behind a raw pointer: nothing is checked against it."""


def i64(value: Expr) -> Expr:
    return T.cast(value, "int64") if not isinstance(value, int) else T.int64(value)


def splat(value: Expr, lanes: int) -> Expr:
    return T.Broadcast(value if not isinstance(value, float | int) else T.float32(float(value)), lanes)


def load(buffer: Expr, start: Expr, lanes: int, stride: int = 1) -> Expr:
    return buffer[T.Ramp(start, T.int64(stride), lanes) if lanes > 1 else start]


def store(buffer: Expr, value: Expr, start: Expr, lanes: int) -> None:
    T.buffer_store(buffer, value, [slice(start, start + lanes) if lanes > 1 else start])


def prefetch(buffer: Expr, index: Expr) -> None:
    read, into_all_levels, data = T.int32(0), T.int32(3), T.int32(1)
    address = T.address_of(buffer[index])
    T.evaluate(T.call_llvm_intrin("void", "llvm.prefetch.p0", address, read, into_all_levels, data))


def share(units: int, part: Expr, parts: Expr) -> tuple[Expr, Expr]:
    """The units [low, high) of part number `part` of `parts` equal ones."""
    return T.bind(T.truncdiv(part * units, parts)), T.bind(T.truncdiv((part + 1) * units, parts))


@contextmanager
def workspace(size: int) -> Iterator[Expr]:
    """A float32 buffer too large for the stack, from the workspaces that TVM keeps for each thread.

    The calls that TVM makes for `alloc_buffer`, which it makes only in public functions.
    """
    cpu, device, kind, bits = T.int32(1), T.int32(0), T.int32(2), T.int32(32)
    size_in_bytes = T.cast(T.int64(size * FLOAT), "uint64")
    allocate = ("TVMBackendAllocWorkspace", cpu, device, size_in_bytes, kind, bits)
    data = T.bind(T.call_extern(T.handle("float32").ty, *allocate))
    yield T.decl_buffer((size,), "float32", data=data, align=64)
    T.evaluate(T.call_extern("int32", "TVMBackendFreeWorkspace", cpu, device, data))


class Accumulators:
    """Vector registers: one small buffer each, which LLVM promotes; one large buffer would go to the heap."""

    def __init__(self, count: int, lanes: int) -> None:
        self.lanes = lanes
        self._buffers = [T.alloc_buffer((lanes,), "float32") for _ in range(count)]

    def __getitem__(self, index: int) -> Expr:
        return self._buffers[index][T.Ramp(0, 1, self.lanes)]

    def __setitem__(self, index: int, value: Expr) -> None:
        T.buffer_store(self._buffers[index], value, [slice(0, self.lanes)])

    def across(self, index: int, join: Callable[[Expr, Expr], Expr] = operator.add) -> Expr:
        """The sum over the lanes of one register, or what else `join` makes of two; by halves, so the register
        is lost."""
        buffer, lanes = self._buffers[index], self.lanes // 2
        while lanes > 1:
            halves = [load(buffer, T.int64(start), lanes) for start in (0, lanes)]
            store(buffer, join(*halves), T.int64(0), lanes)
            lanes //= 2
        return join(buffer[T.int64(0)], buffer[T.int64(1)])


def kernel(
    name: str,
    pointers: Sequence[tuple[str, str]],
    integers: Sequence[str],
    body: Callable[..., None],
) -> tvm.tirx.PrimFunc:
    """A private function of raw pointers (name, dtype), none aliasing another, and int32 arguments.

    `body` is called with one buffer per pointer, then one variable per integer.
    """
    with IRBuilder() as builder, T.prim_func(s_tir=True, private=True):
        T.func_name(name)
        addresses = [T.arg(label, T.int64()) for label, _ in pointers]
        numbers = [T.arg(label, T.int32()) for label in integers]
        buffers = [
            T.decl_buffer(
                (UNBOUNDED,), dtype, data=T.bind(T.reinterpret(T.handle(dtype).ty, address)), align=4
            )
            for address, (_, dtype) in zip(addresses, pointers, strict=True)
        ]
        body(*buffers, *numbers)
    return builder.get()
