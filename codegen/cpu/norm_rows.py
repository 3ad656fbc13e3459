"""Layer and RMS normalisation of few tokens, whose features lie side by side as PyTorch has them.

The meaning is that of `norms.py`; here lanes are channels, and sums go across a register at the end.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import tvm
from tvm.script.ir_builder import tirx as T

from sparsecomp.codegen.cpu.emit import Accumulators, Expr, i64, kernel, load, share, splat, store
from sparsecomp.codegen.machine import Machine

TOGETHER = 4
"""Sums under way at once, which hides the latency of an addition."""


@dataclass(frozen=True)
class NormRowsKernel:
    kind: Literal["layer", "rms"]
    channels: int
    epsilon: float
    weight: bool
    bias: bool


def norm_rows(name: str, spec: NormRowsKernel, machine: Machine) -> tvm.tirx.PrimFunc:
    """Arguments x, y, then weight and bias as far as the specification has them; which part of how many, number
    of tokens. Parts share the tokens."""
    pointers = ["x", "y", *["weight"] * spec.weight, *["bias"] * spec.bias]

    def body(*arguments: Expr) -> None:
        *buffers, part, parts, tokens = arguments
        low, high = share(tokens, part, parts)
        with T.serial(high - low) as relative:
            _Token(spec, machine.lanes, buffers, T.bind(i64(low + relative) * spec.channels)).emit()

    return kernel(name, [(label, "float32") for label in pointers], ["part", "parts", "tokens"], body)


class _Token:
    def __init__(self, spec: NormRowsKernel, lanes: int, buffers: list[Expr], start: Expr) -> None:
        self.spec, self.lanes, self.start = spec, lanes, start
        self.x, self.y, *vectors = buffers
        self.weight = vectors.pop(0) if spec.weight else None
        self.bias = vectors.pop(0) if spec.bias else None
        self.whole, self.rest = divmod(spec.channels, lanes)

    def emit(self) -> None:
        lanes = self.lanes
        constants = Accumulators(2, lanes)
        constants[0] = splat(0.0, lanes)
        if self.spec.kind == "layer":
            constants[0] = splat(self.average(lambda x: x), lanes)

        def squared(x: Expr) -> Expr:
            distance = T.bind(x - constants[0])
            return distance * distance

        variance = T.bind(self.average(squared) + T.float32(self.spec.epsilon))
        constants[1] = splat(T.float32(1.0) / T.sqrt(variance), lanes)
        with T.serial(T.int32(self.whole)) as vector:
            channel = T.bind(i64(vector) * lanes)
            store(self.y, self.result(load, channel, constants), self.start + channel, lanes)
        if self.rest:
            channel = T.int64(self.whole * lanes)
            places = T.Ramp(self.start + channel, T.int64(1), lanes)
            y = self.result(self.partly, channel, constants)
            T.evaluate(T.masked_store(self.y, y, places, self.inside()))

    def average(self, of: Callable[[Expr], Expr]) -> Expr:
        """The mean over channels of what `of` makes of x."""
        lanes = self.lanes
        sums = Accumulators(TOGETHER, lanes)
        for i in range(TOGETHER):
            sums[i] = splat(0.0, lanes)
        turns, single = divmod(self.whole, TOGETHER)
        with T.serial(T.int32(turns)) as turn:
            first = T.bind(self.start + i64(turn) * (TOGETHER * lanes))
            for i in range(TOGETHER):
                sums[i] = sums[i] + of(T.bind(load(self.x, first + i * lanes, lanes)))
        for i in range(single):
            start = self.start + (turns * TOGETHER + i) * lanes
            sums[i] = sums[i] + of(T.bind(load(self.x, start, lanes)))
        if self.rest:
            # The other lanes of a masked load are undefined.
            last = T.bind(self.partly(self.x, self.start + self.whole * lanes, lanes))
            sums[0] = sums[0] + T.Select(self.inside(), of(last), splat(0.0, lanes))
        for i in range(1, TOGETHER):
            sums[0] = sums[0] + sums[i]
        return T.bind(sums.across(0) * T.float32(1.0 / self.spec.channels))

    def inside(self) -> Expr:
        """Which lanes of the last vector are channels."""
        return T.Ramp(0, 1, self.lanes) < T.Broadcast(self.rest, self.lanes)

    def partly(self, buffer: Expr, start: Expr, lanes: int) -> Expr:
        return T.masked_load(f"float32x{lanes}", buffer, T.Ramp(start, T.int64(1), lanes), self.inside())

    def result(self, read: Callable[[Expr, Expr, int], Expr], channel: Expr, constants: Accumulators) -> Expr:
        y = (read(self.x, self.start + channel, self.lanes) - constants[0]) * constants[1]
        if self.weight is not None:
            y = y * read(self.weight, channel, self.lanes)
        if self.bias is not None:
            y = y + read(self.bias, channel, self.lanes)
        return T.bind(y)
