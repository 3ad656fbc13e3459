"""The latency table, on a cost that counts what it is asked for."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sparsecomp.choice import Candidate as Kernel
from sparsecomp.cost import RegionTimes
from sparsecomp.layer import Layer
from sparsecomp.pruning.candidate import DENSE, Candidate
from sparsecomp.pruning.latency import KNOTS, Curve, LatencyTable, measure_latency, measurements
from sparsecomp.train.pattern import Pattern

SPARSE, BLOCKS = Pattern("unstructured"), Pattern("4x1")


class Counting:
    """A nanosecond for each dense element, two for each that is not zero in a list."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def candidates(self, layer: Layer, matrix: Tensor) -> tuple[Kernel, ...]:
        self.asked.append(layer.name)
        return (Kernel("PyTorch dense", matrix.numel() * 1e-9),)

    def skipping(self, layer: Layer, matrix: Tensor, rows: int) -> float | None:
        self.asked.append(f"{layer.name} by {rows}")
        return None if layer.rows % rows else int(matrix.count_nonzero()) * 2e-9

    def doubt(self, layer: Layer, matrix: Tensor) -> None:
        self.asked.append(f"doubt {layer.name}")

    def conversion(self, layer: Layer) -> float:
        return 0.0

    def region(self, body: object, prepare: object) -> RegionTimes:
        return RegionTimes(0.0, 0.0)


def linear(name: str, rows: int = 32, columns: int = 64) -> tuple[Layer, Tensor]:
    layer = Layer(name, "linear", f"{name}.weight", (rows, columns), (8, columns))
    return layer, torch.randn(rows, columns)


class Disturbed(Counting):
    """Measurements of some numbers, in the order in which they are made, take 4 us longer."""

    def __init__(self, *numbers: int) -> None:
        super().__init__()
        self.numbers, self.made = numbers, 0

    def _late(self, seconds: float) -> float:
        self.made += 1
        return seconds + 4e-6 * (self.made - 1 in self.numbers)

    def candidates(self, layer: Layer, matrix: Tensor) -> tuple[Kernel, ...]:
        return tuple(
            replace(kernel, seconds=self._late(kernel.seconds or 0))
            for kernel in super().candidates(layer, matrix)
        )

    def skipping(self, layer: Layer, matrix: Tensor, rows: int) -> float | None:
        seconds = super().skipping(layer, matrix, rows)
        return None if seconds is None else self._late(seconds)


@pytest.mark.parametrize("numbers", [(0,), (1,), (3, 4, 5), (6,), (2, 7), (4, 7, 8)])
def test_an_unlikely_measurement_is_made_again(numbers: tuple[int, ...]) -> None:
    """Dense is the first; then come the knots; then those that are made again."""
    quiet, disturbed = Counting(), Disturbed(*numbers)
    layers = {"a": [linear("a")]}
    tables = [measure_latency(layers, [SPARSE], cost) for cost in (quiet, disturbed)]
    assert tables[0].as_dict() == tables[1].as_dict()
    assert not any(asked.startswith("doubt") for asked in quiet.asked)
    doubts = [asked for asked in disturbed.asked if asked.startswith("doubt")]
    assert len(doubts) == len(numbers)


def test_equal_calls_are_measured_once() -> None:
    cost = Counting()
    told: list[str] = []
    layers = {name: [linear(name)] for name in ("a", "b")} | {"c": [linear("c", 16), linear("c", 16)]}
    table = measure_latency(layers, [SPARSE, BLOCKS], cost, told.append)
    assert len(told) == len(cost.asked) == measurements(layers, [SPARSE, BLOCKS]) == 2 * (1 + 2 * len(KNOTS))
    assert not any(name.startswith("b") for name in told)
    assert table.seconds("a", DENSE) == table.seconds("b", DENSE) == pytest.approx(32 * 64e-9)
    assert table.seconds("c", DENSE) == pytest.approx(2 * 16 * 64e-9)  # called twice


def test_zeros_are_ignored_where_that_is_faster() -> None:
    table = measure_latency({"a": [linear("a")]}, [SPARSE], Counting())
    assert table.seconds("a", Candidate("unstructured", 0.3)) == table.seconds("a", DENSE)
    half = table.seconds("a", Candidate("unstructured", 0.75))
    assert half == pytest.approx(2 * 0.25 * 32 * 64e-9, rel=0.01)
    total = table.total({"a": Candidate("unstructured", 0.9)})
    assert total == table.seconds("a", Candidate("unstructured", 0.9))


def test_n_of_m_is_measured_at_its_one_sparsity() -> None:
    cost = Counting()
    table = measure_latency({"a": [linear("a")]}, [Pattern("2:4")], cost)
    assert cost.asked == ["a", "a by 1"]
    assert table.seconds("a", Candidate("2:4", 0.5)) == pytest.approx(32 * 64e-9)


def test_a_structure_without_a_kernel_is_as_slow_as_dense() -> None:
    table = measure_latency({"a": [linear("a", rows=6)]}, [BLOCKS], Counting())
    assert table.seconds("a", Candidate("4x1", 0.9)) == table.seconds("a", DENSE)


def test_a_slower_kernel_at_higher_sparsity_is_not_believed() -> None:
    curve = Curve((0.4, 0.8, 0.9), (6.0, 2.0, 3.0))
    assert curve.at(0.9) == 2.0
    assert curve.at(0.6) == pytest.approx(4.0)
    assert curve.at(0.2) == pytest.approx(8.0)
    assert curve.at(0.99) == 2.0
    assert Curve().at(0.5) == math.inf
    assert Curve((0.5,), (1.0,)).at(0.4) == math.inf


@given(
    st.lists(st.floats(0.01, 10), min_size=len(KNOTS), max_size=len(KNOTS)),
    st.floats(0, 0.99),
    st.floats(0, 0.99),
)
def test_more_zeros_never_take_longer(seconds: list[float], one: float, other: float) -> None:
    curve = Curve(KNOTS, tuple(seconds))
    low, high = sorted((one, other))
    assert curve.at(high) <= curve.at(low) * (1 + 1e-9)


def test_a_table_goes_through_json_and_back() -> None:
    layers = {"a": [linear("a")], "b": [linear("b", 6), linear("b", 6)]}
    table = measure_latency(layers, [SPARSE, BLOCKS, Pattern("2:4")], Counting())
    assert LatencyTable.of(json.loads(json.dumps(table.as_dict()))) == table


def test_a_layer_outside_the_table_is_named() -> None:
    with pytest.raises(KeyError, match="absent"):
        LatencyTable({}).seconds("absent", DENSE)
