"""The vocabulary of CUDA kernels: blocks, phases of threads, warps, registers, shared memory, tensor cores.

A kernel is a grid of blocks. In a block everything is uniform, but for *phases*:

    with emit.grid((blocks,), threads=128) as (block,):
        sums = emit.registers(8, "float32")             # 8 of each thread
        tile = emit.shared(1024, "float16")
        with T.serial(steps) as step:                   # uniform: all threads of the block together
            with emit.threads() as thread:              # a phase: code of one thread, which meets no other
                tile[thread] = ...
            emit.barrier()
            with emit.warps() as warp:                  # uniform in a warp; loops may differ between warps
                with emit.lanes() as lane:              # a phase of the warp's 32 threads
                    ...
                emit.mma(sums, 0, a, 0, b, 0, "float16")    # all lanes of the warp at once
            emit.barrier()

On a GPU a phase is code with a bound thread axis; on a CPU it is a loop over the threads, so that what stands
before it has been done by all. Registers are indexed in phases only, and are kept from one to the next; what a
phase binds is not seen in another. Everything that threads do together (`barrier`, `mma`, `load_matrix`,
`shuffle_xor`) stands outside phases. A barrier stands outside `warps` as well.

Elements of 16-bit floats are read and written by `emit.load` and `emit.store`, as float32, or as bits by a view: TVM
makes wrong numbers of a bfloat16 in an expression that is bound to a variable.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import tvm
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

Expr = Any
"""A TIR expression."""
WARP = 32
"""Threads in a warp."""


@dataclass(frozen=True)
class Parameter:
    """Of a kernel's function: a contiguous tensor. Sizes given by name are known only at run time."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


def i64(value: Expr) -> Expr:
    return T.int64(value) if isinstance(value, int) else T.cast(value, "int64")


class Registers(ABC):
    """`count` elements of each thread, indexed in phases. Indices that are constants keep them in registers."""

    @abstractmethod
    def load(self, start: Expr, lanes: int = 1) -> Expr: ...

    @abstractmethod
    def store(self, start: Expr, value: Expr, lanes: int = 1) -> None: ...

    def __getitem__(self, index: Expr) -> Expr:
        return self.load(index)

    def __setitem__(self, index: Expr, value: Expr) -> None:
        self.store(index, value)


@dataclass(frozen=True)
class Array:
    """A flat buffer, written by assignment and by vectors."""

    buffer: Expr

    def load(self, start: Expr, lanes: int = 1) -> Expr:
        return self.buffer[T.Ramp(start, 1, lanes) if lanes > 1 else start]

    def store(self, start: Expr, value: Expr, lanes: int = 1) -> None:
        T.buffer_store(self.buffer, value, [slice(start, start + lanes) if lanes > 1 else start])

    def address(self, index: Expr) -> Expr:
        return T.address_of(self.buffer[index])

    def __getitem__(self, index: Expr) -> Expr:
        return self.load(index)

    def __setitem__(self, index: Expr, value: Expr) -> None:
        self.store(index, value)

    @property
    def bits(self) -> Array:
        """The same bytes as uint16."""
        return self.view(self.buffer.shape[0], "uint16")

    def view(self, size: Expr, dtype: str) -> Array:
        """The same bytes as `size` elements of another dtype."""
        data, scope = self.buffer.data, self.buffer.scope()
        return Array(T.decl_buffer((size,), dtype, data=data, scope=scope, align=16))


