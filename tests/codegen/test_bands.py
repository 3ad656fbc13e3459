"""Layers that take turns: no band reads what is not there yet, or overwrites what is still to be read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sparsecomp import compile_sparse
from sparsecomp.codegen import compiled_region, library
from sparsecomp.codegen.arena import plan_arena
from sparsecomp.codegen.bands import Chain, Step, chains_of, steps_of
from sparsecomp.codegen.compiled_region import compile_region
from sparsecomp.codegen.machine import Machine, machine_of
from sparsecomp.geometry import Margin, Planes, grid
from sparsecomp.pattern import RowBlocks
from sparsecomp.region import Apply, Border, Call, Enter, Exit, Region, Rows, Schedule, Value, reads
from sparsecomp.target import Target
from sparsecomp.work import Pointwise

MACHINE = machine_of(Target())
SMALL = replace(MACHINE, l2_bytes=64 * 1024)


def place(height: int, width: int) -> Planes:
    return grid([(height, width)], Margin(1, 1, 1, 1), 3)


@st.composite
def networks(draw: st.DrawFn) -> Region:
    """Layers of one grid: 1x1 and 3x3, some of which add what an earlier one computed; sometimes other work between."""
    where, pads = place(draw(st.integers(12, 80)), draw(st.integers(16, 80))), draw(st.booleans())
    channels = st.sampled_from([4, 8])
    values, calls = [("v0", Value(draw(channels), where, pads))], list[Call]([Enter(0, "v0")])
    for number in range(1, draw(st.integers(3, 9))):
        source, target = values[-1][0], f"v{number}"
        same = [name for name, value in values if value.channels == values[-1][1].channels]
        adds = draw(st.booleans())
        size = values[-1][1].channels if adds else draw(channels)
        values.append((target, Value(size, where, pads)))
        if draw(st.integers(0, 9)) == 0:
            values[-1] = (target, replace(values[-1][1], channels=values[-2][1].channels))
            calls.append(Apply(Pointwise(), (source,), target))
            continue
        reach = draw(st.sampled_from([(0, 0), (where.row + 1, where.row + 1), (0, 2 * where.row)]))
        schedule = Schedule(draw(st.integers(1, 14)), 16)
        tensors = (draw(st.sampled_from(same)),) if adds else ()
        rows = Rows(
            source, target, number, (size, 4), 0, RowBlocks(1), schedule, "add" if adds else "", (), tensors
        )
        calls.append(replace(rows, reach=reach))
    last = values[-1]
    border = Border(last[1].channels, where.height, where.width)
    calls.append(Exit(last[0], 0))
    return Region((border,), (border,), tuple(values), tuple(calls))


class Memory:
    """Who wrote each column of each slot last; a value stands for all of its channels."""

    def __init__(self, region: Region, chains: tuple[Chain, ...]) -> None:
        self.region, self.value = region, region.value
        self.slot = plan_arena(region, chains).offsets
        self.columns = {o: np.full(1 << 14, "", dtype=object) for o in self.slot.values()}

    def write(self, name: str, low: int, high: int) -> None:
        self.columns[self.slot[name]][low:high] = name

    def check(self, name: str, low: int, high: int) -> None:
        high = min(high, self.value[name].geometry.columns)
        found = set(self.columns[self.slot[name]][max(0, low) : high])
        assert found <= {name}, f"{name} was read where {found - {name}} is"


@settings(max_examples=300, deadline=None)
@given(networks())
def test_bands_find_what_they_read(region: Region) -> None:
    chains = chains_of(region, region.calls, SMALL)
    memory = Memory(region, chains)
    for step in steps_of(region, region.calls, chains, SMALL):
        call = region.calls[step.call]
        target = "" if isinstance(call, Exit) else call.target
        low, high = span(region, call, step)
        for name in reads(call):
            back, ahead = call.reach if isinstance(call, Rows) and name == call.source else (0, 0)
            memory.check(name, low - back, high + ahead)
        if target:
            memory.write(target, low, high)


def span(region: Region, call: Call, step: Step) -> tuple[int, int]:
    """Columns of a band: chunks of the kernel are shared out, and the last band has what is left."""
    name = call.source if isinstance(call, Exit) else call.target
    vectors = -(-region.value[name].geometry.columns // MACHINE.lanes)
    if not isinstance(call, Rows):
        return 0, vectors * MACHINE.lanes
    assert isinstance(call.schedule, Schedule)
    chunk = min(call.schedule.vectors, vectors)
    low, high = (band * (vectors // chunk) // step.bands * chunk for band in (step.band, step.band + 1))
    return low * MACHINE.lanes, (vectors if step.band == step.bands - 1 else high) * MACHINE.lanes


@settings(max_examples=100, deadline=None)
@given(networks())
def test_every_band_of_every_call_is_a_step(region: Region) -> None:
    chains = chains_of(region, region.calls, SMALL)
    bands = {number: chain.bands for chain in chains for number in range(chain.first, chain.last)}
    steps = steps_of(region, region.calls, chains, SMALL)
    expected = {(n, band) for n in range(len(region.calls)) for band in range(bands.get(n, 1))}
    assert len(steps) == len(expected)
    assert {(step.call, step.band) for step in steps} == expected
    assert all(step.bands == bands.get(step.call, 1) for step in steps)


def test_small_planes_do_not_take_turns() -> None:
    where = place(14, 14)
    values = tuple((f"v{i}", Value(8, where)) for i in range(4))
    rows = [Rows(f"v{i}", f"v{i + 1}", i, (8, 8), 0, RowBlocks(1), Schedule(2, 8)) for i in range(3)]
    border = Border(8, 14, 14)
    region = Region((border,), (border,), values, (Enter(0, "v0"), *rows, Exit("v3", 0)))
    assert chains_of(region, region.calls, MACHINE) == ()


def blocks(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    layers = [nn.Conv2d(3, 24, 3, padding=1), nn.ReLU()]
    for _ in range(3):
        layers += [nn.Conv2d(24, 40, 1), nn.ReLU(), nn.Conv2d(40, 24, 3, padding=1), nn.ReLU()]
    model = nn.Sequential(*layers).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(torch.rand_like(parameter) < 0.4)
    return model


@pytest.fixture
def small_cache(monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[Chain]]:
    """A machine whose L2 cache holds little; the chains that were found for it."""
    found: list[Chain] = []

    def chains(region: Region, calls: tuple[Call, ...], machine: Machine) -> tuple[Chain, ...]:
        some = chains_of(region, calls, replace(machine, l2_bytes=512 * 1024))
        found.extend(some)
        return some

    monkeypatch.setattr(compiled_region, "chains_of", chains)
    monkeypatch.setattr(library, "_KNOWN", {})
    compile_region.cache_clear()
    return lambda: found


@pytest.mark.parametrize(("batch", "threads"), [(1, 1), (1, 2), (3, 1), (3, 2)])
def test_outputs_do_not_change(batch: int, threads: int, small_cache: Callable[[], list[Chain]]) -> None:
    model, x = blocks(batch), torch.randn(batch, 3, 66, 100)
    compiled = compile_sparse(model, (x,), min_speedup=0.0, threads=threads)
    assert len(compiled.report.sparse_layers) == 7
    assert any(chain.last - chain.first > 2 for chain in small_cache())
    with torch.no_grad():
        for images in (x, torch.randn_like(x)):
            torch.testing.assert_close(compiled(images), model(images), rtol=1e-5, atol=1e-5)


def test_threads_that_share_an_image_take_calls_whole() -> None:
    where = place(40, 40)
    values = tuple((f"v{i}", Value(16, where)) for i in range(4))
    rows = [Rows(f"v{i}", f"v{i + 1}", i, (16, 16), 0, RowBlocks(1), Schedule(4, 16)) for i in range(3)]
    border = Border(16, 40, 40)
    region = Region((border,), (border,), values, (Enter(0, "v0"), *rows, Exit("v3", 0)))
    listed = compile_region(region, SMALL).list
    first, last = listed.order(shared=True)
    assert listed.steps[first:last] == tuple(map(Step, range(5)))
    first, last = listed.order(shared=False)
    assert max(step.bands for step in listed.steps[first:last]) > 1
    whole = compile_region(region, replace(MACHINE, l2_bytes=4 << 20)).list
    assert whole.order(shared=True) == whole.order(shared=False) == (0, 5)
