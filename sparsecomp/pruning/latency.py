"""How long each layer takes under each candidate: measured on the device at a few sparsities, read off between."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from torch import Tensor

from sparsecomp.cost import RepeatableCost
from sparsecomp.layer import Layer
from sparsecomp.pruning.candidate import DENSE, Candidate
from sparsecomp.pruning.prune import prune_weight
from sparsecomp.train.pattern import BLOCKS, Pattern

KNOTS = (0.4, 0.6, 0.8, 0.9, 0.96, 0.99)
"""Sparsities at which kernels are timed. Between them the time of one kernel is nearly linear in its density."""
UNLIKELY, AGAIN = 1.3, 3
"""How much more than expected makes a measurement doubtful, and how often it is then made again at most."""
KERNEL_ROWS = (1, 2, 4, 8)
"""That share a list of columns in some kernel."""


@dataclass(frozen=True)
class Curve:
    """Seconds of a layer's best kernel for lists of columns, by sparsity; measured at some, in rising order."""

    sparsities: tuple[float, ...] = ()
    seconds: tuple[float, ...] = ()

    @property
    def points(self) -> dict[float, float]:
        """Sparsity -> seconds."""
        return dict(zip(self.sparsities, self.seconds, strict=True))

    def at(self, sparsity: float) -> float:
        """By straight lines between what was measured, the first of them prolonged to lower sparsities. Infinite
        where nothing was measured.

        Time is not monotone in sparsity, but a kernel may always multiply some zeros: so never more than at a
        lower sparsity that was measured (the lower envelope).
        """
        if not self.sparsities:
            return math.inf
        envelope = np.minimum.accumulate(self.seconds)
        if sparsity < self.sparsities[0] and len(envelope) > 1:
            (low, high), (slow, fast) = self.sparsities[:2], envelope[:2]
            return float(slow + (slow - fast) * (low - sparsity) / (high - low))
        if sparsity < self.sparsities[0]:
            return math.inf
        return float(np.interp(sparsity, self.sparsities, envelope))


@dataclass(frozen=True)
class CallLatency:
    """Of one distinct call, run alone; seconds."""

    dense: float
    """Of whatever is fastest on dense weights, PyTorch's operator or a kernel; also what zeros are ignored by."""
    curves: Mapping[Pattern, Curve] = field(default_factory=dict)

    def seconds(self, candidate: Candidate) -> float:
        if candidate.is_dense:
            return self.dense
        return min(self.dense, self.curves[candidate.structure].at(candidate.sparsity))

    def as_dict(self) -> dict[str, Any]:
        curves = {c.name: [curve.sparsities, curve.seconds] for c, curve in self.curves.items()}
        return {"dense": self.dense, "curves": curves}

    @staticmethod
    def of(data: Mapping[str, Any]) -> CallLatency:
        """Inverse of `as_dict`."""
        curves = {Pattern.parse(n): Curve(*map(tuple, curve)) for n, curve in data["curves"].items()}
        return CallLatency(data["dense"], curves)


@dataclass(frozen=True)
class LatencyTable:
    """Layer -> its calls: a layer that is called twice has two."""

    calls: Mapping[str, tuple[CallLatency, ...]]

    def seconds(self, layer: str, candidate: Candidate) -> float:
        """Of all calls of the layer, each run alone."""
        return sum(call.seconds(candidate) for call in self.calls[layer])

    def total(self, choices: Mapping[str, Candidate]) -> float:
        """Of all layers of the table; those without a choice are dense."""
        return sum(self.seconds(layer, choices.get(layer, DENSE)) for layer in self.calls)

    def as_dict(self) -> dict[str, Any]:
        return {name: [call.as_dict() for call in calls] for name, calls in self.calls.items()}

    @staticmethod
    def of(data: Mapping[str, Any]) -> LatencyTable:
        """Inverse of `as_dict`."""
        return LatencyTable({name: tuple(map(CallLatency.of, calls)) for name, calls in data.items()})


def measure_latency(
    layers: Mapping[str, Sequence[tuple[Layer, Tensor]]],
    structures: Iterable[Pattern],
    cost: RepeatableCost,
    started: Callable[[str], None] = lambda name: None,
) -> LatencyTable:
    """Measure what is not known yet; equal calls are measured once, with the first one's weight.

    The cost keeps every measurement when it is made, so an interrupted run goes on where it stopped.

    Args:
        layers: Name -> its call sites, each with its dense matrix, rows x columns.
        structures: Of the candidates that will be asked for.
        cost: Of the device, as `codegen.meter` returns it.
        started: Told of each measurement before it is made; there are `measurements(layers, structures)`.
    """
    wanted = tuple(structures)
    found: dict[Layer, CallLatency] = {}
    for sites in layers.values():
        for layer, matrix in sites:
            if _kind(layer) not in found:
                found[_kind(layer)] = _measure_call(layer, matrix, wanted, cost, started)
    return LatencyTable(
        {name: tuple(found[_kind(layer)] for layer, _ in sites) for name, sites in layers.items()}
    )


