"""The kernel for few tokens: vectors of the dense weight, made in registers of a bitmap and the kept values.

    y[t, m] = epilogue( sum_k W[m, k] * x[t, k] )        x and y as PyTorch holds them, tokens first

With few tokens each weight is used a few times only, so the time is that of reading the weights: here as little
as they can be in float32. Lanes are columns of the weight, not tokens, so one token fills a vector too.

    for each pair of units of 16 rows, far apart:        memory delivers two streams faster than one (see STREAMS)
        for each chunk of four, two or one tokens:
            for each group of 4 rows:
                for each block of 16 columns: 4 vectors expanded, each multiplied with every token's x
            the epilogue, on vectors of 16 rows
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import tvm
from tvm.script.ir_builder import tirx as T

from sparsecomp.codegen.bitmap import BLOCK, GROUP
from sparsecomp.codegen.cpu.emit import Accumulators, Expr, i64, kernel, load, prefetch, splat
from sparsecomp.codegen.cpu.unit_finish import UnitFinish, lane_sum, operand_names, summation
from sparsecomp.codegen.machine import Machine
from sparsecomp.codegen.shares import SHARES, UNIT

STREAMS = 2
"""Units walked at once, in different parts of the values; but one where AVX2 expands, which is busier with that than
with memory and has half the registers."""
AT_ONCE = 2
"""Sums of a row under way at once, where weights are read as they lie."""
CHUNK = {16: 4, 8: 2}
"""Lanes -> most tokens that share an expanded vector: with 4 rows their sums leave half of the registers."""

# AVX-512 has a move that expands. An expansion waits for what was in the register it writes, though it overwrites all of it: five cycles each, one
# after the other, where they share a register (Zen 4). Expanding a loaded vector in place waits for nothing else,
# and only inline assembly can ask for that: LLVM would fold the load and pick any register.
EXPAND = """
define linkonce_odr <16 x float> @sparsecomp_expand{row}(<16 x float> %values, i64 %bits) #0 {{
  %group = bitcast i64 %bits to <64 x i1>
  %mask = shufflevector <64 x i1> %group, <64 x i1> poison, <16 x i32> <{lanes}>
  %result = call <16 x float> asm "vexpandps $0, $0 {{$2}} {{z}}", "=v,0,^Yk"(<16 x float> %values, <16 x i1> %mask)
  ret <16 x float> %result
}}
"""
# AVX2 has a move by places, which come from a table: 8 bytes for every mask of 8 lanes. A lane that is absent has
# a place with the sign set.
SPREAD = """
@sparsecomp_places = linkonce_odr constant [256 x i64] [{places}]
declare <8 x float> @llvm.x86.avx2.permps(<8 x float>, <8 x i32>)
declare <8 x float> @llvm.x86.avx.blendv.ps.256(<8 x float>, <8 x float>, <8 x float>)
define linkonce_odr <8 x float> @sparsecomp_spread(<8 x float> %values, i32 %mask) #0 {{
  %entry = getelementptr [256 x i64], ptr @sparsecomp_places, i64 0, i32 %mask
  %bytes = load <8 x i8>, ptr %entry
  %places = sext <8 x i8> %bytes to <8 x i32>
  %spread = call <8 x float> @llvm.x86.avx2.permps(<8 x float> %values, <8 x i32> %places)
  %signs = bitcast <8 x i32> %places to <8 x float>
  %result = call <8 x float> @llvm.x86.avx.blendv.ps.256(<8 x float> %spread, <8 x float> zeroinitializer, <8 x float> %signs)
  ret <8 x float> %result
}}
"""


def refusal(machine: Machine) -> str:
    """Why the kernel does not run there, or nothing."""
    return "" if machine.lanes in CHUNK else "needs the moves of AVX2 or AVX-512"


@dataclass(frozen=True)
class BitmapRows:
    """Everything the kernel is compiled for; calls that agree in it share the kernel."""

    rows: int
    columns: int
    epilogue: str
    dense: bool = False
    """Whether the values are whole blocks, without bits."""
    in_place: bool = False
    """Whether the values are the dense matrix itself, row after row."""
    ahead: int = 512
    """Floats of the values fetched ahead of use, in each stream; 0 for none.

    Dense weights the processor fetches ahead by itself, and is best left alone.
    """


def bitmap_rows(name: str, spec: BitmapRows, machine: Machine) -> tvm.tirx.PrimFunc:
    """Arguments: index, masks, values, balance (see `codegen/bitmap.py`), x (tokens x columns), y (tokens x rows),
    operands of the epilogue (a vector of rows, or of y's shape)...; which part of how many, number of tokens.

    Nothing is read or written outside x, y and the operands. Parts share the rows.
    """
    assert not refusal(machine), refusal(machine)
    mask = "uint64" if machine.lanes == BLOCK else "uint8"  # of four rows, or of a vector
    pointers = [("index", "int32"), ("masks", mask), ("values", "float32"), ("balance", "int32")]
    pointers += [("x", "float32"), ("y", "float32"), *operand_names(spec.epilogue)]

    def body(*arguments: Expr) -> None:
        *buffers, part, parts, tokens = arguments
        with T.attr(T.int32(0), "pragma_import_llvm", _intrinsics(machine)):
            _Emitter(spec, buffers, tokens, machine.lanes).part(part, parts)

    return kernel(name, pointers, ["part", "parts", "tokens"], body)


def _intrinsics(machine: Machine) -> str:
    if machine.lanes == BLOCK:
        lanes = [range(row * BLOCK, (row + 1) * BLOCK) for row in range(GROUP)]
        texts = [
            EXPAND.format(row=row, lanes=", ".join(f"i32 {n}" for n in lanes[row])) for row in range(GROUP)
        ]
    else:
        texts = [SPREAD.format(places=", ".join(f"i64 {_places(mask)}" for mask in range(256)))]
    return "".join(texts) + summation(machine.lanes, machine)


def _places(mask: int) -> int:
    """Where each of 8 lanes finds its value among those that the mask keeps, a byte each; -1 where it has none."""
    places = [(mask & ((1 << lane) - 1)).bit_count() if mask >> lane & 1 else 255 for lane in range(8)]
    return int.from_bytes(bytes(places), "little", signed=True)


class _Emitter:
    def __init__(self, spec: BitmapRows, buffers: Sequence[Expr], tokens: Expr, lanes: int) -> None:
        self.spec, self.tokens, self.lanes = spec, tokens, lanes
        self.streams = STREAMS if lanes == BLOCK or spec.dense or spec.in_place else 1
        self.index, self.masks, self.values, self.balance, self.x, y, *operands = buffers
        self.unit_finish = UnitFinish(spec.epilogue, spec.rows, y, operands)

    def part(self, part: Expr, parts: Expr) -> None:
        """Units of the part, the first half along with the second. Where they are odd in number one is computed
        twice, to the same result: that costs less than code of its own."""
        low = T.bind(self.balance[T.truncdiv(part * SHARES, parts)])
        high = T.bind(self.balance[T.truncdiv((part + 1) * SHARES, parts)])
        steps = T.bind(T.truncdiv(high - low + (self.streams - 1), T.int32(self.streams)))
        most = CHUNK[self.lanes]
        chunks = T.bind(
            T.truncdiv(self.tokens + most // 4, T.int32(most))
        )  # three tokens are four, the last one twice
        left = T.bind(T.max(self.tokens - chunks * most, 0))
        with T.serial(steps) as step:
            units = [T.bind(T.min(low + step + steps * s, high - 1)) for s in range(self.streams)]
            with T.serial(chunks) as chunk:
                for unit in units:
                    _Chunk(self, [unit], T.bind(chunk * most), most).emit()
            for size in range(most // 2, 0, -1):
                with T.If(left == size), T.Then():
                    _Chunk(self, units, T.bind(chunks * most), size).emit()


class _Chunk:
    """Some units for some tokens. Past the last token it is repeated."""

    def __init__(self, emitter: _Emitter, units: Sequence[Expr], first: Expr, size: int) -> None:
        self.emitter, self.spec, self.units, self.first, self.size = emitter, emitter.spec, units, first, size
        self.lanes = emitter.lanes
        self.parts = range(0, BLOCK, self.lanes)
        """Columns of a block at which its vectors begin."""
        self.whole, self.rest = divmod(self.spec.columns, BLOCK)
        self.blocks = self.whole + bool(self.rest)

    def emit(self) -> None:
        count = len(self.units)
        self.sums = T.alloc_buffer((count * self.size * UNIT,), "float32")
        self.rows = T.alloc_buffer((count,), "int64")
        self.positions = [T.alloc_buffer((1,), "int64") for _ in self.units]
        self.starts = [T.bind(self.token(t) * self.spec.columns) for t in range(self.size)]
        for s, unit in enumerate(self.units):
            T.buffer_store(self.rows, i64(unit) * UNIT, [s])
            if not self.spec.in_place:
                T.buffer_store(self.positions[s], i64(self.emitter.index[unit]), [0])
        if self.spec.in_place:
            with T.serial(T.int32(UNIT)) as row:
                self.line(row)
        else:
            with T.serial(T.int32(UNIT // GROUP)) as group:
                self.group(group)
        with T.serial(T.int32(count)) as s, T.serial(T.int32(self.size)) as t:
            at = T.bind((s * self.size + t) * UNIT)
            self.emitter.unit_finish.emit(self.sums, at, T.bind(self.rows[s]), self.token(t))

    def token(self, t: Expr) -> Expr:
        return T.bind(i64(T.min(self.first + t, self.emitter.tokens - 1)))

    # Sums ----------------------------------------------------------------------------------------------

    def group(self, group: Expr) -> None:
        """Sums of 4 rows of each unit."""
        sums = Accumulators(len(self.units) * GROUP * self.size, self.lanes)
        for i in range(len(self.units) * GROUP * self.size):
            sums[i] = splat(0.0, self.lanes)
        masks = [T.bind((i64(unit) * (UNIT // GROUP) + i64(group)) * self.blocks) for unit in self.units]
        with T.serial(T.int32(self.whole)) as block:
            self.block(i64(block), masks, sums, BLOCK)
        if self.rest:
            self.block(T.int64(self.whole), masks, sums, self.rest)
        for i in range(len(self.units) * self.size):
            for r in range(GROUP):
                total = lane_sum(sums[i * GROUP + r], self.lanes)
                T.buffer_store(self.sums, total, [i * UNIT + group * GROUP + r])

    def block(self, block: Expr, masks: Sequence[Expr], sums: Accumulators, columns: int) -> None:
        x = [self.load_block(self.emitter.x, start + block * BLOCK, columns) for start in self.starts]
        for s, mask in enumerate(masks):
            for r, row in enumerate(self.weights(s, mask + block)):
                for t in range(self.size):
                    i = (s * self.size + t) * GROUP + r
                    for part, weights in enumerate(row):
                        sums[i] = sums[i] + weights * x[t][part]

    def line(self, row: Expr) -> None:
        """Sums of one row of each unit of a matrix that is read where it lies: memory is walked in one direction,
        and several sums are under way at once. Past the last row it is repeated."""
        count, columns = len(self.units) * self.size, self.spec.columns
        sums = Accumulators(count * AT_ONCE, self.lanes)
        for i in range(count * AT_ONCE):
            sums[i] = splat(0.0, self.lanes)
        last = T.int64(self.spec.rows - 1)
        lines = [T.bind(T.min(i64(unit) * UNIT + i64(row), last) * columns) for unit in self.units]
        turns, single = divmod(self.whole, AT_ONCE)
        with T.serial(T.int32(turns)) as turn:
            for i in range(AT_ONCE):
                self.multiply(T.bind(i64(turn) * AT_ONCE + i), lines, sums, i, BLOCK)
        for i in range(single):
            self.multiply(T.int64(turns * AT_ONCE + i), lines, sums, i, BLOCK)
        if self.rest:
            self.multiply(T.int64(self.whole), lines, sums, 0, self.rest)
        for s in range(count):
            for i in range(1, AT_ONCE):
                sums[s * AT_ONCE] = sums[s * AT_ONCE] + sums[s * AT_ONCE + i]
            total = lane_sum(sums[s * AT_ONCE], self.lanes)
            T.buffer_store(self.sums, total, [s * UNIT + row])

    def multiply(
        self, block: Expr, lines: Sequence[Expr], sums: Accumulators, which: int, columns: int
    ) -> None:
        """One block of each line with every token's x."""
        values, column = self.emitter.values, T.bind(block * BLOCK)
        x = [self.load_block(self.emitter.x, start + column, columns) for start in self.starts]
        for s, line in enumerate(lines):
            at = T.bind(line + column)
            if self.spec.ahead:
                prefetch(values, at + self.spec.ahead)
            row = self.load_block(values, at, columns)
            for t in range(self.size):
                i = (s * self.size + t) * AT_ONCE + which
                for part, weights in enumerate(row):
                    sums[i] = sums[i] + weights * x[t][part]

    def weights(self, s: int, mask: Expr) -> list[list[Expr]]:
        """The vectors of a block, of 4 rows, and the position moved behind it."""
        values, at = self.emitter.values, T.bind(self.positions[s][0])
        if self.spec.ahead:
            prefetch(values, at + self.spec.ahead)
        if self.spec.dense:
            T.buffer_store(self.positions[s], at + GROUP * BLOCK, [0])
            return [self.load_block(values, at + r * BLOCK, BLOCK) for r in range(GROUP)]
        vectors, behind = self.expanded(at, mask) if self.lanes == BLOCK else self.spread(at, mask)
        T.buffer_store(self.positions[s], behind, [0])
        count = len(self.parts)
        return [vectors[r * count : (r + 1) * count] for r in range(GROUP)]

    def expanded(self, at: Expr, mask: Expr) -> tuple[list[Expr], Expr]:
        """The vectors of 16 lanes, and the position behind them."""
        bits, found = T.bind(self.emitter.masks[mask]), []
        for row in range(GROUP):
            # Bits of the rows before, moved to the top so that those of the others fall out.
            before = i64(T.popcount(bits << T.uint64((GROUP - row) * BLOCK))) if row else T.int64(0)
            vector = load(self.emitter.values, at + before, BLOCK)
            found.append(T.bind(T.call_extern("float32x16", f"sparsecomp_expand{row}", vector, bits)))
        return found, at + i64(T.popcount(bits))

    def spread(self, at: Expr, mask: Expr) -> tuple[list[Expr], Expr]:
        """The vectors of 8 lanes, and the position behind them. A mask is loaded for each: that takes fewer steps
        than to cut it out of a longer one."""
        count, found = GROUP * len(self.parts), []
        for number in range(count):
            bits = T.bind(T.cast(self.emitter.masks[mask * count + number], "int32"))
            vector = load(self.emitter.values, at, self.lanes)
            found.append(T.bind(T.call_extern("float32x8", "sparsecomp_spread", vector, bits)))
            at = T.bind(at + i64(T.popcount(bits)))
        return found, at

    def load_block(self, buffer: Expr, start: Expr, columns: int) -> list[Expr]:
        """The vectors of a block of which there are so many columns."""
        return [T.bind(self.load_partly(buffer, start + part, columns - part)) for part in self.parts]

    def load_partly(self, buffer: Expr, start: Expr, columns: int) -> Expr:
        """The first columns of a vector, and zeros: the other lanes of a masked load are undefined."""
        if columns >= self.lanes:
            return load(buffer, start, self.lanes)
        if columns <= 0:
            return splat(0.0, self.lanes)
        lanes = T.Ramp(T.int32(0), T.int32(1), self.lanes)
        inside = lanes < T.Broadcast(T.int32(columns), self.lanes)
        loaded = T.masked_load(f"float32x{self.lanes}", buffer, T.Ramp(start, T.int64(1), self.lanes), inside)
        return T.Select(inside, loaded, splat(0.0, self.lanes))
