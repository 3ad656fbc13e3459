"""Where the values of one item live: slots of one arena, reused when their value is dead."""

from __future__ import annotations

import threading
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from torch import Tensor

from sparsecomp.codegen.bands import Chain
from sparsecomp.codegen.pages import zeros
from sparsecomp.geometry import LINE, ROW_BLOCK, Planes, TokenRows, Tokens, round_up
from sparsecomp.region import Exit, Region, Value, reads

SLACK = 8 * LINE
"""Floats before, between and after slots: the last vector of a plane overruns it by less than a line."""


@dataclass(frozen=True)
class Arena:
    """Offset of each value's first plane, and the size, in floats."""

    offsets: Mapping[str, int]
    size: int


def value_size(value: Value) -> int:
    """Floats of a value's planes, the rows that fill up the last block included."""
    if isinstance(value.geometry, TokenRows):
        return value.channels * value.geometry.tile
    planes = round_up(value.channels, ROW_BLOCK) * value.geometry.plane
    return planes * value.geometry.tiles if isinstance(value.geometry, Tokens) else planes


def _slot_class(value: Value) -> Hashable:
    """Values whose padding must be zero share slots only with their like: each leaves it zero.

    Padding is zeroed once, when the arena is made, and a masked kernel never stores anything else there.
    """
    return value.geometry if value.zero_pads and isinstance(value.geometry, Planes) else None


@dataclass(frozen=True)
class _Slot:
    offset: int
    size: int
    grid: tuple[int, ...] | None = None
    """Of the value that was there, while calls that take turns may still be reading it: where each column lies."""


def _grid(value: Value) -> tuple[int, ...]:
    geometry = value.geometry
    return (geometry.plane, geometry.row, geometry.origin) if isinstance(geometry, Planes) else ()


def plan_arena(region: Region, chains: Sequence[Chain] = ()) -> Arena:
    """First fit over the list of calls: a slot is free again after the last call that reads its value.

    Where calls take turns, a band at a time, that holds for each column by itself: until all of them are done a
    slot serves values of the same grid alone.
    """
    value, last_read = region.value, _last_reads(region)
    turns = {number for chain in chains for number in range(chain.first, chain.last)}
    ends = {chain.last for chain in chains}
    free: dict[Hashable, list[_Slot]] = {}
    slot_of: dict[str, _Slot] = {}
    end = SLACK
    for position, call in enumerate(region.calls):
        if position in ends:
            free = {kind: [replace(slot, grid=None) for slot in slots] for kind, slots in free.items()}
        if not isinstance(call, Exit):
            target = value[call.target]
            need, pool = value_size(target), free.setdefault(_slot_class(target), [])
            fitting = [s for s in pool if s.size >= need and s.grid in (None, _grid(target))]
            if fitting:
                slot = min(fitting, key=lambda slot: slot.size)
                pool.remove(slot)
            else:
                slot = _Slot(end, need)
                end = round_up(end + need + SLACK, LINE)
            slot_of[call.target] = slot
        for name in set(reads(call)):
            if last_read[name] == position:
                grid = _grid(value[name]) if position in turns else None
                free.setdefault(_slot_class(value[name]), []).append(replace(slot_of[name], grid=grid))
    return Arena({name: slot.offset for name, slot in slot_of.items()}, end)


def _last_reads(region: Region) -> dict[str, int]:
    """Value -> position of the last call that reads it."""
    return {name: position for position, call in enumerate(region.calls) for name in reads(call)}


class ArenaPool:
    """Arenas of one layout, lent to one caller at a time, so that threads may run a region at once.

    Arenas are zero when made, which is what padding relies on, and are never shared between layouts.
    """

    def __init__(self, size: int, spare: int = 4) -> None:
        self.size, self._spare = size, spare
        self._free: list[Tensor] = []
        self._lock = threading.Lock()

    def take(self, copies: int) -> Tensor:
        """An arena for `copies` threads, each with its own items; to be given back."""
        need = self.size * copies
        with self._lock:
            for place, arena in enumerate(self._free):
                if arena.numel() >= need:
                    return self._free.pop(place)
        return zeros(need)

    def give(self, arena: Tensor) -> None:
        """Back. The smallest of too many are dropped."""
        with self._lock:
            self._free.append(arena)
            if len(self._free) > 1:
                self._free.sort(key=Tensor.numel)
                del self._free[: -self._spare]

    def renew(self) -> None:
        """In a forked process: a thread that is not there may have held the lock."""
        self._lock = threading.Lock()

    @contextmanager
    def lend(self, copies: int) -> Iterator[Tensor]:
        arena = self.take(copies)
        try:
            yield arena
        finally:
            self.give(arena)