def measurements(layers: Mapping[str, Sequence[tuple[Layer, Tensor]]], structures: Iterable[Pattern]) -> int:
    """How many measurements `measure_latency` needs at most."""
    kinds = {_kind(layer) for sites in layers.values() for layer, _ in sites}
    return len(kinds) * (1 + sum(len(_knots(structure)) for structure in structures))


def _kind(layer: Layer) -> Layer:
    """What equal calls have in common."""
    return replace(layer, name="", weight="", source="")


def _knots(structure: Pattern) -> tuple[float, ...]:
    return KNOTS if structure.only_sparsity is None else (structure.only_sparsity,)


def _measure_call(
    layer: Layer,
    matrix: Tensor,
    structures: Sequence[Pattern],
    cost: RepeatableCost,
    started: Callable[[str], None],
) -> CallLatency:
    started(f"{layer.name}: dense")
    dense = _dense_seconds(layer, matrix, cost)
    curves = {}
    for structure in structures:
        points = {}
        for sparsity in _knots(structure):
            started(f"{layer.name}: {Candidate(structure, sparsity)}")
            seconds = _skipping_seconds(layer, matrix, Candidate(structure, sparsity), cost)
            if seconds is not None:
                points[sparsity] = seconds
        curves[structure] = _checked(layer, matrix, structure, points, cost)
    least = min((_bound(curve.points, 0.0) for curve in curves.values()), default=math.inf)
    if dense > UNLIKELY * least:
        cost.doubt(layer, matrix)
        dense = min(dense, _dense_seconds(layer, matrix, cost))
    return CallLatency(dense, curves)


def _dense_seconds(layer: Layer, matrix: Tensor, cost: RepeatableCost) -> float:
    return min(c.seconds for c in cost.candidates(layer, matrix) if c.seconds is not None)


def _checked(
    layer: Layer, matrix: Tensor, structure: Pattern, points: dict[float, float], cost: RepeatableCost
) -> Curve:
    """The curve, unlikely points of it measured again.

    Another process can hold a core for the whole of a measurement: on two cores that is some milliseconds for a kernel that
    takes a tenth of one, in every run. The other points of the curve tell.
    """
    for _ in range(AGAIN):
        unlikely = [s for s, seconds in points.items() if seconds > UNLIKELY * _bound(points, s)]
        if not unlikely:
            break
        for sparsity in unlikely:
            candidate = Candidate(structure, sparsity)
            named, pruned = _pruned(layer, matrix, candidate)
            cost.doubt(named, pruned)
            seconds = _skipping_seconds(layer, matrix, candidate, cost)
            if seconds is not None:
                points[sparsity] = min(points[sparsity], seconds)
    return Curve(tuple(points), tuple(points.values()))


def _bound(points: Mapping[float, float], sparsity: float) -> float:
    """The most that a kernel is expected to take: no more than with fewer zeros; and, as part of its time does not depend
    on these, no more than with more of them, in proportion to the density. Infinite where nothing is known."""
    found = [
        seconds * max(1.0, (1 - sparsity) / (1 - other))
        for other, seconds in points.items()
        if other != sparsity
    ]
    return min(found, default=math.inf)


def _skipping_seconds(
    layer: Layer, matrix: Tensor, candidate: Candidate, cost: RepeatableCost
) -> float | None:
    """Of the fastest kernel that skips these zeros; None where there is none.

    Magnitude decides which weights are zero: times depend on how many there are, and how unevenly."""
    named, pruned = _pruned(layer, matrix, candidate)
    if _rows(candidate.structure):
        return cost.skipping(layer, pruned, _rows(candidate.structure))
    found = [c for c in cost.candidates(named, pruned) if c.how is not None and not c.refused]
    return min((c.seconds for c in found if c.seconds is not None), default=None)


def _pruned(layer: Layer, matrix: Tensor, candidate: Candidate) -> tuple[Layer, Tensor]:
    """The layer with these zeros. The cost remembers its answers by layer: this one has another name."""
    weight = matrix.reshape(layer.rows, layer.weight_shape[1], -1)
    pruned = prune_weight(weight, candidate, None, "magnitude").weight.reshape(matrix.shape)
    return replace(layer, name=f"{layer.name}, {candidate}"), pruned


def _rows(structure: Pattern) -> int:
    """Of the blocks that a kernel for the structure has; 0 where several kernels could be the best."""
    if structure.name == "unstructured" or structure.n_of_m:
        return 1
    block = BLOCKS.fullmatch(structure.name)
    return max(rows for rows in KERNEL_ROWS if int(block[1]) % rows == 0) if block else 0
