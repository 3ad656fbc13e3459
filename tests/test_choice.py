"""The break-even of a layer: how much of its weight must be skipped to gain by it."""

from __future__ import annotations

import pytest

from sparsecomp.choice import DENSE, Candidate, Choice
from sparsecomp.pattern import RowBlocks
from sparsecomp.region import Depthwise, RowsKernelChoice, Schedule

SIZE = 1000
LISTS = RowsKernelChoice(RowBlocks(1), Schedule(8, 64))
ROWS = RowsKernelChoice(RowBlocks(4, shared=True), Schedule(4, 64))


def break_even(*candidates: Candidate, dense: float = 10.0) -> float | None:
    return Choice("l", None, "", (Candidate(DENSE, dense, stored=SIZE), *candidates)).break_even(SIZE)


def kernel(seconds: float, stored: int, idle: float = 0.0, how: RowsKernelChoice = LISTS) -> Candidate:
    """The cost model predicts twice what is measured, and its idle time with it."""
    return Candidate(str(how), seconds, "", how, stored, seconds * 2, idle * 2)


@pytest.mark.parametrize(
    ("seconds", "stored", "idle", "expected"),
    [
        pytest.param(2.0, 100, 0.0, 0.5, id="20 with all weights: half must go"),
        pytest.param(3.0, 100, 1.0, 0.55, id="what it takes idle is not saved"),
        pytest.param(1.0, 500, 0.0, 0.0, id="faster even with all weights"),
        pytest.param(20.0, 1000, 0.0, 0.5, id="too slow as it is"),
        pytest.param(20.0, 100, 10.0, None, id="too slow with none"),
    ],
)
def test_it_is_where_the_line_through_both_times_meets_that_of_dense(
    seconds: float, stored: int, idle: float, expected: float | None
) -> None:
    found = break_even(kernel(seconds, stored, idle))
    assert found == (None if expected is None else pytest.approx(expected))


def test_dense_rows_that_are_faster_than_pytorch_are_the_ones_to_beat() -> None:
    assert break_even(kernel(2.0, 100), kernel(5.0, SIZE, 5.0, ROWS)) == pytest.approx(0.75)


def test_the_fastest_kernel_that_skips_zeros_counts() -> None:
    assert break_even(kernel(2.0, 100), kernel(1.0, 250)) == 0.0


def test_without_a_prediction_or_a_kernel_that_skips_there_is_none() -> None:
    assert break_even() is None
    assert break_even(Candidate(str(LISTS), 2.0, how=LISTS, stored=100)) is None
    assert break_even(Candidate("unstructured", refused="no")) is None
    assert break_even(kernel(2.0, 100, how=RowsKernelChoice(RowBlocks(1), Depthwise()))) is None
