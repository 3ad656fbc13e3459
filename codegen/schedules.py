"""The schedules of a kernel: the few that every compilation tries, and all those that a search may draw from."""

from __future__ import annotations

import re
from functools import lru_cache
from itertools import pairwise

from sparsecomp.codegen.cpu.bitmap_rows import refusal
from sparsecomp.codegen.machine import Machine
from sparsecomp.geometry import FLOAT, TILE, Geometry, Planes, offsets
from sparsecomp.layer import Layer
from sparsecomp.pattern import IN_PLACE, RowBlocks
from sparsecomp.region import (
    FEW_TOKENS,
    ON_GPU,
    AnySchedule,
    Depthwise,
    FewTokens,
    FewWeights,
    OnGpu,
    Schedule,
)

STREAM_AHEAD = 128
"""Floats of the stream fetched ahead: eight cache lines."""
DISTANCES = (STREAM_AHEAD, 0, 64, 256)
"""All that a search tries."""
WIDEST = 16
"""Vectors per row that a search tries at most."""
FEW_TOKENS_AHEAD = (512, 0, 256, 1024)
"""Floats of the values that the kernel for few tokens fetches ahead."""
SHARES_OF_L1 = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 0.0)
"""Of the L1 cache, that X may fill in a pass; 0 for a single pass."""
VERY_FEW_TOKENS = 4
"""Up to so many nothing else is worth timing: vectors of tokens would be filled to a quarter."""


def candidates(layer: Layer, geometry: Geometry, pattern: RowBlocks, machine: Machine) -> list[AnySchedule]:
    """All schedules worth timing for the layer."""
    few: list[AnySchedule] = [*few_weights(layer, pattern), *few_tokens(layer, pattern, machine)]
    if only_few_tokens(layer, machine) or pattern == IN_PLACE:
        return few
    depthwise = layer.groups == layer.rows > 1 and layer.weight_shape[1] == 1 and pattern == RowBlocks(1)
    return [*[Depthwise()] * depthwise, *schedules(layer, geometry, pattern, machine), *few]


def only_few_tokens(layer: Layer, machine: Machine) -> bool:
    """Whether no other kernel than that for few tokens is worth timing."""
    return layer.op == "linear" and layer.output_size[1] <= VERY_FEW_TOKENS and not refusal(machine)


def few_tokens(layer: Layer, pattern: RowBlocks, machine: Machine) -> list[FewTokens]:
    """The kernel for few tokens, with and without fetching ahead, where it serves the layer."""
    serves = layer.op == "linear" and layer.output_size[1] <= FEW_TOKENS and not refusal(machine)
    if not serves or not (pattern == RowBlocks(1) or pattern.shared):
        return []
    if pattern == IN_PLACE:
        return [FewTokens(ahead, in_place=True) for ahead in (0, 512)]
    return [FewTokens(0)] if pattern.shared else [FewTokens(512), FewTokens(0)]


def few_weights(layer: Layer, pattern: RowBlocks) -> list[FewWeights]:
    """The kernel for few tokens and few weights, where it serves the layer."""
    serves = layer.op == "linear" and layer.output_size[1] <= VERY_FEW_TOKENS and pattern == RowBlocks(1)
    return [FewWeights()] if serves else []


def schedules(layer: Layer, geometry: Geometry, pattern: RowBlocks, machine: Machine) -> list[Schedule]:
    """Vectors per row limited by registers and fitted to the plane, passes fitted to the L1 cache."""
    found = []
    for target, fraction in _preferences(pattern, machine):
        vectors = _fitted(target, _widest(geometry, pattern, machine), geometry, machine)
        found.append(Schedule(vectors, _pass(layer, geometry, vectors, fraction, machine), _ahead(pattern)))
    return list(dict.fromkeys(found))


def space(layer: Layer, geometry: Geometry, pattern: RowBlocks, machine: Machine) -> list[AnySchedule]:
    """Every schedule worth a trial, `candidates` first: vectors as registers hold them, passes on a grid."""
    found = candidates(layer, geometry, pattern, machine)
    if few_weights(layer, pattern):
        found += [FewWeights(ahead) for ahead in FEW_TOKENS_AHEAD]
    if few_tokens(layer, pattern, machine):
        found += [FewTokens(ahead, pattern == IN_PLACE) for ahead in FEW_TOKENS_AHEAD]
    if only_few_tokens(layer, machine) or pattern == IN_PLACE:
        return list(dict.fromkeys(found))
    distances = (0,) if pattern.shared else DISTANCES
    for vectors in range(1, _widest(geometry, pattern, machine) + 1):
        passes = {_pass(layer, geometry, vectors, share, machine): None for share in SHARES_OF_L1}
        for columns in passes:
            found += [Schedule(vectors, columns, distance) for distance in distances]
    return list(dict.fromkeys(found))


