"""Which units are dead, and which of them can be taken out of the graph with every tensor still a box."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor, fx

from sparsecomp.channels.channels import Channels
from sparsecomp.channels.fixed import Fixed, Flags, Floats, fixed_values, pads, product, weight_of
from sparsecomp.channels.labels import Labels
from sparsecomp.channels.wiring import Reading, operand_name

LAST = "one unit of every layer stays"
UNEVEN = "the groups of a convolution must stay of one size"
NO_BOX = "{} would be no box any more"
ALIGNED = "zeros of {} are in blocks that would be torn"

Alignment = Callable[[str], tuple[int, int]]
"""Parameter -> outputs and inputs of the blocks its zeros are in, (1, 1) where they are in none."""


@dataclass(frozen=True)
class Removal:
    """What is taken out at once."""

    gone: frozenset[int]
    """Units."""
    kept: Mapping[int, str]
    """Unit that is dead in part, or whole and stays -> why."""
    shifts: Mapping[fx.Node, Floats]
    """Layer -> what the constants of units that are gone add to its bias."""


def plan_removal(graph: fx.GraphModule, channels: Channels, alignment: Alignment) -> Removal:
    """A unit can go if wherever it is multiplied its weights are zero, or its value is a constant that the
    multiplying layer's bias takes up; if nothing pins it; and if what stays of every value is a box.

    Reads every weight once, plus once more for each that the units cross.
    """
    fixed = fixed_values(graph, channels)
    reasons: dict[int, str] = {}
    live = np.zeros(channels.units, dtype=bool)
    crossed = np.zeros(channels.units, dtype=bool)
    dead = np.zeros(channels.units, dtype=bool)
    unused: dict[fx.Node, Flags] = {}
    for reading in channels.readings:
        crossed[reading.labels] = True
        unused[reading.node] = ~_used(weight_of(graph, reading.node, reading), reading)
        blocked = _blocked(reading, unused[reading.node], fixed.get(reading.source))
        for label, reason in blocked.items():
            live[label] = True
            if reason:
                reasons.setdefault(label, reason)
    dead = crossed & ~live
    pinned = np.isin(np.arange(channels.units), list(channels.pins))
    for label in np.flatnonzero(_constant_units(channels, fixed) & pinned).tolist():
        reasons.setdefault(label, channels.pins[label])
    for label in np.flatnonzero(dead & pinned).tolist():
        reasons.setdefault(label, channels.pins[label])
    dead &= ~pinned
    _keep_boxes(channels, dead, reasons, alignment)
    shifts = _shifts(graph, channels, fixed, unused, dead)
    return Removal(frozenset(np.flatnonzero(dead).tolist()), reasons, shifts)


def _used(weight: Tensor | None, reading: Reading) -> Flags:
    """Per input channel, whether any weight that multiplies it is not zero."""
    assert weight is not None
    nonzero = (weight != 0).any(2).numpy()
    parts = np.split(nonzero, reading.groups, axis=0)
    return np.concatenate([part.any(0) for part in parts])


def _blocked(reading: Reading, unused: Flags, found: Fixed | None) -> dict[int, str]:
    """Units that this layer reads and that it cannot do without; with a reason where only padding is in the way."""
    known = found or Fixed.unknown(reading.labels.shape)
    value, varies = known.value.reshape(-1), known.varies.reshape(-1)
    blocked: dict[int, str] = {}
    place = bool(pads(reading.node))
    for label in np.unique(reading.labels[~unused & varies]).tolist():
        blocked[label] = ""
    if place:
        reason = f"{operand_name(reading.node)} pads with zeros, beside which its constant would be seen"
        for label in np.unique(reading.labels[~unused & ~varies & (value != 0)]).tolist():
            blocked.setdefault(label, reason)
    return blocked


def _constant_units(channels: Channels, fixed: Mapping[fx.Node, Fixed]) -> Flags:
    """Units that are constant wherever a layer reads them."""
    crossed = np.zeros(channels.units, dtype=bool)
    varies = np.zeros(channels.units, dtype=bool)
    for reading in channels.readings:
        crossed[reading.labels] = True
        found = fixed.get(reading.source)
        varies[reading.labels[found.varies.reshape(-1)] if found else reading.labels] = True
    return crossed & ~varies


def _keep_boxes(channels: Channels, dead: Flags, reasons: dict[int, str], alignment: Alignment) -> None:
    """Take units out of `dead` until what stays of every value is a box, and grouped convolutions are even."""
    if not dead.any():
        return
    tall = _multiples(channels, dead, alignment)
    changed = True
    while changed and dead.any():
        changed = False
        for rule in (_torn(tall, dead), _uneven(channels, dead), _no_box(channels, dead)):
            for labels, reason in rule:
                back = np.unique(labels[dead[labels]])
                if len(back):
                    changed = True
                    dead[back] = False
                    reasons.update(dict.fromkeys(back.tolist(), reason))


Spared = Iterator[tuple[Labels, str]]


def _no_box(channels: Channels, dead: Flags) -> Spared:
    for node, labels in channels.labels.items():
        gone = dead[labels]
        if not gone.any():
            continue
        if gone.all():
            yield labels.reshape(-1)[:1], LAST
            continue
        whole = np.zeros_like(gone)
        for axis in range(gone.ndim):
            others = tuple(a for a in range(gone.ndim) if a != axis)
            whole |= gone.all(others, keepdims=True) & (gone.shape[axis] > 1)
        yield labels[gone & ~whole], NO_BOX.format(operand_name(node))


def _uneven(channels: Channels, dead: Flags) -> Spared:
    """Groups of a convolution go whole, with inputs and outputs, or keep as many of each as the others."""
    for reading in channels.readings:
        if reading.groups == 1:
            continue
        sides = [side.reshape(reading.groups, -1) for side in (reading.labels, reading.results)]
        gone = [dead[side] for side in sides]
        away = gone[0].all(1) & gone[1].all(1)
        for side, lost in zip(sides, gone, strict=True):
            fewest = int((~lost[~away]).sum(1).max(initial=1))
            for group in np.flatnonzero(~away).tolist():
                missing = max(fewest, 1) - int((~lost[group]).sum())
                if missing > 0:
                    yield side[group][lost[group]][:missing], UNEVEN


def _multiples(channels: Channels, dead: Flags, alignment: Alignment) -> list[tuple[Labels, int, str]]:
    """Where zeros are in blocks: the labels that the blocks walk over, how many at a time, and the parameter."""
    found = []
    for place in channels.places:
        if place.role != "scales" and dead[place.labels].any():
            height, width = alignment(place.parameter)
            size = height if place.role == "produces" else width
            if size > 1:
                found.append((place.labels, size, place.parameter))
    return found


def _torn(tall: list[tuple[Labels, int, str]], dead: Flags) -> Spared:
    for labels, size, parameter in tall:
        for start in range(0, len(labels), size):
            block = labels[start : start + size]
            if dead[block].any() and not dead[block].all():
                yield block, ALIGNED.format(parameter)


def _shifts(
    graph: fx.GraphModule,
    channels: Channels,
    fixed: Mapping[fx.Node, Fixed],
    unused: Mapping[fx.Node, Flags],
    dead: Flags,
) -> dict[fx.Node, Floats]:
    shifts: dict[fx.Node, Floats] = {}
    for reading in channels.readings:
        found = fixed.get(reading.source)
        if found is None:
            continue
        counts = dead[reading.labels] & ~unused[reading.node] & ~found.varies.reshape(-1)
        value = np.where(counts, found.value.reshape(-1), 0.0)
        weight = weight_of(graph, reading.node, reading)
        if not value.any() or weight is None:
            continue
        rows, columns = weight.chunk(reading.groups), np.split(value, reading.groups)
        shifts[reading.node] = np.concatenate([product(r, c) for r, c in zip(rows, columns, strict=True)])
    return shifts
