"""Plans from the densest to the sparsest."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from torch import nn

from sparsecomp.pruning.candidate import DENSE, Candidate
from sparsecomp.pruning.layers import prunable_layers
from sparsecomp.pruning.series import Allocation, OptimalSeries, first_within, plain_series
from sparsecomp.train.pattern import Pattern
from sparsecomp.train.weights import Weight

SPARSE = Pattern("unstructured")
PLAIN: tuple[Allocation, ...] = ("uniform", "erk", "global")


def weights() -> dict[str, Weight]:
    model = nn.Sequential(nn.Linear(64, 128), nn.Linear(128, 32), nn.Linear(32, 8))
    with torch.no_grad():
        model.get_parameter("1.weight").mul_(3)
    return prunable_layers(model)


def kept_of(found: Mapping[str, Weight]) -> dict[str, int]:
    return {name: weight.parameter.numel() for name, weight in found.items()}


@pytest.mark.parametrize("allocation", PLAIN)
@pytest.mark.parametrize("sparsity", [0.25, 0.5, 0.9])
def test_plain_distributions_reach_the_sparsity_of_the_whole(allocation: Allocation, sparsity: float) -> None:
    found = weights()
    sizes = kept_of(found)
    series = plain_series(allocation, found, SPARSE, lambda name, c: (1 - c.sparsity) * sizes[name])
    total = sum(sizes.values())
    number = first_within(series, (1 - sparsity) * total)
    assert number is not None
    plan = series.choices(number)
    kept = sum((1 - plan[name].sparsity) * size for name, size in sizes.items()) / total
    assert 1 - sparsity - 0.015 <= kept <= 1 - sparsity + 1e-6
    assert all(plan[name].structure == SPARSE for name in plan)


def test_a_global_threshold_spares_layers_of_large_weights() -> None:
    found = weights()
    sizes = kept_of(found)
    series = plain_series("global", found, SPARSE, lambda name, c: (1 - c.sparsity) * sizes[name])
    number = first_within(series, 0.5 * sum(sizes.values()))
    assert number is not None
    plan = series.choices(number)
    assert plan["1"].sparsity < plan["0"].sparsity
    every = {name: w.parameter.detach().abs().flatten() for name, w in found.items()}
    threshold = torch.cat(list(every.values())).quantile(0.5)
    for name, magnitudes in every.items():
        share = float((magnitudes < threshold).float().mean())
        assert plan[name].sparsity == pytest.approx(share, abs=0.02)


def test_the_first_plan_is_dense_and_costs_fall() -> None:
    found = weights()
    for allocation in PLAIN:
        series = plain_series(allocation, found, SPARSE, lambda name, c: 1 - c.sparsity)
        assert all(c.is_dense for c in series.choices(0).values())
        assert (np.diff(series.costs) <= 0).all()


def test_the_optimal_series_runs_from_dense_to_sparsest() -> None:
    candidates = {name: (DENSE, Candidate("unstructured", 0.5), Candidate("4x1", 0.9)) for name in "ab"}
    sizes = {"a": 10.0, "b": 1.0}
    series = OptimalSeries(candidates, lambda n, c: sizes[n] * (1 - c.sparsity), lambda n, c: c.sparsity**2)
    assert series.choices(0) == {"a": DENSE, "b": DENSE}
    last = len(series.costs) - 1
    assert series.choices(last) == dict.fromkeys("ab", Candidate("4x1", 0.9))
    number = first_within(series, 6.5)
    assert number is not None
    assert series.choices(number) == {"a": Candidate("unstructured", 0.5), "b": DENSE}
    assert first_within(series, 1.0) is None
