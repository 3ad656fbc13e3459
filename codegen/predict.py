"""The cost model: seconds of a kernel before it is measured, as a sum of amounts of work times what each costs.

The costs are fitted to what was measured on the same device with the same threads; they start from those of one
server processor, and stay near them where little was measured. The model orders a search and says when
to end it. It never decides what is used.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

from sparsecomp.codegen.bitmap import BLOCK
from sparsecomp.codegen.machine import Machine
from sparsecomp.codegen.octets import OCTET, WORDS
from sparsecomp.codegen.schedules import pass_bytes
from sparsecomp.codegen.timings import Record
from sparsecomp.geometry import FLOAT, TILE, Geometry, Planes
from sparsecomp.layer import Layer
from sparsecomp.pattern import RowBlocks
from sparsecomp.region import Depthwise, FewTokens, FewWeights, OnGpu, RowsKernelChoice, Schedule

Work = Mapping[str, float]
"""Amount of each kind of work."""
STARTING_COSTS: Mapping[str, float] = {
    "calls": 1e-6,
    "multiply-adds": 0.19e-9,  # of a vector
    "loads": 0.24e-9,  # of a vector of X that is in the L1 cache
    "far loads": 0.07e-9,  # what more it takes where it is not
    "entries": 0.18e-9,  # of lists: a loop's turn, and the offset
    "broadcasts": 0.03e-9,  # of a weight to a vector
    "visits": 1.2e-9,  # of a block of rows: its sums are cleared, and stored
    "partial sums": 0.5e-9,  # vectors stored by one pass for the next, and loaded by it
    "stream bytes": 0.005e-9,
    "unfetched bytes": 0.007e-9,  # what more they take where nothing is fetched ahead
    "spills": 1.2e-9,  # sums beyond the registers, at each entry
}
"""Seconds of each kind of work on one thread of a server processor with AVX-512: where a fit begins."""
STIFFNESS = 0.02
"""Weight of an error of 100 % in a cost's starting value, beside one of 100 % in a time."""
NEAR = 4.0
"""Weight of what was measured of the same call: its own records say most about it."""
SWEEPS = 200


def work_of(
    layer: Layer, geometry: Geometry, lengths: Tensor, how: RowsKernelChoice, machine: Machine
) -> dict[str, float]:
    """The work of one kernel on the layer's example. lengths: of the list of each block of rows."""
    entries = float(lengths.sum())
    match how.schedule:
        case FewTokens():
            return _few_tokens(layer, entries, how, how.schedule, machine)
        case FewWeights():
            return _few_weights(layer, entries, how.schedule)
        case Depthwise():
            return _depthwise(layer, geometry, machine)
        case OnGpu():
            raise AssertionError("what a GPU takes is not predicted")
        case _:
            return _gathered(layer, geometry, lengths, how.pattern, how.schedule, machine)


def _few_tokens(
    layer: Layer, entries: float, how: RowsKernelChoice, schedule: FewTokens, machine: Machine
) -> dict[str, float]:
    blocks, dense = layer.rows * math.ceil(layer.columns / BLOCK), how.pattern.shared
    vectors = blocks * BLOCK / machine.lanes
    streamed = blocks * BLOCK * FLOAT if dense else entries * FLOAT + blocks * BLOCK / 8
    return dict.fromkeys(STARTING_COSTS, 0.0) | {
        "calls": 1.0,
        "multiply-adds": vectors * layer.output_size[1],
        "entries": 0.0 if dense else vectors,  # each is expanded
        "stream bytes": streamed,
        "unfetched bytes": 0.0 if schedule.ahead else streamed,
    }


def _few_weights(layer: Layer, entries: float, schedule: FewWeights) -> dict[str, float]:
    octets, tokens = entries / OCTET + layer.rows / 2, layer.output_size[1]  # a row's last one is half full
    streamed = octets * WORDS * FLOAT
    return dict.fromkeys(STARTING_COSTS, 0.0) | {
        "calls": 1.0,
        "multiply-adds": octets * tokens,
        "loads": octets * OCTET * tokens,  # each float of X by itself
        "visits": float(layer.rows * tokens),
        "stream bytes": streamed,
        "unfetched bytes": 0.0 if schedule.ahead else streamed,
    }


