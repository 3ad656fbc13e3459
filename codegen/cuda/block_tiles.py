"""The kernel for many tokens: blocks of 16-bit weights on tensor cores.

    y[t, m] = epilogue( sum_k x[t, k] W[m, k] )

    for each tile of `tokens` tokens, for each row of blocks, those with most blocks first:     a block of threads
        for each of its blocks: x's columns and the block to shared memory, `stages` ahead of their use
            for each 16 columns: fragments by ldmatrix, each warp's part of tokens x rows by mma.m16n8k16
        the epilogue; whole rows of 16 bytes to y

Tokens are the rows of the product, so that lanes hold neighbours in y. In shared memory the 16-byte pieces of a row
are permuted by the row's number, so that the eight rows which ldmatrix reads at once lie in different banks.

Neighbouring blocks of threads share x's tokens, which thus stay in the L2 cache while all rows of blocks pass;
blocks of the same tile start with the longest, so that the last to end are short.

Bytes (H200): a step of 64 columns for 256 tokens and 64 rows brings 40 KB for 2.1 MFLOP, so the L2 cache's 5.5 TB/s
bound the kernel to 290 TFLOP/s; with 128 tokens to 240, with blocks of 32 x 32 and 256 tokens to 160.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import product

import torch
import tvm
from torch import Tensor
from tvm.script.ir_builder import tirx as T

from sparsecomp.codegen.cuda.block_format import BlockFormat
from sparsecomp.codegen.cuda.emitter import WARP, Array, Emitter, Expr, Parameter, i64
from sparsecomp.codegen.cuda.epilogues import finish, operand_parameters
from sparsecomp.codegen.cuda.kernel import Case, CudaKernel
from sparsecomp.codegen.cuda.words import repeat

DTYPES = {torch.float16: "float16", torch.bfloat16: "bfloat16"}
SIZES = (64, 32)
"""Rows and columns of blocks that have kernels."""
DEPTH = 16
"""Columns multiplied by one instruction."""
PIECE = 8
"""Elements copied at once."""
FEWEST_TOKENS = 64
MOST_KEPT = 0.6
"""Share of blocks beyond which a dense product, which reaches twice the rate, cannot be slower."""


@dataclass(frozen=True)
class BlockTiles:
    """Sizes and schedule; kernels that are equal share their code."""

    rows: int
    columns: int
    dtype: str
    epilogue: str
    size: int
    tokens: int = 128
    """Tokens of a block of threads."""
    warps: tuple[int, int] = (2, 2)
    """Among which a tile's tokens and its rows are divided."""
    stages: int = 3

    @property
    def label(self) -> str:
        return f"blocks {self.size}x{self.size} on tensor cores"

    @property
    def format(self) -> BlockFormat:
        return BlockFormat(self.rows, self.columns, self.size)

    @property
    def threads(self) -> int:
        return self.warps[0] * self.warps[1] * WARP

    @property
    def stage(self) -> int:
        """Elements of shared memory that x's columns and a block fill."""
        return (self.tokens + self.size) * self.size

    @property
    def shared_bytes(self) -> int:
        return 2 * self.stages * self.stage

    def pack(self, matrix: Tensor) -> tuple[Tensor, ...]:
        return self.format.pack(matrix)

    def unpack(self, operands: Sequence[Tensor]) -> Tensor:
        _, *parts = operands
        return self.format.unpack(*parts)

    def workspace(self, tokens: int) -> int:
        return 0

    def function(self, emit: Emitter) -> tvm.tirx.PrimFunc:
        y = ("tokens", self.rows)
        return emit.function(
            [
                Parameter("x", self.dtype, ("tokens", self.columns)),
                Parameter("order", "int32", (self.format.block_rows,)),
                Parameter("starts", "int32", (self.format.block_rows + 1,)),
                Parameter("columns", "int32", ("blocks",)),
                Parameter("values", self.dtype, ("elements",)),
                *operand_parameters(self.epilogue, self.dtype, self.rows, y),
                Parameter("y", self.dtype, y),
            ],
            lambda *arrays: _Writer(self, emit, arrays).write(),
        )


class BlockFamily:
    """Half-precision weights of linear layers in square blocks, for many tokens."""

    name = "blocks"

    def refused(self, case: Case) -> str | None:
        """See `Family`."""
        if case.layer.op != "linear":
            return "only linear layers"
        if case.dtype not in DTYPES:
            return f"tensor cores take float16 and bfloat16, not {str(case.dtype).removeprefix('torch.')}"
        if case.tokens < FEWEST_TOKENS:
            return f"for at least {FEWEST_TOKENS} tokens; here {case.tokens}"
        if case.columns % PIECE:
            return f"rows of {case.columns} elements do not begin at multiples of 16 bytes"
        shares = {size: _kept_share(case, size) for size in SIZES}
        if min(shares.values()) > MOST_KEPT:
            listed = ", ".join(f"{share:.0%} of blocks {size}x{size}" for size, share in shares.items())
            return f"{listed} hold something, and more than {MOST_KEPT:.0%} cannot be faster than dense"
        return None

    def kernels(self, case: Case) -> Sequence[CudaKernel]:
        """See `Family`."""
        return list(schedules(case))


