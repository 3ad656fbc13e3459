"""Sparsities of layers add up to that of the model."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsecomp.train import layer_sparsities
from tests.train.nets import message, says

SHAPES = st.lists(
    st.one_of(st.tuples(*[st.integers(1, 64)] * 2), st.tuples(*[st.integers(1, 9)] * 4)),
    min_size=1,
    max_size=6,
)


@given(SHAPES, st.floats(0.0, 0.99), st.sampled_from(["uniform", "erk"]))
def test_they_add_up(shapes: list[tuple[int, ...]], sparsity: float, distribution: str) -> None:
    named = {str(index): shape for index, shape in enumerate(shapes)}
    found = layer_sparsities(named, sparsity, distribution)
    assert all(0 <= share < 1 for share in found.values())
    zeros = sum(found[name] * math.prod(shape) for name, shape in named.items())
    assert zeros == pytest.approx(sparsity * sum(map(math.prod, shapes)), abs=1e-6)


def test_erk_by_hand() -> None:
    """Densities go as sum / product: 8 / 16 and 12 / 32, so eps (8 + 12) = 0.25 * 48."""
    found = layer_sparsities({"a": (4, 4), "b": (4, 8)}, 0.75, "erk")
    assert found == pytest.approx({"a": 1 - 0.6 * 0.5, "b": 1 - 0.6 * 12 / 32})


def test_erk_leaves_small_layers_dense() -> None:
    found = layer_sparsities({"a": (2, 2), "b": (100, 100)}, 0.5, "erk")
    assert found == pytest.approx({"a": 0.0, "b": 5002 / 10000})


def test_a_distribution_that_does_not_exist() -> None:
    says(message(lambda: layer_sparsities({"a": (2, 2)}, 0.5, "global")), "'global'", "uniform, erk")
