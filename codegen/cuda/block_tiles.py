"""The kernel for many tokens: blocks of 16-bit weights on tensor cores.

    y[t, m] = epilogue( sum_k x[t, k] W[m, k] )

Written by `tile_writer`. Bytes (H200): a step of 64 columns for 256 tokens and 64 rows brings 40 KB for 2.1 MFLOP, so the L2 cache's 5.5 TB/s
bound the kernel to 290 TFLOP/s; with 128 tokens to 240, with blocks of 32 x 32 and 256 tokens to 160.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

import tvm
from torch import Tensor

from sparsecomp.codegen.cuda.block_format import BlockFormat
from sparsecomp.codegen.cuda.emitter import Emitter, Parameter
from sparsecomp.codegen.cuda.epilogues import operand_parameters
from sparsecomp.codegen.cuda.half_linear import unlike_half_linear
from sparsecomp.codegen.cuda.kernel import Case, CudaKernel
from sparsecomp.codegen.cuda.tile_writer import PIECE, TileWriter, ring, threads

SIZES = (64, 32)
"""Rows and columns of blocks that have kernels."""
SUMS = range(32, 129)
"""That a thread may hold: fewer read shared memory too often, more do not fit into registers."""
MANY_SUMS = range(64, 129)
"""The same for 8 warps: for 32 ptxas takes 64 registers, so that four blocks run at once, and spills 8 bytes."""
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
    def height(self) -> int:
        return self.size

    @property
    def width(self) -> int:
        return self.size

    @property
    def block_rows(self) -> int:
        return self.format.block_rows

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
            lambda *arrays: TileWriter(self, emit, arrays).write(),
        )


class BlockFamily:
    """Half-precision weights of linear layers in square blocks, for many tokens."""

    name = "blocks"

    def refused(self, case: Case) -> str | None:
        """See `Family`."""
        if unlike := unlike_half_linear(case):
            return unlike
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
        plain = BlockTiles(case.rows, case.columns, case.dtype_name, case.epilogue, size)
        for stages, warps, tokens in product((3, 4, 2), ((4, 2), (2, 2), (4, 1), (2, 1)), (256, 128, 64)):
            kernel = replace(plain, tokens=tokens, warps=warps, stages=stages)
            fits = kernel.shared_bytes <= case.gpu.shared_bytes and tokens < 2 * case.tokens
            if fits and tokens * size // kernel.threads in (SUMS if kernel.threads < 256 else MANY_SUMS):
                yield kernel
