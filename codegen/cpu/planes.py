"""Images between PyTorch's layout and ours, and into the phases of a stride."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import groupby

import tvm
from tvm.script.ir_builder import tirx as T

from sparsecomp.codegen.cpu.emit import Expr, i64, kernel, load, share, store
from sparsecomp.codegen.cpu.runs import (
    clear_run,
    copy_run,
    fitting,
    over_run,
    shuffle,
    starts,
    transposed,
)
from sparsecomp.codegen.machine import Machine
from sparsecomp.codegen.shares import WIDE
from sparsecomp.region import WHOLE, Phases

UNROLLED = 4
"""Most row phases that are written out one after the other: more run in a loop, where they are alike."""
SHUFFLED = 4
"""Widest step whose columns are picked from as many vectors; each phase takes one shuffle less than that."""
HIGH = 8
"""Rows of a wide plane from which on threads share them: each then stores what it will read."""


@dataclass(frozen=True)
class CopyPlanes:
    """y[c * phases + p][h, w] = x[c][h * stride + phase]; zero where that lies outside x.

    Planes are given by distance between planes and rows, so PyTorch's own layout is a case of it. Between the
    rows of either nothing is read or written.
    """

    channels: int
    """Of x."""
    height: int
    width: int
    source: tuple[int, int]
    """Distance between planes and between rows of x, in floats."""
    target: tuple[int, int]
    stride: tuple[int, int]
    phases: Phases

    @property
    def joined(self) -> CopyPlanes:
        """The same, with rows that follow one another on both sides as one row."""
        alike = self.stride == (1, 1) and self.phases == WHOLE
        if not alike or {self.source[1], self.target[1]} != {self.width}:
            return self
        size = self.height * self.width
        return replace(
            self, height=1, width=size, source=(self.source[0], size), target=(self.target[0], size)
        )

    @property
    def rows(self) -> int:
        """Of a phase plane."""
        return -(-self.height // self.stride[0])


@dataclass(frozen=True)
class RowPhase:
    """Phases that read the same rows of x and lie in planes that follow one another."""

    top: Expr
    """May be known at run time only."""
    plane: Expr
    """The first, among those of a channel."""
    lefts: tuple[int, ...]


def copy_planes(name: str, spec: CopyPlanes, machine: Machine) -> tvm.tirx.PrimFunc:
    """Arguments x, y (both at position 0, 0); which part of how many. Parts share the rows of a wide
    image, the channels of others."""
    spec = spec.joined

    def body(x: Expr, y: Expr, part: Expr, parts: Expr) -> None:
        emit = _Emitter(spec, machine.lanes, x, y)
        by_rows = spec.rows >= HIGH and spec.rows * emit.columns >= WIDE * machine.lanes
        top, bottom = share(spec.rows, part, parts) if by_rows else (T.int32(0), T.int32(spec.rows))
        low, high = (T.int32(0), T.int32(spec.channels)) if by_rows else share(spec.channels, part, parts)
        with T.serial(high - low) as relative:
            channel = T.bind(i64(low + relative))
            with T.serial(bottom - top) as row:
                emit.row(channel, T.bind(top + row))

    return kernel(name, [("x", "float32"), ("y", "float32")], ["part", "parts"], body)


def row_phases(phases: Phases) -> list[RowPhase]:
    found, plane = [], 0
    for top, members in groupby(phases, key=lambda phase: phase[0]):
        lefts = tuple(left for _, left in members)
        found.append(RowPhase(top, plane, lefts))
        plane += len(lefts)
    return found


class _Emitter:
    def __init__(self, spec: CopyPlanes, lanes: int, x: Expr, y: Expr) -> None:
        self.spec, self.lanes, self.x, self.y = spec, lanes, x, y
        self.step = spec.stride[1]
        self.columns = -(-spec.width // self.step)
        self.common = spec.width // self.step
        """Columns that every phase has; some have one more."""

    def row(self, channel: Expr, h: Expr) -> None:
        """Row h of all planes of a channel."""
        found = row_phases(self.spec.phases)
        lefts = found[0].lefts
        alike = [(phase.top, phase.lefts) for phase in found] == [(top, lefts) for top in range(len(found))]
        if len(found) > UNROLLED and alike:
            with T.serial(T.int32(len(found))) as top:
                self.row_phase(channel, h, RowPhase(top, T.bind(i64(top) * len(lefts)), lefts))
        else:
            for phase in found:
                self.row_phase(channel, h, phase)

    def row_phase(self, channel: Expr, h: Expr, phase: RowPhase) -> None:
        spec = self.spec
        plane = channel * len(spec.phases) + phase.plane
        target = T.bind(plane * spec.target[0] + i64(h) * spec.target[1])
        above = T.bind(h * spec.stride[0] + phase.top)
        source = T.bind(channel * spec.source[0] + i64(above) * spec.source[1])
        if spec.height % spec.stride[0] == 0:
            self.copy(source, target, phase.lefts)
        else:
            with T.If(above < spec.height):
                with T.Then():
                    self.copy(source, target, phase.lefts)
                with T.Else(), T.serial(T.int32(len(phase.lefts))) as member:
                    clear_run(self.y, target + i64(member) * spec.target[0], self.columns, self.lanes)

    def copy(self, source: Expr, target: Expr, lefts: tuple[int, ...]) -> None:
        """A row of x into a row of each of the planes from `target` on."""
        every = lefts == tuple(range(self.step))
        if self.step == 1:
            copy_run(self.x, self.y, source, target, self.columns, self.lanes)
        elif self.step <= SHUFFLED and self.common > 1:
            self.shuffled(source, target, lefts)
        elif every and min(self.step, self.common) >= 4:
            self.transposed(source, target)
        elif every:
            with T.serial(T.int32(self.step)) as left:
                self.one_by_one(source, target + i64(left) * self.spec.target[0], left)
        else:
            for member, left in enumerate(lefts):
                self.one_by_one(source, target + member * self.spec.target[0], left)

    def shuffled(self, source: Expr, target: Expr, lefts: tuple[int, ...]) -> None:
        """Vectors of x side by side hold a vector of every phase."""
        spec, step = self.spec, self.step
        size = fitting(self.common, self.lanes)
        covered = self.common // size * size

        def vectors(start: Expr) -> list[Expr]:
            return [T.bind(load(self.x, source + (start + i * size), size)) for i in range(step)]

        def whole(start: Expr) -> None:
            loaded = vectors(start * step)
            for member, left in enumerate(lefts):
                picked = shuffle(loaded, range(left, size * step, step))
                store(self.y, picked, target + member * spec.target[0] + start, size)

        over_run(covered, size, whole)
        last = vectors(T.int64(spec.width - size * step)) if spec.width > covered * step else []
        for member, left in enumerate(lefts):
            filled = -(-(spec.width - left) // step)
            plane = target + member * spec.target[0]
            if filled > covered:
                begin = left + filled * step - spec.width
                picked = shuffle(last, range(begin, begin + size * step, step))
                store(self.y, picked, plane + (filled - size), size)
            if filled < self.columns:
                store(self.y, T.float32(0), plane + filled, 1)

    def transposed(self, source: Expr, target: Expr) -> None:
        """All phases of a wide step: squares of x, whose rows are a step apart, turned over."""
        spec, step = self.spec, self.step
        size = fitting(min(step, self.common), self.lanes)
        for left in starts(step, size):

            def square(start: Expr, left: int = left) -> None:
                rows = [T.bind(load(self.x, source + (start + i) * step + left, size)) for i in range(size)]
                for i, column in enumerate(transposed(rows)):
                    store(self.y, column, target + (left + i) * spec.target[0] + start, size)

            over_run(self.common, size, square, unrolled=1)
        if self.columns > self.common:
            with T.serial(T.int32(step)) as left:
                at = T.bind(target + i64(left) * spec.target[0] + self.common)
                inside = left < spec.width % step
                with T.If(inside):
                    with T.Then():
                        value = self.x[source + i64(left) + self.common * step]
                        store(self.y, value, at, 1)
                    with T.Else():
                        store(self.y, T.float32(0), at, 1)

    def one_by_one(self, source: Expr, target: Expr, left: Expr) -> None:
        filled = T.bind(T.truncdiv(T.int32(self.spec.width - 1 + self.step) - left, T.int32(self.step)))
        with T.serial(filled) as w:
            value = self.x[source + i64(left) + i64(w) * self.step]
            store(self.y, value, target + i64(w), 1)
        with T.serial(T.int32(self.columns) - filled) as w:
            store(self.y, T.float32(0), target + i64(filled + w), 1)
