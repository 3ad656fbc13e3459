"""The kernel for few tokens: unstructured 16-bit weights, made in the registers of tensor cores from bits and values.

    y[t, m] = epilogue( sum_k W[m, k] x[t, k] )

With few tokens the time is that of reading the weights, so they are read as few bytes (`bitmap_format`), all of
them under way at once, and the zeros are put back on the way from shared memory to mma.m16n8k16:

    for each block of 16 `tiles` rows:                       a block of threads
        for each record of 64 `chunks` columns:              shared among the warps, which read ahead `depth`
            for each chunk: a scan over the lanes of how many values each owns
                for each of its 4 fragments: 8 elements of each lane, by two windows of 4 values
        the warps' sums are added, then the epilogue

Bytes and instructions (H200: 4.8 TB/s, 132 multiprocessors at 1.7 GHz): a dense 4096 x 4096 weight takes 7.0 us to
read; this one 3.2 us with 60 % zeros and 1.8 us with 80 %. To decode four positions takes a lane about 21
instructions, of them 4 reads of shared memory: 2.9 us and 2.3 us for the matrix, whatever its zeros. So beyond
70 % the instructions decide, which is why a popcount for each pair, which runs at an eighth of the rate, is
replaced by one addition of bytes over the lanes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

import torch
import tvm
from torch import Tensor
from tvm.script.ir_builder import tirx as T

from sparsecomp.codegen.cuda.bitmap_format import CHUNK, HALVES, LANES, MASK_PIECES, TILE, BitmapFormat
from sparsecomp.codegen.cuda.emitter import WARP, Array, Emitter, Expr, Parameter, i64
from sparsecomp.codegen.cuda.epilogues import finish, operand_parameters
from sparsecomp.codegen.cuda.kernel import Case, CudaKernel
from sparsecomp.codegen.cuda.words import (
    byte_counts,
    funnel_shift,
    nibble_counts,
    repeat,
    select_bytes,
    u32,
    word,
)

TOKENS = 8
"""Columns of a tensor core's result."""
MOST_TOKENS = 16
FRAGMENTS = 4
"""In a chunk."""
WORDS = 4
"""In a piece of 16 bytes."""
NAMES = {torch.float16: "float16", torch.bfloat16: "bfloat16"}


def selector(nibble: int) -> int:
    """Which bytes of a window of four values stand at four positions, of which those in `nibble` are kept; 3 bits
    of every 4 as prmt takes them, the two words side by side. Others take the last value, which is to be 0."""
    result, rank = 0, 0
    for position in range(4):
        value = rank if nibble >> position & 1 else 3
        rank += nibble >> position & 1
        result |= (2 * value | (2 * value + 1) << 4) << 8 * position
    return result


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
        assert fullest(starts) <= self.pieces, "the kernel was made for emptier records"
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


def fullest(starts: Tensor) -> int:
    """Pieces in the largest record."""
    return int(starts.diff().max())


class BitmapFamily:
    """Unstructured half-precision weights of linear layers, for few tokens."""

    name = "bitmap"

    def refused(self, case: Case) -> str | None:
        """See `Family`."""
        if case.layer.op != "linear":
            return "only linear layers"
        if case.dtype not in NAMES:
            return f"tensor cores take float16 and bfloat16, not {str(case.dtype).removeprefix('torch.')}"
        if case.tokens > MOST_TOKENS:
            return f"for at most {MOST_TOKENS} tokens, as reading the weights decides; here {case.tokens}"
        return None

    def kernels(self, case: Case) -> Sequence[CudaKernel]:
        """See `Family`."""
        return list(schedules(case))


