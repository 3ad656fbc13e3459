"""The vocabulary of kernels, written for a CPU: phases are loops over the threads, what threads do together is
the plain loop that it means. So tests read the numbers of kernels where there is no GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from tvm.script.ir_builder import tirx as T

from sparsecomp.codegen.cuda.emitter import WARP, Array, Emitter, Expr, Registers

SIZE = {
    "float32": 4,
    "uint32": 4,
    "int32": 4,
    "float16": 2,
    "bfloat16": 2,
    "uint16": 2,
    "uint8": 1,
    "int8": 1,
}
"""Bytes of an element."""


class _OfThreads(Registers):
    """Registers of all threads, side by side; which thread reads them is asked of the emitter."""

    def __init__(self, emitter: SerialEmitter, count: int, dtype: str) -> None:
        self.emitter, self.count = emitter, count
        self.array = Array(T.alloc_buffer((emitter.size * count,), dtype))

    def load(self, start: Expr, lanes: int = 1) -> Expr:
        return self.of(self.emitter.thread, start, lanes)

    def store(self, start: Expr, value: Expr, lanes: int = 1) -> None:
        self.array.store(self.emitter.thread * self.count + start, value, lanes)

    def of(self, thread: Expr, start: Expr, lanes: int = 1) -> Expr:
        return self.array.load(thread * self.count + start, lanes)

    def put(self, thread: Expr, start: Expr, value: Expr) -> None:
        self.array.store(thread * self.count + start, value)


class SerialEmitter(Emitter):
    """One thread runs all. It asserts that kernels keep to the rules of phases."""

    def __init__(self) -> None:
        super().__init__()
        self.size = 0
        """Threads of a block."""
        self._thread: Expr = None
        self._warp: Expr = None

    @property
    def thread(self) -> Expr:
        assert self._thread is not None, "registers are indexed in phases only"
        return self._thread

    @property
    def _first(self) -> Expr:
        """The first thread of the warp."""
        assert self._warp is not None, "what a warp does together stands inside `warps`"
        assert self._thread is None, "what a warp does together stands outside phases"
        return self._warp * WARP

    @property
    def _outside(self) -> bool:
        """Whether the whole block does what comes next."""
        return self._thread is None and self._warp is None

    @contextmanager
    def grid(self, blocks: Sequence[Expr], threads: int) -> Iterator[tuple[Expr, ...]]:
        self.size = threads
        with ExitStack() as stack:
            axes = [stack.enter_context(T.serial(extent)) for extent in reversed(blocks)]
            yield tuple(reversed(axes))

    @contextmanager
    def threads(self) -> Iterator[Expr]:
        assert self._outside, "a phase of the block inside another"
        with T.serial(self.size) as self._thread:
            yield self._thread
        self._thread = None

    @contextmanager
    def warps(self) -> Iterator[Expr]:
        assert self._outside, "warps inside a phase or inside warps"
        assert self.size % WARP == 0, f"{self.size} threads are no whole warps"
        with T.serial(self.size // WARP) as self._warp:
            yield self._warp
        self._warp = None

    @contextmanager
    def lanes(self) -> Iterator[Expr]:
        first = self._first
        with T.serial(WARP) as lane:
            self._thread = first + lane
            yield lane
        self._thread = None

    def barrier(self) -> None:
        assert self._outside, "a barrier stands outside phases and warps"

    def warp_barrier(self) -> None:
        assert self._first is not None

    def registers(self, count: int, dtype: str) -> Registers:
        assert self._thread is None, "registers are declared outside phases"
        return _OfThreads(self, count, dtype)

    def shared(self, size: int, dtype: str) -> Array:
        return Array(T.alloc_buffer((size,), dtype, align=128))

    def mma(
        self, sums: Registers, at: int, a: Registers, a_at: int, b: Registers, b_at: int, dtype: str
    ) -> None:
        assert isinstance(sums, _OfThreads)
        assert isinstance(a, _OfThreads)
        assert isinstance(b, _OfThreads)
        first = self._first
        with T.serial(WARP) as lane, T.serial(4) as i, T.serial(16) as k:
            row, column = lane // 4 + i // 2 * 8, lane % 4 * 2 + i % 2
            of_a = a.of(first + row % 8 * 4 + k % 8 // 2, a_at + row // 8 + k // 8 * 2)
            of_b = b.of(first + column * 4 + k % 8 // 2, b_at + k // 8)
            product = half_of(of_a, k % 2, dtype) * half_of(of_b, k % 2, dtype)
            sums.put(first + lane, at + i, sums.of(first + lane, at + i) + product)

    def load_matrix(
        self,
        target: Registers,
        at: int,
        source: Array,
        start: Callable[[Expr], Expr],
        count: int,
        transposed: bool = False,
    ) -> None:
        assert isinstance(target, _OfThreads)
        first = self._first
        bits = source.bits
        with T.serial(WARP) as lane, T.serial(count) as i:
            row, pair = lane // 4, lane % 4 * 2
            if transposed:
                places = [T.bind(start(i * 8 + pair + half)) + row for half in range(2)]
            else:
                places = [T.bind(start(i * 8 + row)) + pair + half for half in range(2)]
            low, high = (T.cast(bits[place], "uint32") for place in places)
            target.put(first + lane, at + i, low | (high << T.uint32(16)))

    def shuffle_xor(self, target: Registers, at: int, source: Registers, source_at: int, mask: int) -> None:
        assert isinstance(target, _OfThreads)
        assert isinstance(source, _OfThreads)
        assert (target, at) != (source, source_at)
        first = self._first
        with T.serial(WARP) as lane:
            target.put(first + lane, at, source.of(first + (lane ^ mask), source_at))

    def copy_async(self, target: Array, to: Expr, source: Array, start: Expr, size: int) -> None:
        assert self._thread is not None, "copies are begun in phases"
        dtype = str(target.buffer.dtype)
        assert dtype == str(source.buffer.dtype)
        into, out_of = (target.bits, source.bits) if SIZE[dtype] == 2 else (target, source)
        for i in range(size // SIZE[dtype]):
            into[to + i] = out_of[start + i]

    def commit_async(self) -> None:
        assert self._thread is None, "groups of copies are closed outside phases"

    def wait_async(self, pending: int) -> None:
        assert self._thread is None, "copies are waited for outside phases"


def half_of(pair: Expr, which: Expr, dtype: str) -> Expr:
    """Element 0 (the lower) or 1 of two 16-bit floats in a uint32, as float32."""
    bits = (pair >> T.cast(which * 16, "uint32")) & T.uint32(0xFFFF)
    if dtype == "bfloat16":
        return T.reinterpret("float32", bits << T.uint32(16))
    return T.cast(T.reinterpret("float16", T.cast(bits, "uint16")), "float32")
