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
from sparsecomp.pruning.search import Found, Timekeeper, at_speed
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

    def __init__(self, bend: float, lucky: int = 0) -> None:
        """lucky: measurements that say what is wanted of 2x, whatever the plan takes; confirming tells the truth."""
        self.bend, self.lucky, self.measured = bend, lucky, 0
        self.samples = [Sample(0.1, self._whole(0.1)), Sample(0.01, self._whole(0.01))]
        self.dense = SimpleNamespace(compiled=self._whole(0.1))

    def _whole(self, alone: float) -> float:
        return 0.005 + 1.1 * alone + self.bend * alone * (0.1 - alone)

    def measure(self, choices: Choices) -> float:
        self.measured += 1
        return self._whole(alone(choices))

    def learn(self, choices: Choices) -> float:
        seconds = self.measure(choices)
        if self.lucky:
            self.lucky, seconds = self.lucky - 1, self.dense.compiled / 2
        self.samples.append(Sample(alone(choices), seconds))
        return seconds

    def confirm(self, choices: Choices) -> float:
        self.samples[-1] = Sample(alone(choices), self._whole(alone(choices)))
        return self.samples[-1].whole

    @property
    def stretch(self) -> Stretch:
        return Stretch.through(self.samples)


def searched(bend: float, speedup: float, count: int = 100, lucky: int = 0) -> tuple[Found, Times]:
    times: Any = Times(bend, lucky)
    return at_speed(Row(count), Goal.parse(target_speedup=speedup), cast(Timekeeper, times)), times


def reached(bend: float, speedup: float, count: int = 100) -> tuple[float, Times, tuple[str, ...]]:
    found, times = searched(bend, speedup, count)
    return times.dense.compiled / times.measure(found.choices), times, found.remarks


@pytest.mark.parametrize("bend", [-4.0, 0.0, 4.0])
@pytest.mark.parametrize("speedup", [1.5, 2.0, 3.0, 5.0])
def test_the_speed_is_met_though_the_prediction_is_off(bend: float, speedup: float) -> None:
    found, times, remarks = reached(bend, speedup)
    assert found == pytest.approx(speedup, rel=0.05)
    assert not any("nearest plan" in remark for remark in remarks)
    assert times.measured <= 6


@pytest.mark.parametrize("lucky", [1, 2])
@pytest.mark.parametrize("bend", [-4.0, 4.0])
def test_a_plan_that_seemed_right_by_chance_is_not_taken(bend: float, lucky: int) -> None:
    found, times = searched(bend, 2.0, lucky=lucky)
    assert times.dense.compiled / times.measure(found.choices) == pytest.approx(2.0, rel=0.05)


@pytest.mark.parametrize("bend", [-4.0, 4.0])
def test_the_plan_is_predicted_by_those_tried_before_it(bend: float) -> None:
    found, times = searched(bend, 2.0)
    assert found.stretch is not None
    assert found.stretch != Stretch.through(times.samples[:2])
    assert found.stretch != times.stretch  # which has seen the plan itself
    predicted = found.stretch.whole(alone(found.choices))
    assert predicted == pytest.approx(times.measure(found.choices), rel=0.05)
    first = Stretch.through(times.samples[:2]).whole(times.samples[2].alone)
    assert f"the first was predicted to take {first * 1e3:.2f} ms" in found.remarks[0]
    assert f"and took {times.samples[2].whole * 1e3:.2f}" in found.remarks[0]


def test_a_first_plan_that_is_right_needs_no_correction() -> None:
    found, times = searched(0.0, 2.0)
    assert found.stretch == Stretch.through(times.samples[:2])
    assert not found.remarks


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


class Moody(Clock):
    """A clock that says what it was told to say of the finished model."""

    def __init__(self, *said: float) -> None:
        self.said = list(said)

    def seconds(self, choices: Choices) -> float:
        return self.said.pop(0) if self.said else super().seconds(choices)


@pytest.mark.parametrize(
    ("said", "median"), [((1.0, 1.02), 1.01), ((1.0, 1.2, 1.1), 1.1), ((1.0, 1.2, 0.9), 1.0)]
)
def test_the_finished_model_is_measured_again_where_measurements_disagree(
    said: tuple[float, ...], median: float
) -> None:
    subject: Any = OneLayer()
    clock = Moody()
    times = Timekeeper(subject, lambda known: cast(Any, clock), "here", 2.0)
    clock.said = list(said)
    choices = {"layer": Candidate("unstructured", 0.5)}
    assert times.measure_model(cast(Any, choices)) == pytest.approx(median)
    assert not clock.said


def test_what_the_search_measured_of_the_finished_model_does_not_count() -> None:
    subject: Any = OneLayer()
    subject.pruned = lambda choices: (choices, {})
    clock = Moody()
    times = Timekeeper(subject, lambda known: cast(Any, clock), "here", 2.0)
    choices = {"layer": Candidate("unstructured", 0.5)}
    assert times.measure(choices) == pytest.approx(1.5)
    clock.said = [1.6, 1.61]
    assert times.measure_model(cast(Any, choices)) == pytest.approx(1.605)


def test_a_plan_is_confirmed_by_the_median_of_three_and_only_once() -> None:
    subject: Any = OneLayer()
    subject.pruned = lambda choices: (choices, {})
    times = Timekeeper(subject, lambda known: cast(Any, Moody(0.5, 0.5, 0.7, 0.6)), "here", 2.0)
    choices = {"layer": Candidate("unstructured", 0.5)}
    assert times.learn(choices) == 0.5
    assert times.confirm(choices) == 0.6
    assert times.samples[-1].whole == 0.6
    assert times.confirm(choices) == 0.6
