"""The cost model follows what was measured, and starts somewhere where nothing was."""

from __future__ import annotations

import random

import pytest
import torch

from sparsecomp.codegen.call import Call
from sparsecomp.codegen.machine import Machine
from sparsecomp.codegen.predict import STARTING_COSTS, fit
from sparsecomp.codegen.schedules import candidates, space
from sparsecomp.codegen.timings import Record
from sparsecomp.layer import Layer
from sparsecomp.pattern import IN_PLACE, PATTERNS, RowBlocks
from sparsecomp.region import RowsKernelChoice, Schedule

MACHINE = Machine("a cpu", "", lanes=16, registers=32)
LAYERS = (
    Layer("linear", "linear", "w", (96, 64), (70, 64)),
    Layer("conv", "conv2d", "w", (32, 16, 3, 3), (1, 16, 12, 12), padding=(1, 1, 1, 1)),
)


def call(layer: Layer, density: float = 0.2) -> Call:
    generator = torch.Generator().manual_seed(0)
    matrix = torch.rand(layer.rows, layer.columns, generator=generator)
    return Call.of(layer, matrix * (torch.rand(matrix.shape, generator=generator) < density))


def trials(costs: dict[str, float], noise: float = 0.0) -> list[Record]:
    """Of all kernels of two layers, on a machine where work costs this."""
    draw, records = random.Random(0), []
    for one in map(call, LAYERS):
        for pattern in PATTERNS:
            for schedule in space(one.layer, one.geometry, pattern, MACHINE):
                how = RowsKernelChoice(pattern, schedule)
                seconds = sum(costs[name] * amount for name, amount in one.work(how, MACHINE).items())
                records.append(one.trial(MACHINE, 1, how, seconds * (1 + noise * draw.uniform(-1, 1))))
    return records


def test_without_records_it_has_its_starting_costs() -> None:
    model = fit([], threads=2)
    assert model.costs == pytest.approx({name: cost / 2 for name, cost in STARTING_COSTS.items()})
    assert model.error > 0


@pytest.mark.parametrize("factor", [0.25, 1.0, 4.0])
def test_it_learns_how_fast_the_machine_is(factor: float) -> None:
    records = trials({name: cost * factor for name, cost in STARTING_COSTS.items()}, noise=0.05)
    model = fit(records, threads=1)
    assert model.error < 0.1
    for record in records:
        assert model.seconds(record.details) == pytest.approx(record.seconds, rel=0.25)


def test_costs_are_never_negative() -> None:
    costs = dict(STARTING_COSTS) | {"far loads": 0.0, "spills": 0.0}
    model = fit(trials(costs, noise=0.3), threads=1)
    assert all(cost >= 0 for cost in model.costs.values())


def test_records_of_the_same_call_count_more() -> None:
    one = call(LAYERS[0])
    how = RowsKernelChoice(RowBlocks(1), Schedule(4, 64, 128))
    work = one.work(how, MACHINE)
    own = one.trial(MACHINE, 1, how, 10 * fit([], 1).seconds(work))
    others = [record for record in trials(dict(STARTING_COSTS)) if record.key.call != own.key.call]
    far = fit([*others, own], 1)
    near = fit([*others, own], 1, own.key.call)
    assert near.seconds(work) > far.seconds(work)


def test_records_of_other_features_are_not_used() -> None:
    record = trials(dict(STARTING_COSTS))[0]
    stranger = Record("trial", record.key, 1.0, record.schedule, None, {"another feature": 1.0})
    assert fit([stranger], 1) == fit([], 1)


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.name)
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_the_space_begins_with_the_defaults_and_fits_the_registers(layer: Layer, pattern: RowBlocks) -> None:
    geometry = call(layer).geometry
    defaults, found = candidates(layer, geometry, pattern, MACHINE), space(layer, geometry, pattern, MACHINE)
    assert found[: len(defaults)] == defaults
    assert len(found) == len(set(found))
    assert pattern == IN_PLACE or len(found) > len(defaults)
    for schedule in found:
        if isinstance(schedule, Schedule):
            assert 1 <= schedule.vectors <= 16
            beside = 1 + (schedule.vectors if pattern.rows > 1 else 0)  # a weight, and X
            assert schedule.vectors * pattern.rows + beside <= MACHINE.registers
            assert 1 <= schedule.columns <= layer.columns
            assert schedule.prefetch in (0, 64, 128, 256)
