"""Channel by channel, a reduction over taps: pooling and depthwise convolution.

    Y[c, n] = epilogue( reduce_i X[c * phases * plane + offset[i] + n] )

    max:       the largest; NaN where any is NaN, as in PyTorch
    sum:       scale * the sum
    weighted:  sum of weight[c, i] * X

Padding is read as it lies in memory: zero adds nothing to a sum, while pooling the largest needs more care of
whoever lays X out. Offsets reach the phase planes of a strided input, as those of gathered rows do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import tvm
from tvm.script.ir_builder import tirx as T

from sparsecomp.codegen.cpu.emit import Accumulators, Expr, i64, kernel, load, share, splat
from sparsecomp.codegen.cpu.finish import Finish, operand_pointers
from sparsecomp.codegen.machine import Machine

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
    how many. Parts share the channels."""
    pointers = ["x", "y", "mask", *["weight"] * (spec.kind == "weighted")]
    full = min(8 if machine.registers >= 32 else 4, spec.vectors)
    whole, rest = divmod(spec.vectors, full)

    def body(*arguments: Expr) -> None:
        *buffers, part, parts = arguments
        low, high = share(spec.channels, part, parts)
        emit = _Emitter(spec, machine, buffers)
        with T.serial(high - low) as relative:
            emit.start_channel(T.bind(i64(low + relative)))
            with T.serial(T.int32(whole)) as chunk:
                emit.chunk(full, T.bind(i64(chunk) * (full * machine.lanes)))
            if rest:
                emit.chunk(rest, T.int64(whole * full * machine.lanes))

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
        self.kept = Accumulators(len(spec.offsets) if spec.period <= UNROLLED else 0, machine.lanes)

    def start_channel(self, channel: Expr) -> None:
        """Few weights stay in registers for all columns of the channel."""
        self.channel = channel
        self.first_weight = T.bind(channel * len(self.spec.offsets))
        if self.weight is not None and self.looped == 0:
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
                shifted = T.bind(source + i64(turn) * distance)
                for i in range(period):
                    self.tap(
                        sums, vectors, shifted + offsets[i], self.weight_of(T.bind(i64(turn) * period + i))
                    )
        for i in range(self.looped * period, len(offsets)):
            weight = self.weight_of(i) if self.looped or self.weight is None else self.kept[i]
            self.tap(sums, vectors, source + offsets[i], weight)
        for v in range(vectors if spec.kind == "sum" else 0):
            sums[v] = sums[v] * splat(spec.scale, lanes)
        start = T.bind(self.channel * spec.target_plane + first)
        self.finish.tile(sums, self.channel, first, [start], vectors)

    def weight_of(self, tap: Expr) -> Expr:
        if self.weight is None:
            return None
        return T.bind(splat(self.weight[self.first_weight + tap], self.lanes))

    def tap(self, sums: Accumulators, vectors: int, start: Expr, weight: Expr) -> None:
        for v in range(vectors):
            x = load(self.x, start + v * self.lanes, self.lanes)
            match self.spec.kind:
                case "weighted":
                    sums[v] = sums[v] + weight * x
                case "sum":
                    sums[v] = sums[v] + x
                case "max":
                    x = T.bind(x)
                    # The comparison fails for NaN in x; T.max stays with its second operand if that is NaN.
                    number = x <= splat(float("inf"), self.lanes)
                    sums[v] = T.Select(number, T.max(x, sums[v]), x)