def _widest(geometry: Geometry, pattern: RowBlocks, machine: Machine) -> int:
    columns = geometry.columns if isinstance(geometry, Planes) else TILE
    return min(WIDEST, _most(pattern, machine), -(-columns // machine.lanes))


def pass_bytes(layer: Layer, geometry: Geometry, schedule: Schedule, machine: Machine) -> float:
    """Of X, that one pass reads for one chunk of vectors."""
    taps = max(1, layer.columns // layer.weight_shape[1])
    floats = schedule.vectors * machine.lanes
    if isinstance(geometry, Planes) and taps > 1:
        floats = _reach(layer, geometry, floats)
    return min(schedule.columns, layer.columns) / taps * floats * FLOAT


def _preferences(pattern: RowBlocks, machine: Machine) -> list[tuple[int, float]]:
    """(vectors per row, share of the L1 cache that X may fill in a pass; 0 for a single pass)."""
    most = _most(pattern, machine)
    half = (most + 1) // 2
    if pattern.shared:
        return [(most, 8.0), (half, 8.0), (half, 1.0)]
    match pattern.rows:
        case 1:
            # One load of X per multiply-add: X must come from L1.
            wide = 8 if machine.registers == 32 else 6
            return [(wide, 1.0), (wide, 2.0), (wide, 0.5), (most, 1.0), (most, 0.5), (wide // 2, 1.0)]
        case 2:
            wide = min(8, most)
            return [(wide, 2.0), (wide, 0.0), (wide // 2, 2.0)]
        case _:
            return [(most, 0.0), (half, 0.0), (most, 1.0), (half, 1.0), (max(1, half * 2 // 3), 1.0)]


def _most(pattern: RowBlocks, machine: Machine) -> int:
    """Vectors per row whose sums, with X and a weight, fill the registers. With one row X is an operand of the
    multiply-add, and needs none."""
    if pattern.rows == 1:
        return min(WIDEST, machine.registers - 2)
    return max(1, (machine.registers - 1) // (pattern.rows + 1))


def _fitted(target: int, widest: int, geometry: Geometry, machine: Machine) -> int:
    """At most 5/4 of `target`, and `widest`, leaving the smallest remainder of the plane's columns."""
    columns = geometry.columns if isinstance(geometry, Planes) else TILE
    total = -(-columns // machine.lanes)
    if total <= min(target * 5 // 4, widest):
        return total
    chunks = -(-total // target)
    return -(-total // chunks)


def _pass(layer: Layer, geometry: Geometry, vectors: int, fraction: float, machine: Machine) -> int:
    """Columns of the weight whose X, for one chunk of vectors, fills that share of L1."""
    if not fraction:
        return layer.columns
    taps = max(1, layer.columns // layer.weight_shape[1])
    floats = vectors * machine.lanes
    if isinstance(geometry, Planes) and taps > 1:
        floats = _reach(layer, geometry, floats)
    channels = int(fraction * machine.l1_bytes / (floats * FLOAT))
    return max(16, min(layer.columns, channels * taps))


def _reach(layer: Layer, geometry: Planes, floats: int) -> int:
    """Floats of one input channel that the taps of a kernel read for `floats` columns of output."""
    total = floats
    for before, start in pairwise(_starts(layer, geometry)):
        total += min(floats, start - before)
    return total


@lru_cache(maxsize=64)
def _starts(layer: Layer, geometry: Planes) -> list[int]:
    """Where the taps of a kernel read one input channel, in order."""
    return sorted(set(offsets(layer, geometry)[0, : layer.columns // layer.weight_shape[1]].tolist()))


def _ahead(pattern: RowBlocks) -> int:
    return 0 if pattern.shared else STREAM_AHEAD


def parse_schedule(text: str) -> AnySchedule:
    """Inverse of `str(schedule)`.

    Raises:
        ValueError: it is none.
    """
    for kind, in_place in (("bitmap P", False), ("in place P", True)):
        if text.startswith(kind) and text.removeprefix(kind).isdecimal():
            return FewTokens(int(text.removeprefix(kind)), in_place)
    if text.startswith("octets P") and text.removeprefix("octets P").isdecimal():
        return FewWeights(int(text.removeprefix("octets P")))
    if text == "depthwise":
        return Depthwise()
    if text.startswith(ON_GPU) and text != ON_GPU:
        return OnGpu(text.removeprefix(ON_GPU))
    found = re.fullmatch(r"V([1-9]\d?) K([1-9]\d*)(?: P(\d+))?", text)
    if not found:
        raise ValueError(f"{text!r} is no schedule")
    return Schedule(*(int(number or 0) for number in found.groups()))
