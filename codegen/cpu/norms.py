"""Layer and RMS normalisation over the channels of each column.

    layer:  Y[c, n] = weight[c] * (X[c, n] - mean[n]) / sqrt(variance[n] + epsilon) + bias[c]
    rms:    Y[c, n] = weight[c] * X[c, n] / sqrt(mean of squares[n] + epsilon) + bias[c]

Columns are the lanes, so sums over channels need no reduction across a register. X is read once for the mean,
once for the squared deviations from it (the difference of two large sums would lose digits), once to store.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import tvm
from tvm.script.ir_builder import tirx as T

from sparsecomp.codegen.cpu.emit import Accumulators, Expr, i64, kernel, load, share, splat, store
from sparsecomp.codegen.machine import Machine

TOGETHER = 4
"""Vectors of columns walked at once: as many additions are under way as hide the latency of one."""


@dataclass(frozen=True)
class NormKernel:
    kind: Literal["layer", "rms"]
    channels: int
    source_plane: int
    target_plane: int
    epsilon: float
    weight: bool
    bias: bool
    vectors: int
    """Vectors of columns in an item, or 0 where that is known only at run time (tokens)."""
    masked: bool
    """Whether padding columns are to be stored as zero."""


def norm(name: str, spec: NormKernel, machine: Machine) -> tvm.tirx.PrimFunc:
    """Arguments x, y, mask, then weight and bias as far as the specification has them; which part of how many,
    number of vectors of columns. Parts share the vectors."""
    pointers = ["x", "y", "mask", *["weight"] * spec.weight, *["bias"] * spec.bias]

    def body(*arguments: Expr) -> None:
        *buffers, part, parts, vectors = arguments
        emit = _Emitter(spec, machine, buffers)
        low, high = share(spec.vectors or vectors, part, parts)
        whole = T.bind(T.truncdiv(high - low, T.int32(TOGETHER)))
        with T.serial(whole) as chunk:
            emit.chunk(TOGETHER, T.bind(i64(low + chunk * TOGETHER) * machine.lanes))
        with T.serial(high - low - whole * TOGETHER) as rest:
            emit.chunk(1, T.bind(i64(low + whole * TOGETHER + rest) * machine.lanes))

    return kernel(name, [(label, "float32") for label in pointers], ["part", "parts", "vectors"], body)


class _Emitter:
    def __init__(self, spec: NormKernel, machine: Machine, buffers: list[Expr]) -> None:
        self.spec, self.lanes = spec, machine.lanes
        self.x, self.y, self.mask, *vectors = buffers
        self.weight = vectors.pop(0) if spec.weight else None
        self.bias = vectors.pop(0) if spec.bias else None

    def chunk(self, vectors: int, first: Expr) -> None:
        """All channels, for `vectors` vectors of columns from column `first` on."""
        lanes = self.lanes
        mean = Accumulators(vectors, lanes)
        for v in range(vectors):
            mean[v] = splat(0.0, lanes)
        if self.spec.kind == "layer":
            self.average(vectors, first, mean, None)
        factor = Accumulators(vectors, lanes)
        self.average(vectors, first, factor, mean)
        for v in range(vectors):
            factor[v] = splat(1.0, lanes) / T.sqrt(factor[v] + splat(self.spec.epsilon, lanes))
        with T.serial(T.int32(self.spec.channels)) as c:
            channel = T.bind(i64(c))
            for v in range(vectors):
                y = T.bind((self.source(channel, first, v) - mean[v]) * factor[v])
                self.store(y, channel, T.bind(first + v * lanes))

    def source(self, channel: Expr, first: Expr, vector: int) -> Expr:
        return load(self.x, channel * self.spec.source_plane + first + vector * self.lanes, self.lanes)

    def average(self, vectors: int, first: Expr, into: Accumulators, centre: Accumulators | None) -> None:
        """The mean over channels of x, or of its squared distance from `centre`."""
        for v in range(vectors):
            into[v] = splat(0.0, self.lanes)
        with T.serial(T.int32(self.spec.channels)) as c:
            channel = T.bind(i64(c))
            for v in range(vectors):
                x = T.bind(self.source(channel, first, v))
                if centre is not None:
                    distance = T.bind(x - centre[v])
                    x = distance * distance
                into[v] = into[v] + x
        for v in range(vectors):
            into[v] = into[v] * splat(1.0 / self.spec.channels, self.lanes)

    def store(self, y: Expr, channel: Expr, column: Expr) -> None:
        lanes = self.lanes
        if self.weight is not None:
            y = y * splat(self.weight[channel], lanes)
        if self.bias is not None:
            y = y + splat(self.bias[channel], lanes)
        if self.spec.masked:
            inside = load(self.mask, column, lanes) != splat(0.0, lanes)
            y = T.Select(inside, y, splat(0.0, lanes))
        store(self.y, y, channel * self.spec.target_plane + column, lanes)