def schedules(case: Case) -> Iterator[BitmapTiles]:
    """The likeliest first: a block for each multiprocessor, or as many as there are rows for."""
    dtype, token_tiles = NAMES[case.dtype], -(-min(case.tokens, MOST_TOKENS) // TOKENS)
    plain = BitmapTiles(case.rows, case.columns, dtype, case.epilogue, 0, token_tiles=token_tiles)
    rooms: dict[int, int] = {}
    for chunks, tiles, warps, depth in product((2, 1, 4), (1, 2), (8, 16, 4), (3, 2)):
        if chunks not in rooms:
            starts, _ = replace(plain, chunks=chunks).format.pack(case.matrix)
            rooms[chunks] = -(-fullest(starts) // 16) * 16  # rounded, so that layers alike share a kernel
        kernel = replace(plain, pieces=rooms[chunks], chunks=chunks, tiles=tiles, warps=warps, depth=depth)
        busy = min(4, max(1, case.gpu.multiprocessors // kernel.blocks_of_rows))
        for splits in sorted({1, min(busy, -(-kernel.format.records // warps))}, reverse=True):
            if kernel.shared_bytes <= case.gpu.shared_bytes:
                yield replace(kernel, splits=splits)


class _Writer:
    def __init__(self, spec: BitmapTiles, emit: Emitter, arrays: Sequence[Array]) -> None:
        self.spec, self.emit, self.records = spec, emit, spec.format.records
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
        warp_code = _Warp(self, ring, table, rows, token)
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


class _Warp:
    """What one warp does: its records of the block's rows, one after the other."""

    def __init__(self, block: _Writer, ring: Array, table: Array, rows: Expr, token: Expr) -> None:
        spec = block.spec
        self.block, self.emit, self.spec, self.ring, self.table = block, block.emit, spec, ring, table
        self.rows, self.token = rows, token
        registers = self.emit.registers
        self.sums = registers(4 * spec.tiles * spec.token_tiles, "float32")
        self.x = registers(2 * FRAGMENTS * spec.chunks * spec.token_tiles, "uint32")
        self.a = registers(4 * FRAGMENTS, "uint32")
        self.bits, self.counts = registers(1, "uint32"), registers(1, "uint32")
        self.before, self.total = registers(1, "uint32"), registers(1, "uint32")
        self.other = registers(1, "uint32")
        self.at = registers(1, "int32")

    def multiply(self, warp: Expr, worker: Expr) -> None:
        """The sums of the records that fall to this one of the workers."""
        emit, spec, records = self.emit, self.spec, self.block.records
        workers = spec.warps * spec.splits
        with emit.lanes():
            for i in range(4 * spec.tiles * spec.token_tiles):
                self.sums[i] = T.float32(0)
        for ahead in range(spec.depth - 1):
            self._fetch(worker + ahead * workers, self._slot(warp, ahead))
        steps = T.truncdiv(records - worker + (workers - 1), T.int32(workers))
        with T.serial(T.max(steps, 0)) as step:
            emit.wait_async(spec.depth - 2)
            emit.warp_barrier()
            ahead = step + (spec.depth - 1)
            self._fetch(worker + ahead * workers, self._slot(warp, T.truncmod(ahead, T.int32(spec.depth))))
            self._load_x(worker + step * workers)
            slot = self._slot(warp, T.truncmod(step, T.int32(spec.depth)))
            with repeat(emit, spec.tiles) as tile:
                self._record(tile, slot + tile * spec.slot)

    def leave(self, sums: Array, warp: Expr) -> None:
        """Put the sums where the block adds them."""
        spec, wide = self.spec, self.block.wide
        with self.emit.lanes() as lane:
            g, t = T.truncdiv(lane, T.int32(4)), T.truncmod(lane, T.int32(4))
            for tile in range(spec.tiles):
                for i in range(4 * spec.token_tiles):
                    row = (warp * spec.tiles + tile) * TILE + g + i % 4 // 2 * 8
                    column = 2 * t + i % 2 + i // 4 * TOKENS
                    sums[row * wide + column] = self.sums[tile * 4 * spec.token_tiles + i]

    def _slot(self, warp: Expr, number: Expr) -> Expr:
        return (warp * self.spec.depth + number) * (self.spec.tiles * self.spec.slot)

    def _fetch(self, record: Expr, slot: Expr) -> None:
        """Begin to copy a record of each tile. Where there is none the group of copies is empty."""
        spec, records, starts = self.spec, self.block.records, self.block.starts
        with self.emit.lanes() as lane:
            for tile in range(spec.tiles):
                row = T.bind(self.rows * spec.tiles + tile)
                with T.If(T.And(record < records, row < spec.format.tiles)), T.Then():
                    first = T.bind(starts[row * records + record])
                    pieces = T.bind(starts[row * records + record + 1] - first)
                    with T.serial(T.truncdiv(pieces + (WARP - 1), T.int32(WARP))) as step:
                        piece = T.bind(step * WARP + lane)
                        with T.If(piece < pieces), T.Then():
                            to = slot + tile * spec.slot + piece * WORDS
                            self.emit.copy_async(
                                self.ring, to, self.block.stream, (first + piece) * WORDS, 16
                            )
        self.emit.commit_async()

    def _load_x(self, record: Expr) -> None:
        """The columns of a record, of each lane's token and of its 16 columns of each chunk."""
        spec = self.spec
        with self.emit.lanes() as lane:
            for tile in range(spec.token_tiles):
                token = T.bind(self.token + tile * TOKENS + T.truncdiv(lane, T.int32(4)))
                for chunk in range(spec.chunks):
                    own = T.truncmod(lane, T.int32(4)) * 16
                    column = T.bind((record * spec.chunks + chunk) * CHUNK + own)
                    for half in range(2):
                        to = ((tile * spec.chunks + chunk) * 2 + half) * WORDS
                        self._load_piece(to, token, column + half * HALVES)

    def _load_piece(self, to: int, token: Expr, column: Expr) -> None:
        """Eight elements of x; 0 beyond its end, as a weight of 0 does not make up for what else may be there."""
        spec, x = self.spec, self.block.x
        inside = token < self.block.tokens
        start = T.bind(i64(token) * spec.columns + column)
        if spec.columns % HALVES == 0:
            words = x.view(i64(self.block.tokens) * (spec.columns // 2), "uint32")
            with T.If(T.And(inside, column < spec.columns)):
                with T.Then():
                    self.x.store(to, words.load(T.truncdiv(start, T.int64(2)), WORDS), WORDS)
                with T.Else():
                    self.x.store(to, T.Broadcast(T.uint32(0), WORDS), WORDS)
            return
        for pair in range(WORDS):
            both: Expr = u32(0)
            for half in range(2):
                at = 2 * pair + half
                bits = T.cast(x.bits[start + at], "uint32") << u32(16 * half)
                both = both | T.if_then_else(T.And(inside, column + at < spec.columns), bits, u32(0))
            self.x[to + pair] = both

    def _record(self, tile: Expr, slot: Expr) -> None:
        emit, spec = self.emit, self.spec
        with emit.lanes():
            self.at[0] = 2 * (slot + spec.chunks * MASK_PIECES * WORDS)  # values of 16 bits
        with repeat(emit, spec.chunks) as chunk:
            self._scan(slot + chunk * LANES)
            with emit.lanes(), repeat(emit, FRAGMENTS) as fragment:
                self._expand(fragment)
            with repeat(emit, FRAGMENTS) as fragment, repeat(emit, spec.token_tiles) as n:
                x = (n * spec.chunks + chunk) * 2 * WORDS + 2 * fragment
                sums = (tile * spec.token_tiles + n) * 4
                emit.mma(self.sums, sums, self.a, 4 * fragment, self.x, x, spec.dtype)

    def _scan(self, masks: Expr) -> None:
        """How many values the lanes before this one own, a byte for each fragment; by halves, as at most 128 fit
        twice. `total` and `other` are then those of the two halves of the warp."""
        emit = self.emit
        with emit.lanes() as lane:
            self.bits[0] = word(self.ring, masks + lane)
            self.counts[0] = nibble_counts(self.bits[0])
            self.total[0] = byte_counts(self.counts[0])
            self.before[0] = u32(0)
        for distance in (1, 2, 4, 8, 16):
            emit.shuffle_xor(self.other, 0, self.total, 0, distance)
            with emit.lanes() as lane:
                lower = T.Select((lane & distance) != 0, self.other[0], u32(0))
                self.before[0] = self.before[0] + lower
                if distance < 16:
                    self.total[0] = self.total[0] + self.other[0]

    def _expand(self, fragment: Expr) -> None:
        """A fragment's elements from bits and values; `at` moves on to the next one's values."""
        before = (self.before[0] >> u32(8 * fragment)) & u32(0xFF)
        first = T.bind(self.at[0])
        place = T.bind(first + T.cast(before, "int32"))
        for half in range(2):
            shift = u32(8 * fragment + 4 * half)
            self._window((self.bits[0] >> shift) & u32(15), place, 4 * fragment + half)
            place = T.bind(place + T.cast((self.counts[0] >> shift) & u32(15), "int32"))
        halves = [(r[0] >> u32(8 * fragment)) & u32(0xFF) for r in (self.total, self.other)]
        self.at[0] = first + T.cast(halves[0] + halves[1], "int32")

    def _window(self, kept: Expr, place: Expr, to: Expr) -> None:
        """Four elements, of which those in `kept` are so, from the values at `place`, to two registers."""
        nibble = T.bind(kept)
        start, shift = T.bind(T.shift_right(place, T.int32(1))), T.bind(u32(place) << u32(4))
        words = [T.bind(word(self.ring, start + i)) for i in range(3)]
        low, high = (funnel_shift(self.emit, words[i], words[i + 1], shift) for i in range(2))
        high = T.bind(high & T.Select(nibble == u32(15), u32(0xFFFFFFFF), u32(0xFFFF)))
        chosen = T.bind(word(self.table, T.cast(nibble, "int32")))
        self.a[to] = select_bytes(self.emit, low, high, chosen)
        self.a[to + 2] = select_bytes(self.emit, low, high, chosen >> u32(16))