def _depthwise(layer: Layer, geometry: Geometry, machine: Machine) -> dict[str, float]:
    vectors, _ = _extent(layer, geometry, 1, machine)
    taps = layer.rows * layer.columns * vectors
    return dict.fromkeys(STARTING_COSTS, 0.0) | {
        "calls": 1.0,
        "multiply-adds": taps,
        "loads": taps,
        "visits": float(layer.rows),
    }


def _gathered(
    layer: Layer,
    geometry: Geometry,
    lengths: Tensor,
    pattern: RowBlocks,
    schedule: Schedule,
    machine: Machine,
) -> dict[str, float]:
    rows, listed = pattern.rows, not pattern.shared
    entries, groups = float(lengths.sum()), len(lengths)
    columns = layer.columns if listed else int(lengths.max())
    passes = max(1, math.ceil(columns / schedule.columns))
    vectors, chunks = _extent(layer, geometry, schedule.vectors, machine)
    reach = pass_bytes(layer, geometry, schedule, machine)
    far = max(0.0, 1.0 - machine.l1_bytes / reach)
    streamed = entries * (rows + listed) * FLOAT * chunks
    held = rows * schedule.vectors + (schedule.vectors if rows > 1 else 0) + 1
    return {
        "calls": 1.0,
        "multiply-adds": entries * rows * vectors,
        "loads": entries * vectors,
        "far loads": entries * vectors * far,
        "entries": entries * chunks,
        "broadcasts": entries * rows * chunks,
        "visits": groups * passes * chunks,
        "partial sums": groups * rows * vectors * (passes - 1.0),
        "stream bytes": streamed,
        "unfetched bytes": streamed if listed and not schedule.prefetch else 0.0,
        "spills": entries * chunks * max(0, held - machine.registers),
    }


def _extent(layer: Layer, geometry: Geometry, width: int, machine: Machine) -> tuple[float, float]:
    """Vectors of columns of all items, and the chunks of `width` vectors they are walked in."""
    if isinstance(geometry, Planes):
        items, vectors = layer.input_shape[0], math.ceil(geometry.columns / machine.lanes)
        return float(items * vectors), float(items * math.ceil(vectors / width))
    tokens = math.prod(layer.input_shape[:-1])
    tiles = [TILE] * (tokens // TILE) + [tokens % TILE] * (tokens % TILE > 0)
    found = [math.ceil(tile / machine.lanes) for tile in tiles]
    return float(sum(found)), float(sum(math.ceil(vectors / width) for vectors in found))


@dataclass(frozen=True)
class CostModel:
    """Seconds = sum of work times costs."""

    costs: Mapping[str, float]
    error: float
    """Root mean square of predicted / measured - 1 over what it was fitted to; 0.5 where that is nothing."""

    def seconds(self, work: Work) -> float:
        return sum(self.costs.get(name, 0.0) * amount for name, amount in work.items())


def fit(records: Sequence[Record], threads: int, call: str = "") -> CostModel:
    """A model of these trials, those of `call` above all; without any, of the starting costs, shared by `threads`."""
    usable = [
        record for record in records if record.seconds > 0 and set(record.details) == set(STARTING_COSTS)
    ]
    start = np.array([cost / threads for cost in STARTING_COSTS.values()])
    if not usable:
        return CostModel(dict(zip(STARTING_COSTS, start.tolist(), strict=True)), error=0.5)
    seconds = np.array([record.seconds for record in usable])
    work = np.array([[float(record.details[name]) for name in STARTING_COSTS] for record in usable])
    weights = np.array([NEAR if record.key.call == call else 1.0 for record in usable])
    relative = work * start / seconds[:, None]  # share of each record's time, at the starting costs
    factors = _factors(relative, weights)
    residual = relative @ factors - 1.0
    error = math.sqrt(float((weights * residual**2).sum() / weights.sum()))
    return CostModel(dict(zip(STARTING_COSTS, (start * factors).tolist(), strict=True)), error)


def _factors(relative: npt.NDArray[np.float64], weights: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Non-negative u that minimises sum of weights * (relative u - 1)^2 + STIFFNESS * (u - 1)^2, one
    coordinate at a time."""
    weighted = relative * weights[:, None]
    square, right = weighted.T @ relative, weighted.sum(axis=0)
    square += STIFFNESS * np.eye(len(square))
    right += STIFFNESS
    found = np.ones(len(square))
    for _ in range(SWEEPS):
        for i in range(len(found)):
            found[i] = max(0.0, found[i] + (right[i] - square[i] @ found) / square[i, i])
    return found