def _kept_share(case: Case, size: int) -> float:
    return float(BlockFormat(case.rows, case.columns, size).kept(case.matrix).float().mean())


def schedules(case: Case) -> Iterator[BlockTiles]:
    """Large blocks first where they hold few zeros: they read x less often."""
    shares = {size: _kept_share(case, size) for size in SIZES}
    sizes = [size for size in SIZES if shares[size] <= MOST_KEPT]
    if len(sizes) == 2 and shares[32] < 0.55 * shares[64]:
        sizes.reverse()
    for size in sizes:
        ways = product((256, 128, 64), ((2, 2), (4, 2), (4, 1), (2, 1)), (3, 4, 2))
        for tokens, warps, stages in ways:
            kernel = BlockTiles(
                case.rows, case.columns, DTYPES[case.dtype], case.epilogue, size, tokens, warps, stages
            )
            sums = tokens * size // kernel.threads
            if 16 <= sums <= 128 and kernel.shared_bytes <= case.gpu.shared_bytes:
                yield kernel


class _Writer:
    def __init__(self, spec: BlockTiles, emit: Emitter, arrays: Sequence[Array]) -> None:
        self.spec, self.emit = spec, emit
        self.x, self.order, self.starts, self.columns, self.values, *self.operands, self.y = arrays
        self.tokens = emit.sizes["tokens"]
        self.pieces = spec.size // PIECE
        self.of_tokens = spec.tokens // spec.warps[0] // 16
        """Fragments of x that a warp multiplies with..."""
        self.of_rows = spec.size // spec.warps[1] // 8
        """...so many of the block."""

    def write(self) -> None:
        spec, emit = self.spec, self.emit
        tiles = T.truncdiv(self.tokens + (spec.tokens - 1), T.int32(spec.tokens))
        with emit.grid((spec.format.block_rows, tiles), spec.threads) as (place, tile):
            row, token = T.bind(self.order[place]), T.bind(tile * spec.tokens)
            ring = emit.shared(spec.stages * spec.stage, spec.dtype)
            self.sums = emit.registers(4 * self.of_tokens * self.of_rows, "float32")
            self.a = emit.registers(4 * self.of_tokens, "uint32")
            self.b = emit.registers(2 * self.of_rows, "uint32")
            with emit.threads(), repeat(emit, 4 * self.of_tokens * self.of_rows) as i:
                self.sums[i] = T.float32(0)
            self._multiply(ring, row, token)
            emit.wait_async(0)
            emit.barrier()
            with emit.warps() as warp, emit.lanes() as lane:
                self._finish(ring, warp, lane, row, token)
            emit.barrier()
            with emit.threads() as thread:
                self._store(ring, thread, row, token)

    def _multiply(self, ring: Array, row: Expr, token: Expr) -> None:
        spec, emit = self.spec, self.emit
        first = T.bind(self.starts[row])
        count = T.bind(self.starts[row + 1] - first)
        for ahead in range(spec.stages - 1):
            self._fetch(ring, ahead, first, T.int32(ahead), count, token)
        with T.serial(count) as step:
            emit.wait_async(spec.stages - 2)
            emit.barrier()
            ahead = step + (spec.stages - 1)
            self._fetch(ring, T.truncmod(ahead, T.int32(spec.stages)), first, ahead, count, token)
            start = T.truncmod(step, T.int32(spec.stages)) * spec.stage
            with emit.warps() as warp, repeat(emit, spec.size // DEPTH) as depth:
                self._step(ring, start, warp, depth)

    def _fetch(self, ring: Array, stage: Expr, first: Expr, step: Expr, count: Expr, token: Expr) -> None:
        """Begin to copy a block and the columns of x that it is multiplied with."""
        spec, emit = self.spec, self.emit
        start = stage * spec.stage
        with emit.threads() as thread, T.If(step < count), T.Then():
            column = T.bind(self.columns[first + step] * spec.size)
            with self._pieces(spec.tokens, thread) as (inside, piece):
                at = T.bind(column + piece * PIECE)
                with T.If(token + inside < self.tokens), T.Then():
                    to = start + self._place(inside, piece)
                    source = i64(token + inside) * spec.columns + at
                    self._copy_x(ring, to, source, at)
            with self._pieces(spec.size, thread) as (inside, piece):
                to = start + spec.tokens * spec.size + self._place(inside, piece)
                source = (i64(first + step) * spec.size + inside) * spec.size + piece * PIECE
                emit.copy_async(ring, to, self.values, source, 16)
        emit.commit_async()

    def _copy_x(self, ring: Array, to: Expr, source: Expr, column: Expr) -> None:
        """Eight elements; 0 beyond the last column, where a weight of 0 does not make up for what else may be there."""
        spec = self.spec
        if spec.columns % spec.size == 0:
            self.emit.copy_async(ring, to, self.x, source, 16)
            return
        with T.If(column < spec.columns):
            with T.Then():
                self.emit.copy_async(ring, to, self.x, source, 16)
            with T.Else(), T.serial(PIECE) as i:
                ring.bits[to + i] = T.uint16(0)

    @contextmanager
    def _pieces(self, rows: int, thread: Expr) -> Iterator[tuple[Expr, Expr]]:
        """A loop of the threads over the pieces of so many rows: yields row and piece."""
        pieces, threads = T.int32(self.pieces), self.spec.threads
        with ExitStack() as stack:
            step = stack.enter_context(repeat(self.emit, -(-rows * self.pieces // threads)))
            number = T.bind(step * threads + thread)
            if rows * self.pieces % threads:
                stack.enter_context(T.If(number < rows * self.pieces))
                stack.enter_context(T.Then())
            yield T.bind(T.truncdiv(number, pieces)), T.bind(T.truncmod(number, pieces))

    def _place(self, row: Expr, piece: Expr) -> Expr:
        """Of a piece in a tile of shared memory."""
        rows_in_all_banks = 8 // self.pieces
        turn = T.truncmod(T.truncdiv(row, T.int32(rows_in_all_banks)), T.int32(self.pieces))
        return row * self.spec.size + T.bitwise_xor(piece, turn) * PIECE

    def _step(self, ring: Array, start: Expr, warp: Expr, depth: Expr) -> None:
        """16 columns of a block: each warp its tokens x rows."""
        spec, emit = self.spec, self.emit
        tokens = T.truncdiv(warp, T.int32(spec.warps[1])) * (16 * self.of_tokens)
        rows = T.truncmod(warp, T.int32(spec.warps[1])) * (8 * self.of_rows)

        def of_x(i: Expr, lane: Expr) -> Expr:
            row = tokens + i * 16 + T.truncmod(lane, T.int32(16))
            return start + self._place(row, depth * 2 + T.truncdiv(lane, T.int32(16)))

        def of_block(i: Expr, lane: Expr) -> Expr:
            row = rows + i * 16 + T.truncdiv(lane, T.int32(16)) * 8 + T.truncmod(lane, T.int32(8))
            piece = depth * 2 + T.truncmod(T.truncdiv(lane, T.int32(8)), T.int32(2))
            return start + spec.tokens * spec.size + self._place(row, piece)

        with repeat(emit, self.of_tokens) as i:
            emit.load_matrix(self.a, 4 * i, ring, lambda lane: of_x(i, lane), 4)
        with repeat(emit, self.of_rows // 2) as i:
            emit.load_matrix(self.b, 4 * i, ring, lambda lane: of_block(i, lane), 4)
        with repeat(emit, self.of_tokens) as i, repeat(emit, self.of_rows) as j:
            emit.mma(self.sums, 4 * (i * self.of_rows + j), self.a, 4 * i, self.b, 2 * j, spec.dtype)

    @property
    def _width(self) -> int:
        """Of the finished tile in shared memory: a piece more, so that rows begin in different banks."""
        return self.spec.size + PIECE

    def _finish(self, tile: Array, warp: Expr, lane: Expr, row: Expr, token: Expr) -> None:
        """The epilogue, to shared memory."""
        spec, emit = self.spec, self.emit
        tokens = T.truncdiv(warp, T.int32(spec.warps[1])) * (16 * self.of_tokens)
        rows = T.truncmod(warp, T.int32(spec.warps[1])) * (8 * self.of_rows)
        with repeat(emit, self.of_tokens) as i, repeat(emit, self.of_rows) as j, repeat(emit, 4) as k:
            t = T.bind(tokens + i * 16 + T.truncdiv(lane, T.int32(4)) + T.truncdiv(k, T.int32(2)) * 8)
            r = T.bind(rows + j * 8 + T.truncmod(lane, T.int32(4)) * 2 + T.truncmod(k, T.int32(2)))
            m = T.bind(row * spec.size + r)
            with T.If(T.And(token + t < self.tokens, m < spec.rows)), T.Then():
                place = T.bind(i64(token + t) * spec.rows + m)
                total = self.sums[4 * (i * self.of_rows + j) + k]
                value = finish(emit, total, spec.epilogue, self.operands, m, place)
                emit.store(tile, t * self._width + r, value)

    def _store(self, tile: Array, thread: Expr, row: Expr, token: Expr) -> None:
        spec = self.spec
        words = tile.view(spec.stages * spec.stage // 2, "uint32")
        out = self.y.view(T.truncdiv(i64(self.tokens) * spec.rows, T.int64(2)), "uint32")
        with (
            self._pieces(spec.tokens, thread) as (inside, piece),
            T.If(token + inside < self.tokens),
            T.Then(),
        ):
            m = T.bind(row * spec.size + piece * PIECE)
            source, place = inside * self._width + piece * PIECE, i64(token + inside) * spec.rows + m
            if spec.rows % PIECE == 0:
                with T.If(m < spec.rows), T.Then():
                    piece_of = T.bind(words.load(T.truncdiv(source, T.int32(2)), PIECE // 2))
                    out.store(T.truncdiv(place, T.int64(2)), piece_of, PIECE // 2)
            else:
                with T.serial(PIECE) as i, T.If(m + i < spec.rows), T.Then():
                    self.y.bits[place + i] = tile.bits[source + i]
