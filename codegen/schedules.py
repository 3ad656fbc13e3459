"""The schedules worth trying for a kernel, the most promising first."""

from __future__ import annotations

from sparsecomp.codegen.machine import Machine
from sparsecomp.geometry import TILE, Geometry, Planes
from sparsecomp.layer import Layer
from sparsecomp.pattern import RowBlocks
from sparsecomp.region import Schedule

FLOAT = 4
STREAM_AHEAD = 128
"""Floats of the stream fetched ahead: eight cache lines."""


def schedules(layer: Layer, geometry: Geometry, pattern: RowBlocks, machine: Machine) -> list[Schedule]:
    """Vectors per row limited by registers and fitted to the plane, passes fitted to the L1 cache."""
    found = []
    for target, fraction in _preferences(pattern, machine):
        vectors = _fitted(target, geometry, machine)
        found.append(Schedule(vectors, _pass(layer, vectors, fraction, machine), _ahead(pattern)))
    return list(dict.fromkeys(found))


def _preferences(pattern: RowBlocks, machine: Machine) -> list[tuple[int, float]]:
    """(vectors per row, share of the L1 cache that a pass may fill; 0 for a single pass)."""
    sums = machine.accumulators
    if pattern.shared:
        return [(max(1, (sums - sums // 8) // pattern.rows), 8.0), (max(1, sums // 2 // pattern.rows), 8.0)]
    match pattern.rows:
        case 1:
            # One load of X per multiply-add: X must come from L1.
            wide = min(8, sums // 2) if machine.registers == 32 else 6
            return [(wide, 1.0), (wide, 2.0), (max(1, wide // 2), 1.0), (wide, 0.0)]
        case 2:
            return [(min(8, sums // 3), 2.0), (min(8, sums // 3), 0.0), (max(1, sums // 6), 2.0)]
        case _:
            return [(max(1, sums * 4 // 5 // pattern.rows), 0.0), (max(1, sums // 2 // pattern.rows), 0.0)]


def _fitted(target: int, geometry: Geometry, machine: Machine) -> int:
    """At most 5/4 of `target`, leaving the smallest remainder of the plane's columns."""
    columns = geometry.columns if isinstance(geometry, Planes) else TILE
    total = -(-columns // machine.lanes)
    if not isinstance(geometry, Planes):
        return min(target, total)
    if total <= target * 5 // 4:
        return total
    chunks = -(-total // target)
    return -(-total // chunks)


def _pass(layer: Layer, vectors: int, fraction: float, machine: Machine) -> int:
    """Columns of the weight whose rows of X fill that share of L1; the taps of a convolution share a row."""
    if not fraction:
        return layer.columns
    taps = max(1, layer.columns // layer.weight_shape[1])
    rows = int(fraction * machine.l1_bytes / (vectors * machine.lanes * FLOAT))
    return max(16, min(layer.columns, rows * taps))


def _ahead(pattern: RowBlocks) -> int:
    return 0 if pattern.shared else STREAM_AHEAD
