"""Schedules have the values of their papers."""

from __future__ import annotations

import math
from typing import Any

import pytest

from sparsecomp.train import CosineSchedule, CubicSchedule
from tests.train.nets import message, says


def test_the_cubic_schedule() -> None:
    schedule = CubicSchedule(final=0.8, begin=100, end=500, every=100, initial=0.2)
    due = [step for step in range(700) if schedule.is_due(step)]
    assert due == [100, 200, 300, 400, 500]
    found = [schedule.sparsity(step) for step in due]
    assert found == pytest.approx([0.2, 0.8 - 0.6 * 27 / 64, 0.8 - 0.6 / 8, 0.8 - 0.6 / 64, 0.8])
    assert schedule.sparsity(99) == 0.0
    assert schedule.sparsity(10_000) == 0.8


def test_the_last_step_always_prunes() -> None:
    schedule = CubicSchedule(final=0.5, begin=0, end=250, every=100)
    assert [step for step in range(1, 400) if schedule.is_due(step)] == [100, 200, 250]


def test_the_cosine_schedule() -> None:
    schedule = CosineSchedule(end=1000, every=250, alpha=0.4)
    assert [step for step in range(2000) if schedule.is_due(step)] == [250, 500, 750]
    assert schedule.share(0) == pytest.approx(0.4)
    assert schedule.share(250) == pytest.approx(0.2 * (1 + math.sqrt(0.5)))
    assert schedule.share(500) == pytest.approx(0.2)
    assert schedule.share(1000) == schedule.share(3000) == pytest.approx(0.0)


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"begin": 500, "end": 100}, ["ends at step 100", "begins at step 500"]),
        ({"begin": 100, "end": 100}, ["ends at step 100", "begins at step 100"]),
        ({"begin": -1}, ["begin", "-1"]),
        ({"end": 10.5}, ["end", "10.5"]),
        ({"every": 0}, ["every", "0"]),
        ({"final": 1.0}, ["final", "1.0"]),
        ({"final": float("nan")}, ["final", "nan"]),
        ({"initial": 0.95}, ["0.95", "0.9", "only adds zeros"]),
    ],
)
def test_schedules_that_cannot_be(options: dict[str, Any], parts: list[str]) -> None:
    good: dict[str, Any] = {"final": 0.9, "begin": 0, "end": 1000}
    says(message(lambda: CubicSchedule(**(good | options))), *parts)


def test_exchanges_that_cannot_be() -> None:
    says(message(lambda: CosineSchedule(end=0)), "ends at step 0")
    says(message(lambda: CosineSchedule(end=10, alpha=1.5)), "alpha", "1.5")
