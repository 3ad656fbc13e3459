"""Whole models from layers alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsecomp.pruning.stretch import Sample, Stretch


@given(st.floats(0.001, 0.1), st.floats(0.8, 2.0), st.floats(0.001, 0.1), st.floats(1.5, 10))
def test_two_models_give_both_numbers(fixed: float, factor: float, alone: float, times: float) -> None:
    true = Stretch(fixed, factor)
    found = Stretch.through([Sample(a, true.whole(a)) for a in (alone * times, alone)])
    assert found.fixed == pytest.approx(fixed, rel=1e-4, abs=1e-7)
    assert found.factor == pytest.approx(factor, rel=1e-4)


def test_one_model_gives_what_is_between_its_layers() -> None:
    found = Stretch.through([Sample(0.09, 0.1)])
    assert found == Stretch(pytest.approx(0.01), 1.0)  # type: ignore[arg-type]
    assert found.alone(0.06) == pytest.approx(0.05)


def test_the_newest_of_many_counts_most() -> None:
    line = [Sample(0.1, 0.11), Sample(0.01, 0.02)]
    off = Sample(0.05, 0.066)
    assert abs(Stretch.through([*line, off]).whole(0.05) / 0.066 - 1) < 0.02


def test_equal_models_do_not_divide_by_zero() -> None:
    found = Stretch.through([Sample(0.1, 0.11), Sample(0.1, 0.11)])
    assert found.whole(0.1) == pytest.approx(0.11)


def test_noise_does_not_turn_the_line_round() -> None:
    assert Stretch.through([Sample(0.1, 0.1), Sample(0.09, 0.2)]).factor == 0.5
