"""Softmax attention of one sequence to itself, features first.

    Y[h, d, i] = sum_j softmax_j( scale * sum_f Q[h, f, i] * K[h, f, j] + mask[h, i, j] ) * V[h, d, j]

Queries are the lanes and keys are walked one by one, so a softmax needs no reduction across a register, and
any number of keys no mask:

    for each head and chunk of V vectors of queries:
        Q * scale into a scratch of its own          [size x V vectors]: 128 tokens apart, rows evict each other
        for each R keys: R * V scores in registers   [keys x V vectors], and the largest score so far
        exponentials, and their sum
        for each R features: R * V sums in registers over all keys; divide, store
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import tvm
from tvm.script.ir_builder import tirx as T

from sparsecomp.codegen.cpu.emit import Accumulators, Expr, i64, kernel, load, share, splat, store, workspace
from sparsecomp.codegen.cpu.epilogues import at_least, exponential
from sparsecomp.codegen.machine import Machine
from sparsecomp.geometry import FLOAT

LOWEST = -3.4028234663852886e38
"""Of float32. A largest score that starts here stays finite where every score is -inf: such rows give 0."""
SCORES_BYTES = 256 * 1024
"""Most that the scores of a chunk may take: they are read once for every R features, from the L2 cache."""


@dataclass(frozen=True)
class AttentionKernel:
    heads: int
    size: int
    """Features of a head of q and k."""
    value_size: int
    """Features of a head of v and y."""
    tokens: int
    tile: int
    steps: tuple[int, int, int, int]
    """Distance between tiles of q, k, v and y, in floats."""
    scale: float
    causal: bool
    """Whether a query sees no key after it."""
    mask: tuple[int, int, int] | None
    """Distance between heads, queries and keys of a mask that is added to the scores; 0 broadcasts."""
    key_heads: int
    """Heads of k and v; each serves as many heads of q as there are for it."""

    def register_tile(self, machine: Machine) -> tuple[int, int]:
        """R keys or features, V vectors of queries: R * V sums, V vectors and one broadcast fit the registers."""
        vectors = 4 if machine.registers >= 32 else 2
        width = machine.lanes * FLOAT
        while vectors > 1 and (
            self.tokens * vectors * width > SCORES_BYTES or self.tile % (vectors * machine.lanes)
        ):
            vectors //= 2
        return machine.registers // 2 // vectors, vectors


def attention(name: str, spec: AttentionKernel, machine: Machine) -> tvm.tirx.PrimFunc:
    """Arguments q, k, v, mask, y (all at position 0, 0; the mask's of this sequence); which part of how many.
    Parts share the heads and chunks of queries. Columns of y past the last token, up to a whole vector, are
    stored too; they are finite where k and v are."""
    pointers = [(label, "float32") for label in ("q", "k", "v", "mask", "y")]
    rows, vectors = spec.register_tile(machine)
    width = vectors * machine.lanes
    assert spec.tile % rows == 0, "a block of keys crosses tiles"
    assert spec.tile % width == 0, "a chunk of queries crosses tiles"
    whole, rest = divmod(spec.tokens, width)
    chunks = whole + (rest > 0)

    def body(*arguments: Expr) -> None:
        *buffers, part, parts = arguments
        low, high = share(spec.heads * chunks, part, parts)
        with workspace(spec.size * width) as queries, workspace(spec.tokens * width) as scores:
            emit = _Emitter(spec, machine, [*buffers, queries, scores])
            with T.serial(high - low) as relative:
                unit = T.bind(low + relative)
                head, chunk = _unit(unit, spec.heads, chunks, alone=parts == 1)
                first = T.bind(chunk * width)
                _either(
                    chunk < whole if whole and rest else bool(whole),
                    lambda: emit.chunk(head, first, width),
                    lambda: emit.chunk(head, first, rest),
                )

    return kernel(name, pointers, ["part", "parts"], body)


def _unit(unit: Expr, heads: int, chunks: int, alone: Expr) -> tuple[Expr, Expr]:
    """Head and chunk. Whoever does all stays with a head, whose keys are then at hand; whoever does a part stays
    with the queries that it made itself."""
    by_head, by_chunk = T.truncdiv(unit, T.int32(chunks)), T.truncdiv(unit, T.int32(heads))
    head = T.bind(T.if_then_else(alone, by_head, unit - by_chunk * heads))
    return head, T.bind(T.if_then_else(alone, unit - by_head * chunks, by_chunk))


def _either(condition: Expr, yes: Callable[[], None], no: Callable[[], None]) -> None:
    if isinstance(condition, bool):
        (yes if condition else no)()
        return
    with T.If(condition):
        with T.Then():
            yes()
        with T.Else():
            no()


@dataclass(frozen=True)
class _Chunk:
    """Some queries of one head."""

    head: Expr
    key_head: Expr
    first: Expr
    count: int
    vectors: int
    """Vectors that hold them; the last may be partly filled."""


class _Emitter:
    def __init__(self, spec: AttentionKernel, machine: Machine, buffers: list[Expr]) -> None:
        self.spec, self.lanes = spec, machine.lanes
        self.rows, _ = spec.register_tile(machine)
        self.q, self.k, self.v, self.mask, self.y, self.queries, self.scores = buffers

    def chunk(self, head: Expr, first: Expr, count: int) -> None:
        spec, rows = self.spec, self.rows
        key_head = T.bind(i64(T.truncdiv(head, T.int32(spec.heads // spec.key_heads))))
        chunk = _Chunk(head, key_head, first, count, -(-count // self.lanes))
        self.scale_queries(chunk)
        largest = self.registers(chunk, 1, LOWEST)
        keys = T.bind(T.min(first + count, T.int32(spec.tokens))) if spec.causal else T.int32(spec.tokens)
        whole, rest = divmod(spec.tokens, rows)
        blocks = T.min(T.truncdiv(keys + (rows - 1), T.int32(rows)), T.int32(whole))
        with T.serial(blocks if spec.causal else T.int32(whole)) as block:
            self.score(chunk, rows, T.bind(block * rows), largest)
        if rest:
            self.score(chunk, rest, T.int32(whole * rows), largest)
        factor = self.exponentials(chunk, keys, largest)
        whole, rest = divmod(spec.value_size, rows)
        with T.serial(T.int32(whole)) as block:
            self.weigh(chunk, rows, T.bind(i64(block) * rows), keys, factor)
        if rest:
            self.weigh(chunk, rest, T.int64(whole * rows), keys, factor)

    def registers(self, chunk: _Chunk, rows: int, value: float) -> Accumulators:
        registers = Accumulators(rows * chunk.vectors, self.lanes)
        for i in range(rows * chunk.vectors):
            registers[i] = splat(value, self.lanes)
        return registers

    def column(self, token: Expr, step: int) -> Expr:
        """Where feature 0 of a token lies."""
        tile = T.int32(self.spec.tile)
        return T.bind(i64(T.truncdiv(token, tile)) * step + i64(T.truncmod(token, tile)))

    def vector(self, chunk: _Chunk, row: Expr, vector: int) -> Expr:
        """Where a vector of a scratch buffer lies: rows of the chunk's vectors, without gaps."""
        return T.bind((i64(row) * chunk.vectors + vector) * self.lanes)

    def scale_queries(self, chunk: _Chunk) -> None:
        """Queries past the last token become 0, whatever lies there."""
        spec, lanes = self.spec, self.lanes
        column = self.column(chunk.first, spec.steps[0])
        with T.serial(T.int32(spec.size)) as feature:
            row = T.bind(i64(chunk.head * spec.size + feature) * spec.tile + column)
            for v in range(chunk.vectors):
                q = T.bind(load(self.q, row + v * lanes, lanes) * splat(spec.scale, lanes))
                if chunk.count < (v + 1) * lanes:
                    position, count = T.Ramp(v * lanes, 1, lanes), T.Broadcast(chunk.count, lanes)
                    q = T.Select(position < count, q, splat(0.0, lanes))
                store(self.queries, q, self.vector(chunk, feature, v), lanes)

    def score(self, chunk: _Chunk, rows: int, key: Expr, largest: Accumulators) -> None:
        """Scores of `rows` keys from `key` on, which lie in one tile."""
        spec, lanes, vectors = self.spec, self.lanes, chunk.vectors
        sums = self.registers(chunk, rows, 0.0)
        column = T.bind(chunk.key_head * (spec.size * spec.tile) + self.column(key, spec.steps[1]))
        with T.serial(T.int32(spec.size)) as feature:
            start = T.bind(column + i64(feature) * spec.tile)
            q = [T.bind(load(self.queries, self.vector(chunk, feature, v), lanes)) for v in range(vectors)]
            for r in range(rows):
                k = T.bind(splat(self.k[start + r], lanes))
                for v in range(vectors):
                    sums[r * vectors + v] = sums[r * vectors + v] + k * q[v]
        for r in range(rows):
            this = T.bind(key + r)
            for v in range(vectors):
                i = r * vectors + v
                if spec.mask is not None:
                    sums[i] = sums[i] + self.masked(chunk, spec.mask, v, this)
                if spec.causal:
                    seen = T.Ramp(chunk.first + v * lanes, 1, lanes) >= T.Broadcast(this, lanes)
                    sums[i] = T.Select(seen, sums[i], splat(float("-inf"), lanes))
                largest[v] = T.max(largest[v], sums[i])
                store(self.scores, sums[i], self.vector(chunk, this, v), lanes)

    def masked(self, chunk: _Chunk, strides: tuple[int, int, int], vector: int, key: Expr) -> Expr:
        """What the mask adds to one vector of scores; queries past the last token get what the last one gets."""
        of_head, of_query, of_key = strides
        lanes, base = self.lanes, T.bind(i64(chunk.head) * of_head + i64(key) * of_key)
        if not of_query:
            return splat(self.mask[base], lanes)
        start, low = T.bind(base + i64(chunk.first) * of_query), vector * lanes
        if chunk.count >= low + lanes:
            return load(self.mask, start + low * of_query, lanes, stride=of_query)
        last = T.Broadcast(T.int64(chunk.count - 1), lanes)
        query = T.min(T.Ramp(T.int64(low), T.int64(1), lanes), last)
        return self.mask[T.Broadcast(start, lanes) + query * T.Broadcast(T.int64(of_query), lanes)]

    def exponentials(self, chunk: _Chunk, keys: Expr, largest: Accumulators) -> Accumulators:
        """Scores become exponentials; returns 1 / their sum, or a finite number where that is 0."""
        lanes, vectors = self.lanes, chunk.vectors
        total, score = self.registers(chunk, 1, 0.0), Accumulators(2 * vectors, lanes)
        with T.serial(keys) as key:
            for v in range(vectors):
                # Through registers: TVM's simplifier writes an expression out at each of its uses.
                start = self.vector(chunk, key, v)
                score[v] = load(self.scores, start, lanes) - largest[v]
                score[vectors + v] = exponential(score[v], lanes)
                total[v] = total[v] + score[vectors + v]
                store(self.scores, score[vectors + v], start, lanes)
        for v in range(vectors):
            total[v] = splat(1.0, lanes) / at_least(total[v], 1e-30, lanes)
        return total

    def weigh(self, chunk: _Chunk, rows: int, feature: Expr, keys: Expr, factor: Accumulators) -> None:
        """`rows` features of y from `feature` on."""
        spec, lanes, vectors = self.spec, self.lanes, chunk.vectors
        tile, sums = spec.tile, self.registers(chunk, rows, 0.0)
        row = T.bind((chunk.key_head * spec.value_size + feature) * tile)
        with T.serial(T.truncdiv(keys + (tile - 1), T.int32(tile))) as number:
            start = T.bind(row + i64(number) * spec.steps[2])
            with T.serial(T.min(keys - number * tile, T.int32(tile))) as within:
                key = T.bind(number * tile + within)
                p = [T.bind(load(self.scores, self.vector(chunk, key, v), lanes)) for v in range(vectors)]
                for r in range(rows):
                    value = T.bind(splat(self.v[start + i64(within) + r * tile], lanes))
                    for v in range(vectors):
                        sums[r * vectors + v] = sums[r * vectors + v] + value * p[v]
        target = T.bind((i64(chunk.head) * spec.value_size + feature) * tile)
        target = T.bind(target + self.column(chunk.first, spec.steps[3]))
        for r in range(rows):
            for v in range(vectors):
                store(self.y, sums[r * vectors + v] * factor[v], target + r * tile + v * lanes, lanes)
