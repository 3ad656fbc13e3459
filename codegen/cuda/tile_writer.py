"""What kernels for many tokens share: a row of blocks times the columns of x that they meet, on tensor cores.

    for each tile of `tokens` tokens, for each row of blocks, those with most blocks first:     a block of threads
        for each of its blocks: x's columns and the block to shared memory, `stages` ahead of their use
            for each 16 columns: fragments by ldmatrix, each warp's part of tokens x rows by mma.m16n8k16
        the epilogue; whole rows of 16 bytes to y

Tokens are the rows of the product, so that lanes hold neighbours in y. In shared memory the 16-byte pieces of a row
are permuted by the row's number, so that the eight rows which ldmatrix reads at once lie in different banks.

Neighbouring blocks of threads share x's tokens, which thus stay in the L2 cache while all rows of blocks pass;
blocks of the same tile start with the longest, so that the last to end are short.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Protocol

from tvm.script.ir_builder import tirx as T

from sparsecomp.codegen.cuda.emitter import WARP, Array, Emitter, Expr, i64
from sparsecomp.codegen.cuda.epilogues import finish
from sparsecomp.codegen.cuda.words import repeat

DEPTH = 16
"""Columns multiplied by one instruction."""
PIECE = 8
"""Elements copied at once."""


class Tiles(Protocol):
    """Sizes and schedule of such a kernel."""

    @property
    def rows(self) -> int: ...

    @property
    def columns(self) -> int: ...

    @property
    def dtype(self) -> str: ...

    @property
    def epilogue(self) -> str: ...

    @property
    def tokens(self) -> int:
        """Of a block of threads."""
        ...

    @property
    def warps(self) -> tuple[int, int]:
        """Among which a tile's tokens and its rows are divided."""
        ...

    @property
    def stages(self) -> int:
        """Blocks under way or in use."""
        ...

    @property
    def height(self) -> int:
        """Rows of a block."""
        ...

    @property
    def width(self) -> int:
        """Columns of a block."""
        ...

    @property
    def block_rows(self) -> int: ...


def threads(spec: Tiles) -> int:
    """Of a block of threads."""
    return spec.warps[0] * spec.warps[1] * WARP


def stage(spec: Tiles) -> int:
    """Elements of shared memory that x's columns and a block fill."""
    return (spec.tokens + spec.height) * spec.width


def ring(spec: Tiles) -> int:
    """Elements of shared memory in all; the finished tile is put there as well, with a piece more in each row, so
    that rows begin in different banks."""
    return max(spec.stages * stage(spec), spec.tokens * (spec.height + PIECE))


