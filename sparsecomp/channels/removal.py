"""Which units are dead, and which of them can be taken out of the graph with every tensor still a box."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor, fx

from sparsecomp.channels.channels import Channels
from sparsecomp.channels.fixed import Fixed, Flags, Floats, fixed_values, nonzero, pads, product, weight_of
from sparsecomp.channels.labels import Labels
from sparsecomp.channels.products import RULES as PRODUCTS
from sparsecomp.channels.wiring import Reading, operand_name
from sparsecomp.slimming import full_name

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
    needs = [_need(graph, reading, fixed.get(reading.source), reasons) for reading in channels.readings]
    dead = _dead(channels, needs)
    pinned = np.isin(np.arange(channels.units), list(channels.pins))
    for label in np.flatnonzero((dead | _constant_units(channels, fixed)) & pinned).tolist():
        reasons.setdefault(label, channels.pins[label])
    dead &= ~pinned
    _keep_boxes(channels, needs, dead, reasons, alignment)
    shifts = {need.reading.node: _shift(graph, need, dead) for need in needs if need.constants.any()}
    gone = frozenset(np.flatnonzero(dead).tolist())
    return Removal(gone, reasons, {node: shift for node, shift in shifts.items() if shift.any()})


@dataclass(frozen=True)
class _Need:
    """What one layer reads. Arrays have an element per input channel."""

    reading: Reading
    needed: Flags
    """It cannot do without: there are weights, and its bias cannot take up what they multiply."""
    constants: Floats
    """What its bias would take up."""

    def of_groups(self) -> Iterator[tuple[Labels, Labels, Flags]]:
        """Inputs, results and what is needed, group by group."""
        inputs, results = (
            np.split(side, self.reading.groups) for side in (self.reading.labels, self.reading.results)
        )
        return zip(inputs, results, np.split(self.needed, self.reading.groups), strict=True)


def _need(graph: fx.GraphModule, reading: Reading, found: Fixed | None, reasons: dict[int, str]) -> _Need:
    known = found or Fixed.unknown(reading.labels.shape)
    value, varies = known.value.reshape(-1), known.varies.reshape(-1)
    used = _used(weight_of(graph, reading.node, reading), reading)
    seen = used & ~varies & (value != 0) & bool(pads(reading.node))
    reason = f"{operand_name(reading.node)} pads with zeros, beside which its constant would be seen"
    reasons.update(dict.fromkeys(np.unique(reading.labels[seen]).tolist(), reason))
    return _Need(reading, used & varies | seen, np.where(used & ~varies & ~seen, value, 0.0))


def _dead(channels: Channels, needs: Sequence[_Need]) -> Flags:
    """Units that are multiplied somewhere, and needed nowhere. A group of a convolution whose results are all dead
    needs nothing, and may leave as a whole."""
    read = np.zeros(channels.units, dtype=bool)
    for need in needs:
        read[need.reading.labels] = True
    dead = np.zeros(channels.units, dtype=bool)
    while True:
        live = np.zeros(channels.units, dtype=bool)
        for need in needs:
            for inputs, results, needed in need.of_groups():
                if need.reading.groups == 1 or not dead[results].all():
                    live[inputs[needed]] = True
        found = read & ~live
        if (found == dead).all():
            return dead
        dead = found


def _used(weight: Tensor | None, reading: Reading) -> Flags:
    """Per input channel, whether any weight that multiplies it is not zero."""
    assert weight is not None
    parts = np.split(nonzero(weight), reading.groups, axis=0)
    return np.concatenate([part.any(0) for part in parts])


def _constant_units(channels: Channels, fixed: Mapping[fx.Node, Fixed]) -> Flags:
    """Units that are constant from the layers on that make them."""
    made = np.zeros(channels.units, dtype=bool)
    varies = np.zeros(channels.units, dtype=bool)
    for node, labels in channels.labels.items():
        if node.target in PRODUCTS and node in fixed:
            made[labels] = True
            varies[labels[fixed[node].varies]] = True
    return made & ~varies


def _keep_boxes(
    channels: Channels,
    needs: Sequence[_Need],
    dead: Flags,
    reasons: dict[int, str],
    alignment: Alignment,
) -> None:
    """Take units out of `dead` until what stays of every value is a box, and grouped convolutions are even."""
    if not dead.any():
        return
    tall = _multiples(channels, dead, alignment)
    changed = True
    while changed and dead.any():
        changed = False
        for rule in (_torn(tall, dead), _uneven(needs, dead), _no_box(channels, dead)):
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


def _uneven(needs: Sequence[_Need], dead: Flags) -> Spared:
    """Groups of a convolution go whole, with inputs and results, or keep as many of each as the others."""
    for need in needs:
        if need.reading.groups == 1:
            continue
        groups = list(need.of_groups())
        away = [bool(dead[inputs].all() and dead[results].all()) for inputs, results, _ in groups]
        for inputs, results, needed in groups:
            if not dead[results].all():  # then what it needs was taken for dead too early
                yield inputs[needed], UNEVEN
        staying = [group for group, gone in zip(groups, away, strict=True) if not gone]
        for sides in ([group[0] for group in staying], [group[1] for group in staying]):
            widest = max((int((~dead[side]).sum()) for side in sides), default=0)
            for side in sides:
                lost = side[dead[side]]
                missing = max(widest, 1) - (len(side) - len(lost))
                if missing > 0:
                    yield lost[:missing], UNEVEN


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
                yield block, ALIGNED.format(full_name(parameter))


def _shift(graph: fx.GraphModule, need: _Need, dead: Flags) -> Floats:
    """What the bias takes up for the units that go: weights of each group times their constants."""
    reading = need.reading
    weight = weight_of(graph, reading.node, reading)
    assert weight is not None
    columns = np.split(np.where(dead[reading.labels], need.constants, 0.0), reading.groups)
    rows = weight.chunk(reading.groups)
    return np.concatenate([product(r, c) for r, c in zip(rows, columns, strict=True)])
