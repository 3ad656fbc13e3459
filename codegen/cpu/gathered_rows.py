"""The one kernel family: gathered-row SpMM.

    Y[m, n] = epilogue( sum_i value[i] * X[offset[i] + n] )        for the i that belong to row m

A linear layer's offsets are multiples of the feature plane; a convolution's reach a channel and a tap on a
padded plane, so there is no im2col. Patterns differ only in how many rows share a list of offsets.

    for each chunk of V vectors of columns:
        for each pass of `schedule.columns` weight columns:      X rows of a pass stay in L1
            for each group of R rows:
                R * V sums in registers; for each (values, offset) in the group's list: R * V multiply-adds
"""

from __future__ import annotations

from dataclasses import dataclass

import tvm
from tvm.script.ir_builder import tirx as T

from sparsecomp.codegen.cpu.emit import Accumulators, Expr, i64, kernel, load, prefetch, share, splat, store
from sparsecomp.codegen.cpu.finish import Finish, operand_pointers
from sparsecomp.codegen.machine import Machine
from sparsecomp.codegen.shares import SHARES, WIDE
from sparsecomp.pattern import RowBlocks
from sparsecomp.region import Schedule


@dataclass(frozen=True)
class RowsKernel:
    """Everything a gathered-row kernel is compiled for; calls that agree in it share the kernel."""

    groups: int
    """Blocks of rows."""
    columns: int
    """Length of the list that all rows share, or 0."""
    passes: int
    pattern: RowBlocks
    schedule: Schedule
    vectors: int
    """Vectors of columns in an item, or 0 where that is known only at run time (tokens)."""
    target_plane: int
    operand_planes: tuple[int, ...]
    epilogue: str
    masked: bool
    """Whether padding columns are to be stored as zero."""

    @property
    def is_wide(self) -> bool:
        return self.vectors >= WIDE

    def chunks(self) -> tuple[int, ...]:
        """Vectors per chunk: the full size, and that of the remainder.

        At run time a remainder is several chunks of a power of two that divides the full size: the last may go
        past the last token, but never past the tile.
        """
        full = self.schedule.vectors
        if self.vectors:
            rest = self.vectors % full
            return (full, rest) if rest and self.vectors > full else (min(full, self.vectors),)
        small = max(size for size in (1, 2, 4) if full % size == 0 and size <= max(1, full // 4))
        return (full, small) if small < full else (full,)


def gathered_rows(name: str, spec: RowsKernel, machine: Machine) -> tvm.tirx.PrimFunc:
    """Arguments: index (starts of the lists, or the offsets of the shared list), stream, balance, order (see
    `codegen/stream.py`), x, y, mask, operands...; which part of how many; the number of vectors of columns (tokens),
    or of bands (images), each of which has as many parts.

    Parts share the columns of a wide plane, so that what a thread reads in the next call it has stored itself in
    this one; the chunk in which a part ends and the next begins is shared by rows, as is all of a narrow plane,
    whose cache lines lie too close together for one thread to leave another's alone.
    """
    pointers = [("index", "int32"), ("stream", "float32"), ("balance", "int32"), ("order", "int32")]
    pointers += [("x", "float32"), ("y", "float32"), ("mask", "float32")]
    pointers += operand_pointers(spec.epilogue)

    def body(*arguments: Expr) -> None:
        *buffers, part, parts, last = arguments
        if spec.is_wide:
            _wide(spec, machine, buffers, part, parts, last)
            return
        full, *rest = spec.chunks()
        emit = _Emitter(spec, machine, buffers, *share(T.int32(SHARES), part, parts))
        whole, turns = T.int32(spec.vectors // full), T.int32(1)
        if not spec.vectors:
            whole = T.bind(T.truncdiv(last, T.int32(full)))
            turns = T.bind(T.truncdiv(last - whole * full + (sum(rest) - 1), T.int32(sum(rest) or 1)))
        with T.serial(whole) as chunk:
            emit.chunk(full, T.bind(chunk * full))
        for size in rest:
            with T.serial(turns) as chunk:
                emit.chunk(size, T.bind(whole * full + chunk * size))

    return kernel(name, pointers, ["part", "parts", "last"], body)


def _wide(
    spec: RowsKernel, machine: Machine, buffers: list[Expr], part: Expr, parts: Expr, bands: Expr
) -> None:
    """A band of a wide plane, or all of it. Bands end where chunks do, the parts of a band anywhere."""
    full, *rest = spec.chunks()
    whole, threads = spec.vectors // full, T.bind(T.truncdiv(parts, bands))
    band = T.bind(T.truncdiv(part, threads))
    first, end = share(whole, band, bands)
    is_last = T.bind(band == bands - 1)
    begin = T.bind(first * full)
    count = T.bind(T.if_then_else(is_last, T.int32(spec.vectors), end * full) - begin)
    low, high = share(count * SHARES, part - band * threads, threads)
    emit = _Emitter(spec, machine, buffers, begin * SHARES + low, begin * SHARES + high)
    with T.serial(end - first) as relative:
        emit.chunk(full, T.bind((first + relative) * full))
    for size in rest:
        with T.If(is_last), T.Then():
            emit.chunk(size, T.int32(whole * full))


class _Emitter:
    def __init__(
        self, spec: RowsKernel, machine: Machine, buffers: list[Expr], low: Expr, high: Expr
    ) -> None:
        """Of a part of the work, in units: each vector of columns of a wide plane is `SHARES`, as are all rows."""
        self.spec, self.machine, self.low, self.high = spec, machine, low, high
        self.index, self.stream, self.balance, order, self.x, self.y, mask, *operands = buffers
        self.rows = spec.pattern.rows
        self.finish = Finish(
            spec.epilogue,
            self.y,
            spec.target_plane,
            mask if spec.masked else None,
            operands,
            spec.operand_planes,
            machine.lanes,
            order if spec.pattern.has_order else None,
        )

    def chunk(self, vectors: int, number: Expr) -> None:
        """The part's rows of `vectors` vectors of columns from vector `number` on."""
        first = T.bind(i64(number) * self.machine.lanes)
        low, high = (self.cut(end, number, vectors) for end in (self.low, self.high))
        with T.serial(T.int32(self.spec.passes)) as step, T.serial(high - low) as relative:
            self.group(vectors, first, step, T.bind(low + relative))

    def cut(self, end: Expr, number: Expr, vectors: int) -> Expr:
        """The block of rows where the part begins or ends, in the chunk from vector `number` on."""
        if not self.spec.is_wide:
            return T.bind(self.balance[end])
        inside = T.truncdiv(end - number * SHARES, T.int32(vectors))
        return T.bind(self.balance[T.min(T.max(inside, T.int32(0)), T.int32(SHARES))])

    def group(self, vectors: int, first: Expr, step: Expr, group: Expr) -> None:
        """One block of rows in one pass. Sums of earlier passes wait in y."""
        lanes, sums = self.machine.lanes, Accumulators(self.rows * vectors, self.machine.lanes)
        entry = T.bind(step * self.spec.groups + group)
        row = T.bind(i64(entry if self.spec.pattern.has_order else group) * self.rows)
        starts = [
            T.bind(self.finish.channel(row + r) * self.spec.target_plane + first) for r in range(self.rows)
        ]

        def clear() -> None:
            for i in range(self.rows * vectors):
                sums[i] = splat(0.0, lanes)

        def resume() -> None:
            for i in range(self.rows * vectors):
                sums[i] = load(self.y, starts[i // vectors] + i % vectors * lanes, lanes)

        def suspend() -> None:
            for i in range(self.rows * vectors):
                store(self.y, sums[i], starts[i // vectors] + i % vectors * lanes, lanes)

        if self.spec.passes == 1:
            clear()
        else:
            with T.If(step == 0):
                with T.Then():
                    clear()
                with T.Else():
                    resume()
        if self.spec.pattern.shared:
            self.shared_list(vectors, first, step, group, sums)
        else:
            self.own_list(vectors, first, entry, sums)
        if self.spec.passes == 1:
            self.finish.tile(sums, row, first, starts, vectors)
        else:
            with T.If(step == self.spec.passes - 1):
                with T.Then():
                    self.finish.tile(sums, row, first, starts, vectors)
                with T.Else():
                    suspend()

    def own_list(self, vectors: int, first: Expr, entry: Expr, sums: Accumulators) -> None:
        """The stream interleaves R values and their offset, in the order of use."""
        size = self.rows + 1
        begin = T.bind(self.index[entry])
        base = T.bind(i64(begin) * size)
        with T.serial(self.index[entry + 1] - begin) as i:
            at = T.bind(base + i64(i) * size)
            if self.spec.schedule.prefetch:
                prefetch(self.stream, at + self.spec.schedule.prefetch)
            offset = T.bind(i64(T.reinterpret("int32", self.stream[at + self.rows])) + first)
            self.multiply_add(vectors, offset, at, sums)

    def shared_list(self, vectors: int, first: Expr, step: Expr, group: Expr, sums: Accumulators) -> None:
        """All rows read the same offsets, which stay in L1; the stream is values only."""
        width = self.spec.schedule.columns
        start = T.bind(step * width)
        length = T.bind(T.min(T.int32(self.spec.columns) - start, T.int32(width)))
        base = T.bind((i64(start) * self.spec.groups + i64(group) * i64(length)) * self.rows)
        with T.serial(length) as i:
            offset = T.bind(i64(self.index[start + i]) + first)
            self.multiply_add(vectors, offset, T.bind(base + i64(i) * self.rows), sums)

    def multiply_add(self, vectors: int, offset: Expr, at: Expr, sums: Accumulators) -> None:
        lanes = self.machine.lanes
        # With several rows X is loaded once; with one the load is an operand of the multiply-add.
        x = [load(self.x, offset + v * lanes, lanes) for v in range(vectors)]
        if self.rows > 1:
            x = [T.bind(vector) for vector in x]
        for r in range(self.rows):
            weight = T.bind(splat(self.stream[at + r], lanes))
            for v in range(vectors):
                sums[r * vectors + v] = sums[r * vectors + v] + weight * x[v]
