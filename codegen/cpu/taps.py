"""Channel by channel, a reduction over taps: pooling and depthwise convolution.

    Y[c, n] = epilogue( reduce_i X[c * phases * plane + offset[i] + n] )

    max:       the largest; NaN where any is NaN, as in PyTorch
    sum:       scale * the sum
    weighted:  sum of weight[c, i] * X

Padding is read as it lies in memory: zero adds nothing to a sum, while pooling the largest needs more care of
whoever lays X out. Offsets reach the phase planes of a strided input, as those of gathered rows do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import tvm
from tvm.script.ir_builder import tirx as T

from sparsecomp.codegen.cpu.emit import Accumulators, Expr, i64, kernel, load, share, splat
from sparsecomp.codegen.cpu.finish import Finish, operand_pointers
from sparsecomp.codegen.machine import Machine
from sparsecomp.codegen.shares import WIDE
from sparsecomp.geometry import LINE

TOGETHER = 4
"""Vectors of columns that share a weight and whose sums are in registers."""
UNROLLED = 16
"""Most taps that are written out one after the other; more run in a loop where offsets repeat themselves."""


@dataclass(frozen=True)
class TapsKernel:
    kind: Literal["max", "sum", "weighted"]
    channels: int
    phases: int
    """Planes of x per channel."""
    offsets: tuple[int, ...]
    source_plane: int
    target_plane: int
    vectors: int
    """Vectors of columns in an item."""
    scale: float
    masked: bool
    """Whether padding columns are to be stored as zero."""
    epilogue: str = ""
    operand_planes: tuple[int, ...] = ()

    @property
    def period(self) -> int:
        """Taps after which the offsets repeat, all shifted by the same distance: a row of a kernel, or as many
        rows as there are phases. All taps where they are few, or do not repeat."""
        count, o = len(self.offsets), self.offsets
        if count <= UNROLLED:
            return count
        lengths = (
            n for n in range(1, count // 2 + 1) if len({o[i + n] - o[i] for i in range(count - n)}) == 1
        )
        return next(lengths, count)


def taps(name: str, spec: TapsKernel, machine: Machine) -> tvm.tirx.PrimFunc:
    """Arguments x, y, mask, the weight (channels x taps) if the kind is "weighted", operands...; which part of
    how many. Parts share the columns of a wide image, the channels of others."""
    pointers = ["x", "y", "mask", *["weight"] * (spec.kind == "weighted")]

    def body(*arguments: Expr) -> None:
        *buffers, part, parts = arguments
        emit = _Emitter(spec, machine, buffers)
        if spec.vectors < WIDE:
            emit.channels(*share(spec.channels, part, parts), emit.columns)
            return
        with T.If(parts == 1):
            with T.Then():
                emit.channels(0, spec.channels, emit.columns)
            with T.Else():
                low, high = share(spec.vectors, part, parts)
                emit.channels(0, spec.channels, lambda: emit.some_columns(low, high))

    named = [(label, "float32") for label in pointers]
    return kernel(name, [*named, *operand_pointers(spec.epilogue)], ["part", "parts"], body)


class _Emitter:
    def __init__(self, spec: TapsKernel, machine: Machine, buffers: list[Expr]) -> None:
        self.spec, self.lanes = spec, machine.lanes
        self.x, y, mask, *operands = buffers
        self.weight = operands.pop(0) if spec.kind == "weighted" else None
        self.finish = Finish(
            spec.epilogue,
            y,
            spec.target_plane,
            mask if spec.masked else None,
            operands,
            spec.operand_planes,
            machine.lanes,
        )
        few = self.weight is not None and len(spec.offsets) <= UNROLLED
        self.kept = Accumulators(len(spec.offsets), machine.lanes) if few else None

    def channels(self, low: Expr, high: Expr, columns: Callable[[], None]) -> None:
        with T.serial(high - low) as relative:
            self.start_channel(T.bind(i64(low + relative)))
            columns()

    def columns(self) -> None:
        """All of a channel."""
        full = min(TOGETHER, self.spec.vectors)
        whole, rest = divmod(self.spec.vectors, full)
        with T.serial(T.int32(whole)) as chunk:
            self.chunk(full, T.bind(i64(chunk) * (full * self.lanes)))
        if rest:
            self.chunk(rest, T.int64(whole * full * self.lanes))

    def some_columns(self, low: Expr, high: Expr) -> None:
        """Of a channel, from one vector to another."""
        whole = T.bind(T.truncdiv(high - low, T.int32(TOGETHER)))
        with T.serial(whole) as chunk:
            self.chunk(TOGETHER, T.bind(i64(low + chunk * TOGETHER) * self.lanes))
        with T.serial(high - low - whole * TOGETHER) as rest:
            self.chunk(1, T.bind(i64(low + whole * TOGETHER + rest) * self.lanes))

    def start_channel(self, channel: Expr) -> None:
        """Few weights stay in registers for all columns of the channel."""
        self.channel = channel
        self.first_weight = T.bind(channel * len(self.spec.offsets))
        if self.weight is not None and self.kept is not None:
            for i in range(len(self.spec.offsets)):
                self.kept[i] = splat(self.weight[self.first_weight + i], self.lanes)

    @property
    def looped(self) -> int:
        """Repetitions of the period that run in a loop."""
        count, period = len(self.spec.offsets), self.spec.period
        return count // period if period < count else 0

    def chunk(self, vectors: int, first: Expr) -> None:
        spec, lanes = self.spec, self.lanes
        sums = Accumulators(vectors, lanes)
        for v in range(vectors):
            sums[v] = splat(float("-inf") if spec.kind == "max" else 0.0, lanes)
        source = T.bind(self.channel * (spec.phases * spec.source_plane) + first)
        period, offsets = spec.period, spec.offsets
        if self.looped:
            distance = offsets[period] - offsets[0]
            with T.serial(T.int32(self.looped)) as turn:
                shifted, passed = T.bind(source + i64(turn) * distance), T.bind(i64(turn) * period)
                for run in self.runs(offsets[:period]):
                    self.run(sums, vectors, shifted, run, [self.weight_of(passed + i) for i in run])
        done = self.looped * period
        for run in self.runs(offsets[done:]):
            taps = [done + i for i in run]
            self.run(sums, vectors, source, taps, [self.weight_of(i) for i in taps])
        for v in range(vectors if spec.kind == "sum" else 0):
            sums[v] = sums[v] * splat(spec.scale, lanes)
        start = T.bind(self.channel * spec.target_plane + first)
        self.finish.tile(sums, self.channel, first, [start], vectors)

    def weight_of(self, tap: Expr) -> Expr:
        if self.kept is not None:
            return self.kept[tap]
        if self.weight is None:
            return None
        return T.bind(splat(self.weight[self.first_weight + tap], self.lanes))

    def run(
        self, sums: Accumulators, vectors: int, source: Expr, taps: Sequence[int], weights: Sequence[Expr]
    ) -> None:
        """Every other tap is loaded; the vector of one between is shuffled from its neighbours'."""
        offsets, lanes = [self.spec.offsets[tap] for tap in taps], self.lanes
        last = len(offsets) - 1
        for v in range(vectors):
            start = T.bind(source + v * lanes)
            loads = {i: T.bind(load(self.x, start + offsets[i], lanes)) for i in (*range(0, last, 2), last)}
            for i, weight in enumerate(weights):
                if i not in loads:
                    before, this, after = offsets[i - 1 : i + 2]
                    x = between(loads[i - 1], loads[i + 1], this - before, after - before, lanes)
                    self.reduce(sums, v, x, weight)
                else:
                    self.reduce(sums, v, loads[i], weight)

    def runs(self, offsets: Sequence[int]) -> list[range]:
        """Taps in ascending order whose vectors overlap or touch, where that is of use.

        A vector as long as a cache line lies in two lines almost always, which takes two loads: a shuffle is
        cheaper. Shorter vectors are loaded each, and a maximum needs the shuffle's unit for itself.
        """
        useful, found = self.lanes == LINE and self.spec.kind != "max", list[range]()
        for i, offset in enumerate(offsets):
            first = found[-1].start if found else 0
            if useful and i > 0 and offset > offsets[i - 1] and offset - offsets[first] <= self.lanes:
                found[-1] = range(first, i + 1)
            else:
                found.append(range(i, i + 1))
        return found

    def reduce(self, sums: Accumulators, vector: int, x: Expr, weight: Expr) -> None:
        match self.spec.kind:
            case "weighted":
                sums[vector] = sums[vector] + weight * x
            case "sum":
                sums[vector] = sums[vector] + x
            case "max":
                # The comparison fails for NaN in x; T.max stays with its second operand if that is NaN.
                number = x <= splat(float("inf"), self.lanes)
                sums[vector] = T.Select(number, T.max(x, sums[vector]), x)


def between(first: Expr, last: Expr, shift: int, distance: int, lanes: int) -> Expr:
    """The vector `shift` columns after the first, from that and one that is `distance` columns after it."""
    positions = [shift + lane for lane in range(lanes)]
    indices = [p if p < lanes else lanes + p - distance for p in positions]
    return T.bind(T.Shuffle([first, last], [T.int32(i) for i in indices]))
