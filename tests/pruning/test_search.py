"""Reaching a measured speed, on a machine that is an equation."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, ClassVar, cast

import numpy as np
import pytest

from sparsecomp import InputError
from sparsecomp.progress import Watch
from sparsecomp.pruning.candidate import Candidate, default_candidates
from sparsecomp.pruning.goal import Goal
from sparsecomp.pruning.search import Timekeeper, at_speed
from sparsecomp.pruning.series import Choices
from sparsecomp.pruning.state import State
from sparsecomp.pruning.stretch import Sample, Stretch
from sparsecomp.pruning.whole import DenseTimes


class Row:
    """A hundred plans of one layer, whose cost falls from 100 to 1 ms."""

    def __init__(self, count: int = 100) -> None:
        self.costs = np.linspace(0.1, 0.001, count)

    def choices(self, number: int) -> Choices:
        return {"layer": Candidate("unstructured", 0.99 * number / max(1, len(self.costs) - 1))}


def alone(choices: Choices) -> float:
    return 0.1 - 0.099 * choices["layer"].sparsity / 0.99


class Times:
    """Whole models that take what the equation says."""

    def __init__(self, bend: float) -> None:
        self.bend, self.measured = bend, 0
        self.samples = [Sample(0.1, self._whole(0.1)), Sample(0.01, self._whole(0.01))]
        self.dense = SimpleNamespace(compiled=self._whole(0.1))

    def _whole(self, alone: float) -> float:
        return 0.005 + 1.1 * alone + self.bend * alone * (0.1 - alone)

    def measure(self, choices: Choices) -> float:
        self.measured += 1
        return self._whole(alone(choices))

    def learn(self, choices: Choices) -> float:
        seconds = self.measure(choices)
        self.samples.append(Sample(alone(choices), seconds))
        return seconds

    @property
    def stretch(self) -> Stretch:
        return Stretch.through(self.samples)


def reached(bend: float, speedup: float, count: int = 100) -> tuple[float, Times, tuple[str, ...]]:
    times: Any = Times(bend)
    found = at_speed(Row(count), Goal.parse(target_speedup=speedup), cast(Timekeeper, times))
    return times.dense.compiled / times.measure(found.choices), times, found.remarks


@pytest.mark.parametrize("bend", [-4.0, 0.0, 4.0])
@pytest.mark.parametrize("speedup", [1.5, 2.0, 3.0, 5.0])
def test_the_speed_is_met_though_the_prediction_is_off(bend: float, speedup: float) -> None:
    found, times, remarks = reached(bend, speedup)
    assert found == pytest.approx(speedup, rel=0.05)
    assert not remarks
    assert times.measured <= 6


def test_a_speed_out_of_reach_says_the_most() -> None:
    with pytest.raises(InputError, match=r"target_speedup=50 is out of reach: the most is 18\.\d\d with"):
        reached(0.0, 50)


def test_too_few_plans_to_meet_it_is_said() -> None:
    found, _, remarks = reached(0.0, 2.0, count=2)
    assert found > 10
    assert "the nearest plan there is was measured at" in remarks[0]


class OneLayer:
    """A subject whose time alone falls from 1 at density 1 to 0 at density 0."""

    model, method, watch = None, "magnitude", Watch()
    candidates: ClassVar = {"layer": default_candidates(("unstructured",), 8)}

    def __init__(self) -> None:
        self.state = State(None)

    def seconds(self, name: str, candidate: Candidate) -> float:
        return 1 - candidate.sparsity

    def alone(self, choices: Choices) -> float:
        return 1 - choices["layer"].sparsity if choices else 1.0

    def roughly_pruned(self, choices: Choices) -> Choices:
        return choices


class Clock:
    """A model takes twice as long as its layers alone, and a half more."""

    def dense(self) -> DenseTimes:
        return DenseTimes(5.0, 2.5)

    def seconds(self, choices: Choices) -> float:
        return 0.5 + 2 * (1 - choices["layer"].sparsity)


@pytest.mark.parametrize(("speedup", "sparsity"), [(None, 0.8962), (1.5, 0.4), (3.0, 0.8137), (200.0, 0.99)])
def test_the_prediction_is_from_a_sparse_model_near_the_goal(speedup: float | None, sparsity: float) -> None:
    subject: Any = OneLayer()
    times = Timekeeper(subject, lambda known: cast(Any, Clock()), "here", speedup)
    assert [sample.alone for sample in times.samples] == [1.0, pytest.approx(1 - sparsity, abs=2e-3)]
    assert times.first.whole(0.1) == pytest.approx(0.7)