def swizzled(row: Expr, piece: Expr, pieces: int) -> Expr:
    """Where the piece of a row of so many (4, or 8 and more) lies, in elements from the tile's start."""
    turn = T.truncmod(T.truncdiv(row, T.int32(max(1, 8 // pieces))), T.int32(min(8, pieces)))
    return (row * pieces + T.bitwise_xor(piece, turn)) * PIECE


class TileWriter:
    """Writes the kernel for x as PyTorch has it; arrays as `BlockTiles` lists them."""

    def __init__(self, spec: Tiles, emit: Emitter, arrays: Sequence[Array]) -> None:
        self.spec, self.emit = spec, emit
        self.x, self.order, self.starts, self.columns, self.values, *self.operands, self.y = arrays
        self.tokens = emit.sizes["tokens"]
        self.of_tokens = spec.tokens // spec.warps[0] // 16
        """Fragments of x that a warp multiplies with..."""
        self.of_rows = spec.height // spec.warps[1] // 8
        """...so many of the block."""

    def write(self) -> None:
        spec, emit = self.spec, self.emit
        tiles = T.truncdiv(self.tokens + (spec.tokens - 1), T.int32(spec.tokens))
        with emit.grid((spec.block_rows, tiles), threads(spec)) as (place, tile):
            row, token = T.bind(self.order[place]), T.bind(tile * spec.tokens)
            shared = emit.shared(ring(spec), spec.dtype)
            self.sums = emit.registers(4 * self.of_tokens * self.of_rows, "float32")
            self.a = emit.registers(4 * self.of_tokens, "uint32")
            self.b = emit.registers(2 * self.of_rows, "uint32")
            with emit.threads(), repeat(emit, 4 * self.of_tokens * self.of_rows) as i:
                self.sums[i] = T.float32(0)
            self._multiply(shared, row, token)
            emit.wait_async(0)
            emit.barrier()
            with emit.warps() as warp, emit.lanes() as lane:
                self._finish(shared, warp, lane, row, token)
            emit.barrier()
            with emit.threads() as thread:
                self._store(shared, thread, row, token)

    def _multiply(self, shared: Array, row: Expr, token: Expr) -> None:
        spec, emit = self.spec, self.emit
        first = T.bind(self.starts[row])
        count = T.bind(self.starts[row + 1] - first)
        for ahead in range(spec.stages - 1):
            self._fetch(shared, ahead, first, T.int32(ahead), count, token)
        with T.serial(count) as step:
            emit.wait_async(spec.stages - 2)
            emit.barrier()
            ahead = step + (spec.stages - 1)
            self._fetch(shared, T.truncmod(ahead, T.int32(spec.stages)), first, ahead, count, token)
            start = T.truncmod(step, T.int32(spec.stages)) * stage(spec)
            with emit.warps() as warp, repeat(emit, spec.width // DEPTH) as depth:
                self._step(shared, start, warp, depth)

    def _fetch(self, shared: Array, number: Expr, first: Expr, step: Expr, count: Expr, token: Expr) -> None:
        """Begin to copy a block and the columns of x that it is multiplied with to a stage."""
        spec, emit = self.spec, self.emit
        start = number * stage(spec)
        with emit.threads() as thread, T.If(step < count), T.Then():
            self._fetch_x(shared, start, thread, T.bind(first + step), token)
            pieces = spec.width // PIECE
            with self._pieces(spec.height, pieces, thread) as (inside, piece):
                to = start + spec.tokens * spec.width + swizzled(inside, piece, pieces)
                source = (i64(first + step) * spec.height + inside) * spec.width + piece * PIECE
                emit.copy_async(shared, to, self.values, source, 16)
        emit.commit_async()

    def _fetch_x(self, shared: Array, start: Expr, thread: Expr, block: Expr, token: Expr) -> None:
        """tokens x width. Rows of tokens that are not there stay undefined: they make such rows of y."""
        spec = self.spec
        pieces = spec.width // PIECE
        column = T.bind(self.columns[block] * spec.width)
        with self._pieces(spec.tokens, pieces, thread) as (inside, piece):
            at = T.bind(column + piece * PIECE)
            with T.If(token + inside < self.tokens), T.Then():
                to = start + swizzled(inside, piece, pieces)
                self._copy_x(shared, to, i64(token + inside) * spec.columns + at, at)

    def _copy_x(self, shared: Array, to: Expr, source: Expr, column: Expr) -> None:
        """Eight elements; 0 beyond the last column, where a weight of 0 does not make up for what else may be there."""
        spec = self.spec
        if spec.columns % spec.width == 0:
            self.emit.copy_async(shared, to, self.x, source, 16)
            return
        with T.If(column < spec.columns):
            with T.Then():
                self.emit.copy_async(shared, to, self.x, source, 16)
            with T.Else(), T.serial(PIECE) as i:
                shared.bits[to + i] = T.uint16(0)

    @contextmanager
    def _pieces(self, rows: int, pieces: int, thread: Expr) -> Iterator[tuple[Expr, Expr]]:
        """A loop of the threads over rows of so many pieces: yields row and piece."""
        count = threads(self.spec)
        with ExitStack() as stack:
            step = stack.enter_context(repeat(self.emit, -(-rows * pieces // count)))
            number = T.bind(step * count + thread)
            if rows * pieces % count:
                stack.enter_context(T.If(number < rows * pieces))
                stack.enter_context(T.Then())
            yield T.bind(T.truncdiv(number, T.int32(pieces))), T.bind(T.truncmod(number, T.int32(pieces)))

    def _step(self, shared: Array, start: Expr, warp: Expr, depth: Expr) -> None:
        """16 columns of a block: each warp its tokens x rows."""
        spec, emit = self.spec, self.emit
        tokens, rows = self._own(warp)
        self._load_x(shared, start, tokens, depth)
        at_once = min(2, self.of_rows)

        def of_block(i: Expr, lane: Expr) -> Expr:
            row = rows + i * 16 + T.truncdiv(lane, T.int32(16)) * 8 + T.truncmod(lane, T.int32(8))
            piece = depth * 2 + T.truncmod(T.truncdiv(lane, T.int32(8)), T.int32(2))
            return start + spec.tokens * spec.width + swizzled(row, piece, spec.width // PIECE)

        with repeat(emit, self.of_rows // at_once) as i:
            emit.load_matrix(self.b, 4 * i, shared, lambda lane: of_block(i, lane), 2 * at_once)
        with repeat(emit, self.of_tokens) as i, repeat(emit, self.of_rows) as j:
            emit.mma(self.sums, 4 * (i * self.of_rows + j), self.a, 4 * i, self.b, 2 * j, spec.dtype)

    def _load_x(self, shared: Array, start: Expr, tokens: Expr, depth: Expr) -> None:
        """The warp's fragments of x."""

        def place(i: Expr, lane: Expr) -> Expr:
            row = tokens + i * 16 + T.truncmod(lane, T.int32(16))
            return start + swizzled(row, depth * 2 + T.truncdiv(lane, T.int32(16)), self.spec.width // PIECE)

        with repeat(self.emit, self.of_tokens) as i:
            self.emit.load_matrix(self.a, 4 * i, shared, lambda lane: place(i, lane), 4)

    def _own(self, warp: Expr) -> tuple[Expr, Expr]:
        """The first token and the first row of a warp in the tile."""
        across = T.int32(self.spec.warps[1])
        return T.truncdiv(warp, across) * (16 * self.of_tokens), T.truncmod(warp, across) * (8 * self.of_rows)

    @property
    def _pitch(self) -> int:
        """Of the finished tile in shared memory."""
        return self.spec.height + PIECE

    def _finish(self, tile: Array, warp: Expr, lane: Expr, row: Expr, token: Expr) -> None:
        """The epilogue, to shared memory."""
        spec, emit = self.spec, self.emit
        tokens, rows = self._own(warp)
        with repeat(emit, self.of_tokens) as i, repeat(emit, self.of_rows) as j, repeat(emit, 4) as k:
            t = T.bind(tokens + i * 16 + T.truncdiv(lane, T.int32(4)) + T.truncdiv(k, T.int32(2)) * 8)
            r = T.bind(rows + j * 8 + T.truncmod(lane, T.int32(4)) * 2 + T.truncmod(k, T.int32(2)))
            m = T.bind(row * spec.height + r)
            with T.If(T.And(token + t < self.tokens, m < spec.rows)), T.Then():
                place = T.bind(i64(token + t) * spec.rows + m)
                total = self.sums[4 * (i * self.of_rows + j) + k]
                value = finish(emit, total, spec.epilogue, self.operands, m, place)
                emit.store(tile, t * self._pitch + r, value)

    def _store(self, tile: Array, thread: Expr, row: Expr, token: Expr) -> None:
        spec = self.spec
        words = tile.view(ring(spec) // 2, "uint32")
        out = self.y.view(T.truncdiv(i64(self.tokens) * spec.rows, T.int64(2)), "uint32")
        with (
            self._pieces(spec.tokens, spec.height // PIECE, thread) as (inside, piece),
            T.If(token + inside < self.tokens),
            T.Then(),
        ):
            m = T.bind(row * spec.height + piece * PIECE)
            source, place = inside * self._pitch + piece * PIECE, i64(token + inside) * spec.rows + m
            if spec.rows % PIECE == 0:
                with T.If(m < spec.rows), T.Then():
                    piece_of = T.bind(words.load(T.truncdiv(source, T.int32(2)), PIECE // 2))
                    out.store(T.truncdiv(place, T.int64(2)), piece_of, PIECE // 2)
            else:
                with T.serial(PIECE) as i, T.If(m + i < spec.rows), T.Then():
                    self.y.bits[place + i] = tile.bits[source + i]
