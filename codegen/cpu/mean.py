"""The mean of each channel of an image: global average pooling."""

from __future__ import annotations

from dataclasses import dataclass

import tvm
from tvm.script.ir_builder import tirx as T

from sparsecomp.codegen.cpu.emit import Accumulators, Expr, i64, kernel, load, share, splat
from sparsecomp.codegen.machine import Machine

UNROLLED = 8
"""Vectors of an image row that are added one after the other, in as many sums: more run in a loop."""


@dataclass(frozen=True)
class MeanKernel:
    """Y[c, 0] = mean of X[c, h * row + w] over height and width; what lies between image rows is not used."""

    channels: int
    source_plane: int
    height: int
    width: int
    row: int
    target_plane: int


def mean(name: str, spec: MeanKernel, machine: Machine) -> tvm.tirx.PrimFunc:
    """Arguments x, y; which part of how many. Parts share the channels."""
    lanes = machine.lanes

    def body(x: Expr, y: Expr, part: Expr, parts: Expr) -> None:
        low, high = share(spec.channels, part, parts)
        with T.serial(high - low) as relative:
            channel = T.bind(i64(low + relative))
            sums = Accumulators(UNROLLED, lanes)
            for i in range(UNROLLED):
                sums[i] = splat(0.0, lanes)
            with T.serial(T.int32(spec.height)) as h:
                _add_row(spec, lanes, x, T.bind(channel * spec.source_plane + i64(h) * spec.row), sums)
            count = UNROLLED
            while count > 1:
                count //= 2
                for i in range(count):
                    sums[i] = sums[i] + sums[count + i]
            total = sums.across(0)
            T.buffer_store(
                y, total * T.float32(1 / (spec.height * spec.width)), [channel * spec.target_plane]
            )

    return kernel(name, [("x", "float32"), ("y", "float32")], ["part", "parts"], body)


def _add_row(spec: MeanKernel, lanes: int, x: Expr, start: Expr, sums: Accumulators) -> None:
    whole, rest = divmod(spec.width, lanes)
    turns, single = divmod(whole, UNROLLED)
    if turns:
        with T.serial(T.int32(turns)) as turn:
            first = T.bind(start + i64(turn) * (UNROLLED * lanes))
            for i in range(UNROLLED):
                sums[i] = sums[i] + load(x, first + i * lanes, lanes)
    for i in range(single):
        sums[i] = sums[i] + load(x, start + (turns * UNROLLED + i) * lanes, lanes)
    if rest:
        inside = T.Ramp(0, 1, lanes) < T.Broadcast(rest, lanes)
        at = T.Ramp(start + whole * lanes, T.int64(1), lanes)
        last = T.masked_load(f"float32x{lanes}", x, at, inside)
        # The other lanes of a masked load are undefined.
        sums[single] = sums[single] + T.Select(inside, last, splat(0.0, lanes))
