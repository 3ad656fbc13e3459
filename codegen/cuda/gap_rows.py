"""The kernel for one or two tokens: unstructured 16-bit weights, multiplied without tensor cores.

    y[t, m] = epilogue( sum_k W[m, k] x[t, k] )

    for each 4 `warps` rows: a block of threads, x in shared memory as float32
        each lane walks its entries (`gap_format`): the column moves by the gap, the value times x there is added
        the sums of a row's 8 lanes are added, then the epilogue

Bytes and instructions (H200, as in `bitmap_tiles`): an entry takes 10 PTX instructions at most, so a
4096 x 4096 weight with 80 % of zeros 1.2 us, and 1.8 us to read. x is read at 32 unrelated places at once, of which
3.5 fall into one bank on average: 1.7 us. With 60 % of zeros all three double. Each further token would
take as long again, which is why more than two are left to tensor cores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

import tvm
from torch import Tensor
from tvm.script.ir_builder import tirx as T

from sparsecomp.codegen.cuda.emitter import WARP, Array, Emitter, Expr, Parameter, i64
from sparsecomp.codegen.cuda.epilogues import finish, operand_parameters
from sparsecomp.codegen.cuda.gap_format import LANES, ROWS, STEP, GapFormat
from sparsecomp.codegen.cuda.half_linear import unlike_half_linear
from sparsecomp.codegen.cuda.kernel import Case, CudaKernel
from sparsecomp.codegen.cuda.serial_emitter import half_of
from sparsecomp.codegen.cuda.words import repeat, u32, word

MOST_TOKENS = 2
MOST_KEPT = 0.7
"""Of the weight: 2.5 bytes for each value, and what fills up, against 2 for each element."""
WORDS = STEP // 2
"""Of the values of a step."""


@dataclass(frozen=True)
class GapRows:
    """Sizes and schedule; kernels that are equal share their code."""

    rows: int
    columns: int
    dtype: str
    epilogue: str
    warps: int = 4
    ahead: int = 4
    """Steps whose loads are under way together."""

    @property
    def label(self) -> str:
        return f"gaps {ROWS * self.warps} rows"

    @property
    def format(self) -> GapFormat:
        return GapFormat(self.rows, self.columns)

    @property
    def shared_bytes(self) -> int:
        return 4 * self.columns

    def pack(self, matrix: Tensor) -> tuple[Tensor, ...]:
        return self.format.pack(matrix)

    def unpack(self, operands: Sequence[Tensor]) -> Tensor:
        return self.format.unpack(*operands)

    def workspace(self, tokens: int) -> int:
        return 0

    def function(self, emit: Emitter) -> tvm.tirx.PrimFunc:
        y = ("tokens", self.rows)
        return emit.function(
            [
                Parameter("x", self.dtype, ("tokens", self.columns)),
                Parameter("starts", "int32", (self.format.warps + 1,)),
                Parameter("first", "int32", (self.format.warps * WARP,)),
                Parameter("gaps", "int32", ("words",)),
                Parameter("values", self.dtype, ("entries",)),
                *operand_parameters(self.epilogue, self.dtype, self.rows, y),
                Parameter("y", self.dtype, y),
            ],
            lambda *arrays: _Writer(self, emit, arrays).write(),
        )


class GapFamily:
    """Unstructured half-precision weights of linear layers, for one or two tokens."""

    name = "gaps"

    def refused(self, case: Case) -> str | None:
        """See `Family`."""
        if unlike := unlike_half_linear(case):
            return unlike
        if case.tokens > MOST_TOKENS:
            return f"for at most {MOST_TOKENS} tokens, as each takes its time anew; here {case.tokens}"
        kept = case.kept
        if kept > MOST_KEPT:
            return f"{kept:.0%} of the weight are not zero: with its gaps it would not take less to read than dense"
        if 4 * case.columns > case.gpu.shared_bytes:
            return "x does not fit into shared memory"
        return None

    def kernels(self, case: Case) -> Sequence[CudaKernel]:
        """See `Family`."""
        plain = GapRows(case.rows, case.columns, case.dtype_name, case.epilogue)
        return [replace(plain, warps=w, ahead=a) for a, w in product((4, 2, 8), (4, 8, 2))]


class _Writer:
    def __init__(self, spec: GapRows, emit: Emitter, arrays: Sequence[Array]) -> None:
        self.spec, self.emit = spec, emit
        self.x, self.starts, self.first, self.gaps, self.values, *self.operands, self.y = arrays

    def write(self) -> None:
        spec, emit = self.spec, self.emit
        threads = spec.warps * WARP
        blocks = -(-spec.format.warps // spec.warps)
        with emit.grid((blocks, emit.sizes["tokens"]), threads) as (block, token):
            x = emit.shared(spec.columns, "float32")
            with emit.threads() as thread, T.serial(-(-spec.columns // threads)) as step:
                column = T.bind(step * threads + thread)
                with T.If(column < spec.columns), T.Then():
                    x[column] = emit.load(self.x, i64(token) * spec.columns + column)
            emit.barrier()
            with emit.warps() as warp:
                self._rows(x, T.bind(block * spec.warps + warp), token)

    def _rows(self, x: Array, warp: Expr, token: Expr) -> None:
        """The sums of a warp's rows, and what becomes of them."""
        emit = self.emit
        self.sum, self.column = emit.registers(1, "float32"), emit.registers(1, "int32")
        self.words = emit.registers(self.spec.ahead * (WORDS + 1), "uint32")
        other = emit.registers(1, "float32")
        with emit.lanes() as lane:
            self.sum[0] = T.float32(0)
            with T.If(warp < self.spec.format.warps), T.Then():
                self._walk(x, warp, lane)
        for distance in (1, 2, 4):
            emit.shuffle_xor(other, 0, self.sum, 0, distance)
            with emit.lanes():
                self.sum[0] = self.sum[0] + other[0]
        with emit.lanes() as lane:
            row = T.bind(warp * ROWS + T.truncdiv(lane, T.int32(LANES)))
            mine = T.truncmod(lane, T.int32(LANES)) == 0
            with T.If(T.And(mine, row < self.spec.rows)), T.Then():
                place = T.bind(i64(token) * self.spec.rows + row)
                value = finish(emit, T.bind(self.sum[0]), self.spec.epilogue, self.operands, row, place)
                emit.store(self.y, place, value)

    def _walk(self, x: Array, warp: Expr, lane: Expr) -> None:
        """All steps of a lane, some at once so that their loads are under way together."""
        ahead = self.spec.ahead
        self.column[0] = self.first[warp * WARP + lane]
        begin = T.bind(self.starts[warp])
        steps = T.bind(self.starts[warp + 1] - begin)
        values = self.values.view(T.truncdiv(self.values.buffer.shape[0], 2), "uint32")
        with T.serial(T.truncdiv(steps + (ahead - 1), T.int32(ahead))) as group:
            with repeat(self.emit, ahead) as i:
                # A step too many is the last one again, with gaps of 0 and a value that is not added.
                step = T.bind(T.min(group * ahead + i, steps - 1))
                place = T.bind((begin + step) * WARP + lane)
                self.words.store(i * WORDS, values.load(place * WORDS, WORDS), WORDS)
                self.words[ahead * WORDS + i] = word(self.gaps, place)
            with (
                repeat(self.emit, ahead) as i,
                T.If(group * ahead + i < steps),
                T.Then(),
                repeat(self.emit, STEP) as entry,
            ):
                self._add(x, i, entry)

    def _add(self, x: Array, step: Expr, entry: Expr) -> None:
        """One entry of a step."""
        gap = (self.words[self.spec.ahead * WORDS + step] >> u32(4 * entry)) & u32(15)
        self.column[0] = self.column[0] + T.cast(gap, "int32")
        pair = self.words[step * WORDS + T.truncdiv(entry, 2)]
        value = half_of(pair, T.truncmod(entry, 2), self.spec.dtype)
        self.sum[0] = self.sum[0] + value * x[self.column[0]]
