"""What one warp of `bitmap_tiles` does: records of its block's rows, one after the other, to sums in registers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tvm.script.ir_builder import tirx as T

from sparsecomp.codegen.cuda.bitmap_format import CHUNK, HALVES, LANES, MASK_PIECES, TILE
from sparsecomp.codegen.cuda.emitter import WARP, Array, Emitter, Expr, i64
from sparsecomp.codegen.cuda.words import (
    byte_counts,
    funnel_shift,
    nibble_counts,
    repeat,
    select_bytes,
    u32,
    word,
)

if TYPE_CHECKING:
    from sparsecomp.codegen.cuda.bitmap_tiles import BitmapTiles

TOKENS = 8
"""Columns of a tensor core's result."""
FRAGMENTS = 4
"""In a chunk."""
WORDS = 4
"""In a piece of 16 bytes."""


def selector(nibble: int) -> int:
    """Which bytes of a window of four values stand at four positions, of which those in `nibble` are kept; 3 bits
    of every 4 as prmt takes them, the two words side by side. Others take the last value, which is to be 0."""
    result, rank = 0, 0
    for position in range(4):
        value = rank if nibble >> position & 1 else 3
        rank += nibble >> position & 1
        result |= (2 * value | (2 * value + 1) << 4) << 8 * position
    return result


@dataclass(frozen=True, eq=False)
class Block:
    """What all warps of a block share: operands, the number of its tiles of rows, its first token."""

    x: Array
    starts: Array
    stream: Array
    tokens: Expr
    """Of x."""
    rows: Expr
    token: Expr


class BitmapWarp:
    """What one warp does: its records of the block's rows, one after the other."""

    def __init__(self, spec: BitmapTiles, emit: Emitter, of_block: Block, ring: Array, table: Array) -> None:
        self.spec, self.emit, self.block, self.ring, self.table = spec, emit, of_block, ring, table
        registers = self.emit.registers
        self.sums = registers(4 * spec.tiles * spec.token_tiles, "float32")
        self.x = registers(2 * FRAGMENTS * spec.chunks * spec.token_tiles, "uint32")
        self.a = registers(4 * FRAGMENTS, "uint32")
        self.bits, self.counts = registers(1, "uint32"), registers(1, "uint32")
        self.before, self.total = registers(1, "uint32"), registers(1, "uint32")
        self.other, self.sizes = registers(1, "uint32"), registers(2, "uint32")
        self.at = registers(1, "int32")

    def multiply(self, warp: Expr, worker: Expr) -> None:
        """The sums of the records that fall to this one of the workers."""
        emit, spec, records = self.emit, self.spec, self.spec.format.records
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
        spec, wide = self.spec, self.spec.token_tiles * TOKENS
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
        spec, records, starts = self.spec, self.spec.format.records, self.block.starts
        with self.emit.lanes() as lane:
            for tile in range(spec.tiles):
                row = T.bind(self.block.rows * spec.tiles + tile)
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
                token = T.bind(self.block.token + tile * TOKENS + T.truncdiv(lane, T.int32(4)))
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
            self.at[0] = 4 * (slot + spec.chunks * MASK_PIECES * WORDS)  # in bytes, as all places are
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
                else:
                    for odd in (0, 1):
                        halves = [(r[0] >> u32(8 * odd)) & u32(0x00FF00FF) for r in (self.total, self.other)]
                        self.sizes[odd] = (halves[0] + halves[1]) << u32(1)

    def _expand(self, fragment: Expr) -> None:
        """A fragment's elements from bits and values; `at` moves on to the next one's values."""
        first = T.bind(self.at[0])
        place = T.bind(first + _doubled(self.before[0], 8 * fragment, 0xFF))
        for half in range(2):
            shift = 8 * fragment + 4 * half
            self._window(_quadrupled(self.bits[0], shift), place, 4 * fragment + half)
            place = T.bind(place + _doubled(self.counts[0], shift, 0xF))
        size = self.sizes[T.truncmod(fragment, 2)] >> u32(16 * T.truncdiv(fragment, 2))
        self.at[0] = first + T.cast(size & u32(0xFFFF), "int32")

    def _window(self, kept: Expr, place: Expr, to: Expr) -> None:
        """Four elements, of which those in `kept / 4` are so, from the values at `place`, to two registers."""
        quadruple = T.bind(kept)
        start, shift = T.bind(T.shift_right(place, T.int32(2))), T.bind(u32(place) << u32(3))
        words = [T.bind(word(self.ring, start + i)) for i in range(3)]
        low, high = (funnel_shift(self.emit, words[i], words[i + 1], shift) for i in range(2))
        high = T.bind(high & T.Select(quadruple == u32(60), u32(0xFFFFFFFF), u32(0xFFFF)))
        chosen = T.bind(word(self.table, T.cast(quadruple >> u32(2), "int32")))
        self.a[to] = select_bytes(self.emit, low, high, chosen)
        self.a[to + 2] = select_bytes(self.emit, low, high, chosen >> u32(16))


def _doubled(word: Expr, shift: Expr, mask: int) -> Expr:
    """Twice the number that is masked in the shifted word: bytes of so many values."""
    return T.cast(((word >> u32(shift)) << u32(1)) & u32(2 * mask), "int32")


def _quadrupled(word: Expr, shift: Expr) -> Expr:
    """Four times a nibble: the place of a word, which is then not shifted again."""
    return ((word >> u32(shift)) << u32(2)) & u32(60)
