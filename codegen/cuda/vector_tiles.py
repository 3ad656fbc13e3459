"""The kernel for many tokens: vectors of 16-bit weights, 8, 16 or 32 rows high, on tensor cores.

    y[t, m] = epilogue( sum_k x[t, k] W[m, k] )

Two passes: x is transposed, so that a column of it is contiguous; then as in `tile_writer`, where a block is 32 of
the columns that a group of rows keeps, gathered from anywhere in x.

Bytes (H200): a column of x is read for `height` rows only, so the L2 cache's 5.5 TB/s bound the kernel to 5.5 `height`
TFLOP/s, 176 with 32 rows, where a dense product reaches 700: vectors gain at a quarter kept or less, of height 8
at a sixteenth. The transposition of 4096 x 4096 moves 67 MB, 14 us, beside 190 us of the dense product.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

import tvm
from torch import Tensor
from tvm.script.ir_builder import tirx as T

from sparsecomp.codegen.cuda.block_tiles import FEWEST_TOKENS
from sparsecomp.codegen.cuda.emitter import Array, Emitter, Expr, Parameter, i64
from sparsecomp.codegen.cuda.epilogues import operand_parameters
from sparsecomp.codegen.cuda.half_linear import unlike_half_linear
from sparsecomp.codegen.cuda.kernel import Case, CudaKernel
from sparsecomp.codegen.cuda.tile_writer import PIECE, TileWriter, ring, swizzled, threads
from sparsecomp.codegen.cuda.vector_format import WIDTH, VectorFormat
from sparsecomp.codegen.cuda.words import repeat

HEIGHTS = (32, 16, 8)
GAIN_PER_ROW = 1 / 128
"""Share of vectors kept, for each row of a vector, up to which the kernel may gain: a quarter with 32 rows."""
SQUARE = 32
"""Elements of a side of what is transposed at once."""


@dataclass(frozen=True)
class VectorTiles:
    """Sizes and schedule; kernels that are equal share their code."""

    rows: int
    columns: int
    dtype: str
    epilogue: str
    height: int
    tokens: int = 128
    """Of a block of threads."""
    warps: tuple[int, int] = (4, 1)
    stages: int = 3

    @property
    def label(self) -> str:
        return f"vectors {self.height}x1 on tensor cores"

    @property
    def width(self) -> int:
        return WIDTH

    @property
    def format(self) -> VectorFormat:
        return VectorFormat(self.rows, self.columns, self.height)

    @property
    def block_rows(self) -> int:
        return self.format.groups

    @property
    def threads(self) -> int:
        return threads(self)

    @property
    def shared_bytes(self) -> int:
        return 2 * ring(self)

    def pack(self, matrix: Tensor) -> tuple[Tensor, ...]:
        return self.format.pack(matrix)

    def unpack(self, operands: Sequence[Tensor]) -> Tensor:
        _, *parts = operands
        return self.format.unpack(*parts)

    def workspace(self, tokens: int) -> int:
        """The transposed x, columns of whole pieces."""
        return self.columns * (-(-tokens // PIECE) * PIECE) // 2

    def function(self, emit: Emitter) -> tvm.tirx.PrimFunc:
        y = ("tokens", self.rows)
        return emit.function(
            [
                Parameter("x", self.dtype, ("tokens", self.columns)),
                Parameter("order", "int32", (self.format.groups,)),
                Parameter("starts", "int32", (self.format.groups + 1,)),
                Parameter("columns", "int32", ("listed",)),
                Parameter("values", self.dtype, ("elements",)),
                *operand_parameters(self.epilogue, self.dtype, self.rows, y),
                Parameter("y", self.dtype, y),
                Parameter("transposed", "float32", ("lent",)),
            ],
            lambda *arrays: _Writer(self, emit, arrays).write(),
        )


class VectorFamily:
    """Half-precision weights of linear layers in vectors of rows, for many tokens."""

    name = "vectors"

    def refused(self, case: Case) -> str | None:
        """See `Family`."""
        if unlike := unlike_half_linear(case):
            return unlike
        if case.tokens < FEWEST_TOKENS:
            return f"for at least {FEWEST_TOKENS} tokens; here {case.tokens}"
        if not _heights(case):
            shares = ", ".join(
                f"{share:.0%} of vectors {height}x1" for height, share in _shares(case).items()
            )
            return f"{shares} hold something, with which reading x takes longer than a dense product"
        return None

    def kernels(self, case: Case) -> Sequence[CudaKernel]:
        """See `Family`."""
        return list(schedules(case))


def _shares(case: Case) -> dict[int, float]:
    kept = {height: VectorFormat(case.rows, case.columns, height).kept(case.matrix) for height in HEIGHTS}
    return {height: float(mask.float().mean()) for height, mask in kept.items()}


def _heights(case: Case) -> list[int]:
    """Those that may gain, the one that brings least of x and of the weight to a block of 256 tokens first."""
    shares = _shares(case)
    able = [height for height in HEIGHTS if shares[height] <= height * GAIN_PER_ROW]
    return sorted(able, key=lambda height: shares[height] * (256 + height) / height)


def schedules(case: Case) -> Iterator[VectorTiles]:
    """The height that reads least first."""
    for height in _heights(case):
        plain = VectorTiles(case.rows, case.columns, case.dtype_name, case.epilogue, height)
        for stages, warps, tokens in product((3, 4), ((4, 1), (8, 1), (2, 1)), (256, 128)):
            kernel = replace(plain, tokens=tokens, warps=warps, stages=stages)
            fits = kernel.shared_bytes <= case.gpu.shared_bytes and tokens < 2 * case.tokens
            if fits and tokens * height // kernel.threads in range(8, 129):
                yield kernel


class _Writer(TileWriter):
    def __init__(self, spec: VectorTiles, emit: Emitter, arrays: Sequence[Array]) -> None:
        *others, transposed = arrays
        super().__init__(spec, emit, others)
        self.pitch = T.truncdiv(self.tokens + (PIECE - 1), T.int32(PIECE)) * PIECE
        """Elements of a column of the transposed x."""
        size = i64(self.pitch) * spec.columns
        self.transposed = transposed.view(size, spec.dtype)

    def write(self) -> None:
        self._transpose()
        super().write()

    def _transpose(self) -> None:
        """By squares, through shared memory; tokens that only fill up a piece stay undefined."""
        spec, emit = self.spec, self.emit
        lines = 8
        across = -(-spec.columns // SQUARE)
        down = T.truncdiv(self.tokens + (SQUARE - 1), T.int32(SQUARE))
        with emit.grid((across, down), SQUARE * lines) as (right, below):
            square = emit.shared(SQUARE * (SQUARE + 2), "uint16")
            with emit.threads() as thread, repeat(emit, SQUARE // lines) as step:
                line, at = self._line(thread, step * lines)
                token, column = T.bind(below * SQUARE + line), T.bind(right * SQUARE + at)
                with T.If(T.And(token < self.tokens, column < spec.columns)), T.Then():
                    square[line * (SQUARE + 2) + at] = self.x.bits[i64(token) * spec.columns + column]
            emit.barrier()
            with emit.threads() as thread, repeat(emit, SQUARE // lines) as step:
                line, at = self._line(thread, step * lines)
                token, column = T.bind(below * SQUARE + at), T.bind(right * SQUARE + line)
                with T.If(T.And(token < self.tokens, column < spec.columns)), T.Then():
                    self.transposed.bits[i64(column) * self.pitch + token] = square[at * (SQUARE + 2) + line]

    def _line(self, thread: Expr, first: Expr) -> tuple[Expr, Expr]:
        line = first + T.truncdiv(thread, T.int32(SQUARE))
        return T.bind(line), T.bind(T.truncmod(thread, T.int32(SQUARE)))

    def _fetch_x(self, shared: Array, start: Expr, thread: Expr, block: Expr, token: Expr) -> None:
        """width x tokens, each row a column of x."""
        spec, pieces = self.spec, self.spec.tokens // PIECE
        with self._pieces(spec.width, pieces, thread) as (inside, piece):
            at = T.bind(token + piece * PIECE)
            with T.If(at < self.tokens), T.Then():
                source = i64(self.columns[block * spec.width + inside]) * self.pitch + at
                self.emit.copy_async(
                    shared, start + swizzled(inside, piece, pieces), self.transposed, source, 16
                )

    def _load_x(self, shared: Array, start: Expr, tokens: Expr, depth: Expr) -> None:
        def place(i: Expr, lane: Expr) -> Expr:
            column = depth * 16 + T.truncdiv(lane, T.int32(16)) * 8 + T.truncmod(lane, T.int32(8))
            half = T.truncmod(T.truncdiv(lane, T.int32(8)), T.int32(2))
            piece = T.truncdiv(tokens, T.int32(PIECE)) + i * 2 + half
            return start + swizzled(column, piece, self.spec.tokens // PIECE)

        with repeat(self.emit, self.of_tokens) as i:
            self.emit.load_matrix(self.a, 4 * i, shared, lambda lane: place(i, lane), 4, transposed=True)
