"""The fastest wins, with its reason; every loser keeps its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sparsecomp.choice import DENSE, Candidate
from sparsecomp.codegen.reference import StoredCost
from sparsecomp.layer import Layer
from sparsecomp.passes.choose_kernels import ChooseKernels
from sparsecomp.pattern import RowBlocks
from sparsecomp.region import RowsKernelChoice, Schedule
from tests.passes.programs import analysed, same_outputs, sparse

FAST, LEAN = (RowsKernelChoice(RowBlocks(rows), Schedule(8, 64)) for rows in (4, 1))


Times = Mapping[str, tuple[float, float | None, float | None]]


@dataclass(frozen=True)
class Fixed(StoredCost):
    """Times by layer name: PyTorch's, a 4x1 kernel's, an unstructured kernel's; None refuses."""

    times: Times
    saved: float = 0.0

    def candidates(self, layer: Layer, matrix: Tensor) -> tuple[Candidate, ...]:
        dense, fast, lean = self.times[layer.name]
        return (
            Candidate(DENSE, dense),
            Candidate("fast", fast, "" if fast else "too few rows", FAST if fast else None, stored=8),
            Candidate("lean", lean, "" if lean else "too few rows", LEAN if lean else None, stored=4),
        )

    def conversion(self, layer: Layer) -> float:
        return self.saved


def choose(times: Times, saved: float = 0.0, min_speedup: float = 1.0) -> list[tuple[Any, str]]:
    model = sparse(nn.Sequential(*(nn.Linear(8, 8) for _ in times)))
    program = ChooseKernels(Fixed(times, saved), min_speedup)(analysed(model, torch.randn(2, 8)))
    return [(choice.how, choice.reason) for choice in program.choices.values()]


def test_the_fastest_wins() -> None:
    assert choose({"0": (3.0, 1.0, 2.0)}) == [(FAST, "3.00x the speed of PyTorch")]


def test_of_equals_the_smallest_wins() -> None:
    assert choose({"0": (3.0, 1.0, 1.05)})[0][0] is LEAN


def test_pytorch_wins() -> None:
    ((how, reason),) = choose({"0": (1.0, 1.5, None)})
    assert how is None
    assert reason == "the fastest kernel, fast, takes 1500.000 ms against 1000.000 ms in PyTorch"


def test_every_kernel_refused() -> None:
    assert choose({"0": (1.0, None, None)}) == [(None, "every kernel was refused")]


def test_a_gain_too_small_is_not_taken() -> None:
    assert choose({"0": (1.1, 1.0, None)}, min_speedup=1.2)[0][0] is None


def test_a_bridge_is_taken_for_the_conversions_it_saves() -> None:
    times: Times = {"0": (3.0, 1.0, None), "1": (1.0, 1.2, None), "2": (3.0, 1.0, None)}
    assert [how for how, _ in choose(times)] == [FAST, None, FAST]
    assert [how for how, _ in choose(times, saved=0.15)] == [FAST, FAST, FAST]


def test_leaves_the_graph_alone() -> None:
    model, x = sparse(nn.Sequential(nn.Linear(8, 8))), torch.randn(2, 8)
    before = analysed(model, x)
    after = ChooseKernels(Fixed({"0": (3.0, 1.0, 2.0)}))(before)
    assert after.graph is before.graph
    assert same_outputs(after, model, x)
