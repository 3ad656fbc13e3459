"""In which order a region's calls are made, and how much of each at once.

Early layers of an image network make planes larger than the L2 cache, and whoever reads one next waits for memory.
So layers that follow one another take turns, a band of columns each, and find in the cache what was just stored:

    a(band 0), a(band 1), b(band 0), a(band 2), b(band 1), c(band 0), ...

A call stays as many bands behind those before as keeps it from columns that are not there yet, for its taps reach
into the rows below, and from overwriting what they still read: values of one grid may share memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import numpy.typing as npt

from sparsecomp.codegen.machine import Machine
from sparsecomp.codegen.shares import WIDE
from sparsecomp.geometry import FLOAT, Planes
from sparsecomp.region import Call, Region, Rows, Schedule, Value, reads

Integers = npt.NDArray[np.int64]
NUMBERS = (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
"""Of bands, that are tried."""
SHARE_OF_L2 = 0.5
"""Of the L2 cache, that the bands of a chain may fill; the rest is for weights, and for what the next turn stores."""


@dataclass(frozen=True)
class Step:
    """A part of a call: one of its bands."""

    call: int
    band: int = 0
    bands: int = 1


@dataclass(frozen=True)
class Chain:
    """Calls from number `first` up to `last` that take turns, each in as many bands."""

    first: int
    last: int
    bands: int


def chains_of(region: Region, calls: Sequence[Call], machine: Machine) -> tuple[Chain, ...]:
    """The chains that keep most bytes from being read from beyond the L2 cache: by dynamic programming over the
    places to cut runs of layers on one grid."""
    found: list[Chain] = []
    first = 0
    for grid, members in groupby(_grid(call, region, machine) for call in calls):
        last = first + len(list(members))
        if grid is not None:
            found += _Run(region, calls, first, last, machine).chains()
        first = last
    return tuple(found)


def _grid(call: Call, region: Region, machine: Machine) -> tuple[int, int, int] | None:
    """Of a layer that can be computed in bands."""
    if not isinstance(call, Rows) or not isinstance(call.schedule, Schedule):
        return None
    geometry = region.value[call.target].geometry
    if not isinstance(geometry, Planes) or -(-geometry.columns // machine.lanes) < WIDE:
        return None
    return geometry.plane, geometry.row, geometry.origin


class _Run:
    """Consecutive layers on one grid."""

    def __init__(
        self, region: Region, calls: Sequence[Call], first: int, last: int, machine: Machine
    ) -> None:
        self.value, self.first, self.last, self.machine = region.value, first, last, machine
        self.rows = {n: call for n, call in enumerate(calls) if first <= n < last and isinstance(call, Rows)}

    def chains(self) -> list[Chain]:
        best: dict[int, tuple[int, list[Chain]]] = {self.first: (0, [])}
        for end in range(self.first + 1, self.last + 1):
            best[end] = best[end - 1]
            for start in range(self.first, end - 1):
                saved = best[start][0] + self.saved(start, end)
                if saved > best[end][0] and (bands := self.fitting(start, end)):
                    best[end] = saved, [*best[start][1], Chain(start, end, bands)]
        return best[self.last][1]

    def saved(self, start: int, end: int) -> int:
        """Bytes that the calls would read from beyond the L2 cache if they did not take turns."""
        written, found = set[str](), 0
        for number in range(start, end):
            found += sum(self.bytes(name) for name in reads(self.rows[number]) if name in written)
            written.add(self.rows[number].target)
        return found

    def bytes(self, name: str) -> int:
        """Of a value, where it does not fit the L2 cache together with as much of another."""
        value: Value = self.value[name]
        size = value.channels * value.geometry.plane * FLOAT
        return size if 2 * size > self.machine.l2_bytes else 0

    def fitting(self, start: int, end: int) -> int:
        """The fewest bands that fit the cache, each a chunk of columns at least; 0 if there are none."""
        most = min(self.vectors(call) // self.chunk(call) for call in self.some(start, end))
        enough = (bands for bands in NUMBERS if bands <= most and self.fits(start, end, bands))
        return next(enough, 0)

    def fits(self, start: int, end: int, bands: int) -> bool:
        """Whether the cache holds each value from the turn in which it is written, or first read, to that in which
        it is last read."""
        turns: dict[str, list[int]] = {}
        for call, delay in zip(self.some(start, end), self.delays(start, end, bands), strict=True):
            for name in (*reads(call), call.target):
                turns.setdefault(name, []).append(delay)
        planes = sum(self.value[name].channels * (max(t) - min(t) + 1) for name, t in turns.items())
        columns = max(self.value[name].geometry.columns for name in turns)
        return planes * columns / bands * FLOAT <= SHARE_OF_L2 * self.machine.l2_bytes

    def delays(self, start: int, end: int, bands: int) -> list[int]:
        """By how many turns each call is behind the first."""
        calls, found = self.some(start, end), list[int]()
        for call in calls:
            found.append(
                max(
                    (delay + self.behind(one, call, bands) for one, delay in zip(calls, found, strict=False)),
                    default=0,
                )
            )
        return found

    def behind(self, one: Rows, other: Rows, bands: int) -> int:
        """By how many bands `other` stays behind `one`, so that it finds what it may read there, and overwrites
        nothing that `one` may still read."""
        reach = max(one.reach[0], other.reach[1])
        done, needed = self.ends(one, bands), self.ends(other, bands) + reach
        done[-1] = needed[-1] = needed.max()
        return int((np.searchsorted(done, needed) - np.arange(bands)).max())

    def ends(self, call: Rows, bands: int) -> Integers:
        """The column where each band ends: where a chunk does, as in `cpu/gathered_rows.py`."""
        chunk = self.chunk(call)
        found = np.arange(1, bands + 1) * (self.vectors(call) // chunk) // bands * chunk
        found[-1] = self.vectors(call)
        return found * self.machine.lanes

    def vectors(self, call: Rows) -> int:
        """Of columns."""
        return -(-self.value[call.target].geometry.columns // self.machine.lanes)

    def chunk(self, call: Rows) -> int:
        """Vectors that the kernel computes at once."""
        assert isinstance(call.schedule, Schedule)
        return min(call.schedule.vectors, self.vectors(call))

    def some(self, start: int, end: int) -> list[Rows]:
        return [self.rows[number] for number in range(start, end)]


def steps_of(
    region: Region, calls: Sequence[Call], chains: Sequence[Chain], machine: Machine
) -> tuple[Step, ...]:
    """Every call once, or each of its bands."""
    steps, done = list[Step](), 0
    for chain in chains:
        steps += map(Step, range(done, chain.first))
        steps += _turns(_Run(region, calls, chain.first, chain.last, machine), chain)
        done = chain.last
    return (*steps, *map(Step, range(done, len(calls))))


def _turns(run: _Run, chain: Chain) -> Iterator[Step]:
    delays = run.delays(chain.first, chain.last, chain.bands)
    for turn in range(chain.bands + delays[-1]):
        for number, delay in enumerate(delays, start=chain.first):
            if delay <= turn < delay + chain.bands:
                yield Step(number, turn - delay, chain.bands)
