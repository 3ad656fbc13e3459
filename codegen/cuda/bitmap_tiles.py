"""The kernel for few tokens: unstructured 16-bit weights, made in the registers of tensor cores from bits and values.

    y[t, m] = epilogue( sum_k W[m, k] x[t, k] )

With few tokens the time is that of reading the weights, so they are read as few bytes (`bitmap_format`), all of
them under way at once, and the zeros are put back on the way from shared memory to mma.m16n8k16:

    for each block of 16 `tiles` rows:                       a block of threads
        for each record of 64 `chunks` columns:              shared among the warps, which read ahead `depth`
            for each chunk: a scan over the lanes of how many values each owns
                for each of its 4 fragments: 8 elements of each lane, by two windows of 4 values
        the warps' sums are added, then the epilogue

Bytes and instructions (H200: 4.8 TB/s; 132 multiprocessors, each 4 instructions of a warp a cycle, 1.7 GHz): a dense
4096 x 4096 weight takes 7.0 us to read, this one 3.2 us with 60 % zeros and 1.8 us with 80 %. To decode four
positions takes a lane 26 PTX instructions, of them 4 reads of shared memory without conflicts: together at most
3.9 us, and 2.3 us of shared memory alone, whatever the zeros. So beyond some 55 % of zeros the instructions decide. A
popcount for each pair (Fan et al., SpInfer, 2025) runs at an eighth of the rate, and would take 4.7 us alone: here an
addition of bytes over the lanes counts for 16 positions of each.

One token is served as well: the tensor cores are idle most of the time in any case, and multiplying on the other cores
instead would not save a step of the decoding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

import torch
import tvm
from torch import Tensor
from tvm.script.ir_builder import tirx as T

from sparsecomp.codegen.cuda.bitmap_format import CHUNK, TILE, BitmapFormat
from sparsecomp.codegen.cuda.bitmap_warp import TOKENS, WORDS, BitmapWarp, Block, selector
from sparsecomp.codegen.cuda.emitter import WARP, Array, Emitter, Expr, Parameter, i64
from sparsecomp.codegen.cuda.epilogues import finish, operand_parameters
from sparsecomp.codegen.cuda.half_linear import unlike_half_linear
from sparsecomp.codegen.cuda.kernel import Case, CudaKernel
from sparsecomp.codegen.cuda.words import u32

MOST_TOKENS = 16
MOST_KEPT = 0.9
"""Of the weight; bits take another sixteenth."""


@dataclass(frozen=True)
class BitmapTiles:
    """Sizes and schedule; kernels that are equal share their code."""

    rows: int
    columns: int
    dtype: str
    epilogue: str
    pieces: int
    """Room for a record, in 16 bytes."""
    chunks: int = 2
    tiles: int = 1
    """Of 16 rows, in a block: they share the x that a warp has read."""
    warps: int = 8
    depth: int = 3
    """Records of a warp under way or in use."""
    splits: int = 1
    """Blocks that share the columns of the same rows."""
    token_tiles: int = 1
    """Of 8 tokens, computed together."""

    @property
    def label(self) -> str:
        return f"bitmap {TILE * self.tiles}x{CHUNK * self.chunks}"

    @property
    def format(self) -> BitmapFormat:
        return BitmapFormat(self.rows, self.columns, self.chunks)

    @property
    def slot(self) -> int:
        """Words of shared memory for a record. A window may begin at its last value, and is read three words long."""
        return (self.pieces + 1) * WORDS

    @property
    def shared_bytes(self) -> int:
        """Of a block. The sums are put where the records were."""
        return 4 * (self.ring + 16)

    @property
    def ring(self) -> int:
        """Words for the records of all warps."""
        records = self.warps * self.depth * self.tiles * self.slot
        return max(records, self.warps * self.tiles * TILE * self.token_tiles * TOKENS)

    @property
    def blocks_of_rows(self) -> int:
        return -(-self.rows // (TILE * self.tiles))

    def pack(self, matrix: Tensor) -> tuple[Tensor, ...]:
        starts, stream = self.format.pack(matrix)
        assert int(starts.diff().max()) <= self.pieces, "the kernel was made for emptier records"
        return starts, stream

    def unpack(self, operands: Sequence[Tensor]) -> Tensor:
        starts, stream = operands
        return self.format.unpack(starts, stream, getattr(torch, self.dtype))

    def workspace(self, tokens: int) -> int:
        return self.splits * tokens * self.rows if self.splits > 1 else 0

    def function(self, emit: Emitter) -> tvm.tirx.PrimFunc:
        records = self.format.tiles * self.format.records
        y = ("tokens", self.rows)
        operands = operand_parameters(self.epilogue, self.dtype, self.rows, y)
        parameters = [
            Parameter("x", self.dtype, ("tokens", self.columns)),
            Parameter("starts", "int32", (records + 1,)),
            Parameter("stream", "int32", ("words",)),
            *operands,
            Parameter("y", self.dtype, y),
        ]
        if self.splits > 1:
            parameters.append(Parameter("partial", "float32", ("lent",)))
        return emit.function(parameters, lambda *arrays: _Writer(self, emit, arrays).write())


class BitmapFamily:
    """Unstructured half-precision weights of linear layers, for few tokens."""

    name = "bitmap"

    def refused(self, case: Case) -> str | None:
        """See `Family`."""
        if unlike := unlike_half_linear(case):
            return unlike
        if case.tokens > MOST_TOKENS:
            return f"for at most {MOST_TOKENS} tokens, as reading the weights decides; here {case.tokens}"
        kept = case.kept
        if kept > MOST_KEPT:
            return f"{kept:.0%} of the weight are not zero: with its bits it would not take less to read than dense"
        return None

    def kernels(self, case: Case) -> Sequence[CudaKernel]:
        """See `Family`."""
        return list(schedules(case))


def schedules(case: Case) -> Iterator[BitmapTiles]:
    """The likeliest first: a block for each multiprocessor, or as many as there are rows for."""
    dtype, token_tiles = case.dtype_name, -(-min(case.tokens, MOST_TOKENS) // TOKENS)
    plain = BitmapTiles(case.rows, case.columns, dtype, case.epilogue, 0, token_tiles=token_tiles)
    rooms: dict[int, int] = {}
    for depth, chunks, tiles, warps in product((3, 2), (2, 1, 4), (1, 2), (8, 16, 4)):
        if chunks not in rooms:
            pieces = replace(plain, chunks=chunks).format.fullest(case.matrix)
            rooms[chunks] = -(-pieces // 16) * 16  # rounded, so that layers alike share a kernel
        kernel = replace(plain, pieces=rooms[chunks], chunks=chunks, tiles=tiles, warps=warps, depth=depth)
        busy = min(4, max(1, case.gpu.multiprocessors // kernel.blocks_of_rows))
        for splits in sorted({1, min(busy, -(-kernel.format.records // warps))}, reverse=True):
            if kernel.shared_bytes <= case.gpu.shared_bytes:
                yield replace(kernel, splits=splits)


class _Writer:
    def __init__(self, spec: BitmapTiles, emit: Emitter, arrays: Sequence[Array]) -> None:
        self.spec, self.emit = spec, emit
        self.x, self.starts, self.stream, *rest = arrays
        self.partial = rest.pop() if spec.splits > 1 else None
        *self.operands, self.y = rest
        self.tokens = emit.sizes["tokens"]
        self.wide = spec.token_tiles * TOKENS

    def write(self) -> None:
        spec = self.spec
        groups = T.truncdiv(self.tokens + (self.wide - 1), T.int32(self.wide))
        with self.emit.grid((spec.blocks_of_rows, spec.splits, groups), spec.warps * WARP) as (
            rows,
            split,
            group,
        ):
            self._block(rows, split, group * self.wide)
        if self.partial is not None:
            self._join(self.partial)

    def _block(self, rows: Expr, split: Expr, token: Expr) -> None:
        emit, spec = self.emit, self.spec
        ring = emit.shared(spec.ring, "int32")
        table = emit.shared(16, "int32")
        block = Block(self.x, self.starts, self.stream, self.tokens, rows, token)
        warp_code = BitmapWarp(spec, emit, block, ring, table)
        with emit.threads() as thread:
            for nibble in range(16):
                with T.If(thread == nibble), T.Then():
                    table[nibble] = T.reinterpret("int32", u32(selector(nibble)))
        emit.barrier()
        with emit.warps() as warp:
            warp_code.multiply(warp, split * spec.warps + warp)
            emit.wait_async(0)
        emit.barrier()
        sums = ring.view(spec.ring, "float32")
        with emit.warps() as warp:
            warp_code.leave(sums, warp)
        emit.barrier()
        self._add(sums, rows, split, token)

    def _add(self, sums: Array, rows: Expr, split: Expr, first: Expr) -> None:
        """Sums of the warps; neighbouring threads have neighbouring rows."""
        spec, height = self.spec, self.spec.tiles * TILE
        threads = spec.warps * WARP
        with self.emit.threads() as thread, T.serial(-(-height * self.wide // threads)) as step:
            place = T.bind(step * threads + thread)
            inside, token = T.bind(T.truncmod(place, height)), T.bind(T.truncdiv(place, height))
            row = T.bind(rows * height + inside)
            wanted = T.And(T.And(token < self.wide, first + token < self.tokens), row < spec.rows)
            with T.If(wanted), T.Then():
                total: Expr = T.float32(0)
                for warp in range(spec.warps):
                    total = total + sums[(warp * height + inside) * self.wide + token]
                self._store(T.bind(total), split, first + token, row)

    def _store(self, total: Expr, split: Expr, token: Expr, row: Expr) -> None:
        place = T.bind(i64(token) * self.spec.rows + row)
        if self.partial is None:
            value = finish(self.emit, total, self.spec.epilogue, self.operands, row, place)
            self.emit.store(self.y, place, value)
        else:
            self.partial[i64(split) * i64(self.tokens) * self.spec.rows + place] = total

    def _join(self, partial: Array) -> None:
        """The second pass: sums of the splits."""
        spec, threads = self.spec, 256
        size = T.bind(i64(self.tokens) * spec.rows)
        blocks = T.cast(T.truncdiv(size + (threads - 1), T.int64(threads)), "int32")
        with self.emit.grid((blocks,), threads) as (block,), self.emit.threads() as thread:
            place = T.bind(i64(block) * threads + thread)
            with T.If(place < size), T.Then():
                total: Expr = T.float32(0)
                for split in range(spec.splits):
                    total = total + partial[size * split + place]
                row = T.cast(T.truncmod(place, T.int64(spec.rows)), "int32")
                value = finish(self.emit, T.bind(total), spec.epilogue, self.operands, row, place)
                self.emit.store(self.y, place, value)
