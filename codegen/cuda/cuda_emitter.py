"""The vocabulary of kernels, written for a GPU: thread axes, PTX instructions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from tvm.script.ir_builder import tirx as T

from sparsecomp.codegen.cuda.emitter import WARP, Array, Emitter, Expr, Registers

MMA_TYPE = {"float16": "f16", "bfloat16": "bf16"}
"""PTX's names."""


class _Local(Registers):
    def __init__(self, count: int, dtype: str) -> None:
        self.array = Array(T.alloc_buffer((count,), dtype, scope="local"))

    def load(self, start: Expr, lanes: int = 1) -> Expr:
        return self.array.load(start, lanes)

    def store(self, start: Expr, value: Expr, lanes: int = 1) -> None:
        self.array.store(start, value, lanes)


class CudaEmitter(Emitter):
    """For NVIDIA GPUs from compute capability 8.0."""

    _thread: Expr

    @contextmanager
    def grid(self, blocks: Sequence[Expr], threads: int) -> Iterator[tuple[Expr, ...]]:
        with ExitStack() as stack:
            axes = [
                stack.enter_context(T.launch_thread(f"blockIdx.{axis}", extent))
                for axis, extent in zip("xyz", blocks, strict=False)
            ]
            self._thread = stack.enter_context(T.launch_thread("threadIdx.x", threads))
            yield tuple(axes)

    @contextmanager
    def threads(self) -> Iterator[Expr]:
        yield self._thread

    @contextmanager
    def warps(self) -> Iterator[Expr]:
        yield T.bind(T.truncdiv(self._thread, T.int32(WARP)))

    @contextmanager
    def lanes(self) -> Iterator[Expr]:
        yield T.bind(T.truncmod(self._thread, T.int32(WARP)))

    def barrier(self) -> None:
        T.evaluate(T.tvm_storage_sync("shared"))

    def warp_barrier(self) -> None:
        T.evaluate(T.cuda.warp_sync())

    def registers(self, count: int, dtype: str) -> Registers:
        return _Local(count, dtype)

    def shared(self, size: int, dtype: str) -> Array:
        return Array(T.alloc_buffer((size,), dtype, scope="shared.dyn", align=128))

    def mma(
        self, sums: Registers, at: int, a: Registers, a_at: int, b: Registers, b_at: int, dtype: str
    ) -> None:
        own = [sums[at + i] for i in range(4)]
        operands = [*(a[a_at + i] for i in range(4)), *(b[b_at + i] for i in range(2))]
        kind = MMA_TYPE[dtype]
        T.evaluate(T.ptx[f"mma.sync.aligned.m16n8k16.row.col.f32.{kind}.{kind}.f32"](*own, *operands, *own))

    def load_matrix(
        self,
        target: Registers,
        at: int,
        source: Array,
        start: Callable[[Expr], Expr],
        count: int,
        transposed: bool = False,
    ) -> None:
        lane = T.bind(T.truncmod(self._thread, T.int32(8 * count)))
        name = f"ldmatrix.sync.aligned.m8n8.x{count}{'.trans' * transposed}.shared.b16"
        T.evaluate(T.ptx[name](*(target[at + i] for i in range(count)), source.address(start(lane))))

    def shuffle_xor(self, target: Registers, at: int, source: Registers, source_at: int, mask: int) -> None:
        everyone = T.uint32(0xFFFFFFFF)
        target[at] = T.tvm_warp_shuffle_xor(everyone, source[source_at], mask, WARP, WARP)

    def copy_async(self, target: Array, to: Expr, source: Array, start: Expr, size: int) -> None:
        cache = "cg" if size == 16 else "ca"  # only whole sectors may pass by the L1 cache
        copy = T.ptx[f"cp.async.{cache}.shared.global"]
        T.evaluate(copy(target.address(to), source.address(start), size))

    def commit_async(self) -> None:
        T.evaluate(T.ptx.cp.async_.commit_group())

    def wait_async(self, pending: int) -> None:
        T.evaluate(T.ptx.cp.async_.wait_group(pending))