class Emitter(ABC):
    """Writes one PrimFunc for one kind of machine."""

    def __init__(self) -> None:
        self.sizes: dict[str, Expr] = {}
        """Sizes that are known only at run time, int32, by the names parameters gave them."""

    def function(
        self, parameters: Sequence[Parameter], body: Callable[..., None], name: str = "main"
    ) -> tvm.tirx.PrimFunc:
        """`body` is called with a flat array for each parameter, and opens one grid or several, which run in order.

        Offsets into tensors that may exceed 2^31 elements are to be `i64`.
        """
        with IRBuilder() as builder, T.prim_func(s_tir=True):
            T.func_name(name)
            T.func_attr({"tirx.noalias": True, "global_symbol": name})
            named = {size for p in parameters for size in p.shape if isinstance(size, str)}
            self.sizes = {size: T.int32() for size in sorted(named)}
            shapes = [[self.sizes[n] if isinstance(n, str) else n for n in p.shape] for p in parameters]
            declared = [
                T.arg(p.name, T.buffer(shape, p.dtype, align=16))
                for p, shape in zip(parameters, shapes, strict=True)
            ]
            body(*map(_flat, declared))
        return builder.get()

    def load(self, array: Array, index: Expr) -> Expr:
        """An element of a float array of any dtype, as float32."""
        if str(array.buffer.dtype) == "bfloat16":
            bits = array.bits[index]
            return T.reinterpret("float32", T.cast(bits, "uint32") << T.uint32(16))
        return T.cast(array[index], "float32")

    def store(self, array: Array, index: Expr, value: Expr) -> None:
        """A float32, rounded to the array's dtype."""
        if str(array.buffer.dtype) != "bfloat16":
            array[index] = T.cast(value, array.buffer.dtype)
            return
        bits = T.bind(T.reinterpret("uint32", value))
        to_even = T.uint32(0x7FFF) + ((bits >> T.uint32(16)) & T.uint32(1))
        is_nan = (bits & T.uint32(0x7FFFFFFF)) > T.uint32(0x7F800000)
        rounded = T.Select(is_nan, T.uint32(0x7FC0), (bits + to_even) >> T.uint32(16))
        array.bits[index] = T.cast(rounded, "uint16")

    # The machine ---------------------------------------------------------------------------------------------

    @abstractmethod
    def grid(self, blocks: Sequence[Expr], threads: int) -> AbstractContextManager[tuple[Expr, ...]]:
        """One kernel: up to three extents of blocks, the fastest first, and the threads of each block."""

    @abstractmethod
    def threads(self) -> AbstractContextManager[Expr]:
        """A phase of all threads of the block: yields the thread's number."""

    @abstractmethod
    def warps(self) -> AbstractContextManager[Expr]:
        """What the warps do, each for itself: yields the warp's number. `threads` must be a multiple of 32."""

    @abstractmethod
    def lanes(self) -> AbstractContextManager[Expr]:
        """Inside `warps`, a phase of the threads of the warp: yields the lane's number."""

    @abstractmethod
    def barrier(self) -> None:
        """What the block's threads wrote to shared memory before is seen by all of them after."""

    @abstractmethod
    def warp_barrier(self) -> None:
        """The same, of a warp's threads, inside `warps`."""

    @abstractmethod
    def registers(self, count: int, dtype: str) -> Registers:
        """Of each thread, undefined at first."""

    @abstractmethod
    def shared(self, size: int, dtype: str) -> Array:
        """Of the block, undefined at first; aligned to 128 bytes."""

    # What threads do together ---------------------------------------------------------------------------------

    @abstractmethod
    def mma(
        self, sums: Registers, at: int, a: Registers, a_at: int, b: Registers, b_at: int, dtype: str
    ) -> None:
        """D += A B by tensor cores, mma.m16n8k16: A 16 x 16, B 16 x 8 of `dtype` (float16, bfloat16), D float32.

        Each lane holds 4 registers of A and 2 of B, uint32 of two elements each, the lower first, and 4 sums. As
        PTX documents it, with g = lane // 4 and t = lane % 4:

            A  register i    row g + 8 (i % 2), columns 2 t + 8 (i // 2) and the next
            B  register i    rows 2 t + 8 i and the next, column g
            D  sum i         row g + 8 (i // 2), column 2 t + i % 2
        """

    @abstractmethod
    def load_matrix(
        self,
        target: Registers,
        at: int,
        source: Array,
        start: Callable[[Expr], Expr],
        count: int,
        transposed: bool = False,
    ) -> None:
        """ldmatrix: `count` (1, 2 or 4) matrices of 8 x 8 16-bit elements from shared memory to a uint32 register each.

        `start(lane)` is the element, in `source` of 16-bit elements, where the row lane % 8 of matrix lane // 8
        begins, aligned to 16 bytes. Lane 4 r + c then holds elements 2 c and 2 c + 1 of row r, or, transposed, of
        column r.
        """

    @abstractmethod
    def shuffle_xor(self, target: Registers, at: int, source: Registers, source_at: int, mask: int) -> None:
        """target[at] of each lane = source[source_at] of lane ^ mask. The two must not be the same register."""

    # In phases ------------------------------------------------------------------------------------------------

    @abstractmethod
    def copy_async(self, target: Array, to: Expr, source: Array, start: Expr, size: int) -> None:
        """cp.async: `size` (4, 8 or 16) bytes from global to shared memory, addresses aligned to them. On a CPU it
        copies at once: that a kernel waits for it is not seen there."""

    @abstractmethod
    def commit_async(self) -> None:
        """Close the group of copies begun since the last one; outside phases."""

    @abstractmethod
    def wait_async(self, pending: int) -> None:
        """Until at most so many groups are under way; outside phases, a barrier follows."""


UNBOUNDED = 1 << 30
"""Declared length of a parameter as a flat array: an int32, so that indices are not widened to it."""


def _flat(tensor: Expr) -> Array:
    return Array(T.decl_buffer((UNBOUNDED,), tensor.dtype, data=tensor.data, align=16))
