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

from sparsecomp.codegen.cpu.emit import Accumulators, Expr, i64, kernel, load, prefetch, splat, store
from sparsecomp.codegen.cpu.epilogues import HEAVY_STEPS, VECTOR_FORMS
from sparsecomp.codegen.machine import Machine
from sparsecomp.codegen.stream import SHARES
from sparsecomp.epilogue import STEPS, split_steps
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
    """Arguments: index (starts of the lists, or the offsets of the shared list), stream, balance (see
    `codegen/stream.py`), x, y, mask, operands...; which part of how many, number of vectors of columns."""
    steps = split_steps(spec.epilogue)
    operands = [(f"operand{i}", "float32") for i, step in enumerate(steps) if STEPS[step] != "none"]
    pointers = [("index", "int32"), ("stream", "float32"), ("balance", "int32")]
    pointers += [("x", "float32"), ("y", "float32"), ("mask", "float32"), *operands]

    def body(*arguments: Expr) -> None:
        *buffers, part, parts, vectors = arguments
        emit = _Emitter(spec, machine, buffers, part, parts)
        full, *rest = spec.chunks()
        if spec.vectors:
            whole = spec.vectors // full
            with T.serial(T.int32(whole)) as chunk:
                emit.chunk(full, T.bind(i64(chunk) * (full * machine.lanes)))
            for size in rest:
                emit.chunk(size, T.bind(T.int64(whole * full * machine.lanes)))
            return
        whole = T.bind(T.truncdiv(vectors, T.int32(full)))
        with T.serial(whole) as chunk:
            emit.chunk(full, T.bind(i64(chunk) * (full * machine.lanes)))
        for size in rest:
            first = T.bind(i64(whole) * (full * machine.lanes))
            left = T.bind(vectors - whole * full)
            with T.serial(T.truncdiv(left + (size - 1), T.int32(size))) as chunk:
                emit.chunk(size, T.bind(first + i64(chunk) * (size * machine.lanes)))

    return kernel(name, pointers, ["part", "parts", "vectors"], body)


class _Emitter:
    def __init__(
        self, spec: RowsKernel, machine: Machine, buffers: list[Expr], part: Expr, parts: Expr
    ) -> None:
        self.spec, self.machine = spec, machine
        self.index, self.stream, balance, self.x, self.y, self.mask, *self.operands = buffers
        self.low = T.bind(balance[T.truncdiv(part * SHARES, parts)])
        self.high = T.bind(balance[T.truncdiv((part + 1) * SHARES, parts)])
        self.rows = spec.pattern.rows

    def chunk(self, vectors: int, first: Expr) -> None:
        """All rows, for `vectors` vectors of columns from column `first` on."""
        with T.serial(T.int32(self.spec.passes)) as step, T.serial(self.high - self.low) as relative:
            self.group(vectors, first, step, T.bind(self.low + relative))

    def group(self, vectors: int, first: Expr, step: Expr, group: Expr) -> None:
        """One block of rows in one pass. Sums of earlier passes wait in y."""
        lanes, sums = self.machine.lanes, Accumulators(self.rows * vectors, self.machine.lanes)
        row = T.bind(i64(group) * self.rows)
        starts = [T.bind((row + r) * self.spec.target_plane + first) for r in range(self.rows)]

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
            self.own_list(vectors, first, step, group, sums)
        if self.spec.passes == 1:
            self.finish(vectors, first, row, starts, sums)
        else:
            with T.If(step == self.spec.passes - 1):
                with T.Then():
                    self.finish(vectors, first, row, starts, sums)
                with T.Else():
                    suspend()

    def own_list(self, vectors: int, first: Expr, step: Expr, group: Expr, sums: Accumulators) -> None:
        """The stream interleaves R values and their offset, in the order of use."""
        size = self.rows + 1
        entry = T.bind(step * self.spec.groups + group)
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

    def finish(self, vectors: int, first: Expr, row: Expr, starts: list[Expr], sums: Accumulators) -> None:
        """The epilogue's steps in order, then the store.

        Steps of many instructions run in a loop over what was stored: unrolled over a whole register tile they
        would cost more to compile than they save.
        """
        lanes = self.machine.lanes
        if HEAVY_STEPS.isdisjoint(split_steps(self.spec.epilogue)):
            for i in range(self.rows * vectors):
                r, column = i // vectors, i % vectors * lanes
                self.store(sums[i], row + r, first + column, starts[r] + column)
            return
        for i in range(self.rows * vectors):
            store(self.y, sums[i], starts[i // vectors] + i % vectors * lanes, lanes)
        with T.serial(T.int32(self.rows)) as r, T.serial(T.int32(vectors)) as v:
            column = T.bind(i64(v) * lanes)
            start = T.bind(starts[0] + i64(r) * self.spec.target_plane + column)
            self.store(load(self.y, start, lanes), T.bind(row + i64(r)), T.bind(first + column), start)

    def store(self, y: Expr, row: Expr, column: Expr, start: Expr) -> None:
        """y[start] = epilogue of one vector, zero where the column is padding."""
        lanes = self.machine.lanes
        y = T.bind(self.epilogue(y, row, column))
        if self.spec.masked:
            inside = load(self.mask, column, lanes) != splat(0.0, lanes)
            y = T.Select(inside, y, splat(0.0, lanes))
        store(self.y, y, start, lanes)

    def epilogue(self, y: Expr, row: Expr, column: Expr) -> Expr:
        lanes = self.machine.lanes
        operands = iter(self.operands)
        planes = iter(self.spec.operand_planes)
        for step in split_steps(self.spec.epilogue):
            match step:
                case "bias":
                    y = T.bind(y + splat(next(operands)[row], lanes))
                case "scale":
                    y = T.bind(y * splat(next(operands)[row], lanes))
                case "add":
                    y = T.bind(y + load(next(operands), row * next(planes) + column, lanes))
                case "multiply":
                    y = T.bind(y * load(next(operands), row * next(planes) + column, lanes))
                case _ if step in HEAVY_STEPS:
                    # Through a register: TVM's simplifier writes an expression out at each of its uses.
                    register = Accumulators(2, lanes)
                    register[0] = y
                    register[1] = VECTOR_FORMS[step](register[0], lanes)
                    y = register[1]
                case _:
                    y = VECTOR_FORMS[step](T.bind(y), lanes)
        return y
