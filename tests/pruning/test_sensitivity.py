"""Errors of candidates that were not tried, from those that were."""

from __future__ import annotations

import itertools

import pytest
import torch

from sparsecomp.pruning.candidate import default_candidates, refined
from sparsecomp.pruning.prune import prune_each
from sparsecomp.pruning.sensitivity import error_between
from tests.pruning.layers import statistics


def test_it_meets_what_is_known_and_rises_between() -> None:
    errors = {0.5: 0.01, 0.75: 0.09, 0.9: 0.64}
    assert [error_between(errors, s) for s in errors] == pytest.approx(list(errors.values()))
    assert error_between(errors, 0.25) == pytest.approx(0.005)
    assert error_between(errors, 0.0) == 0
    assert error_between(errors, 0.99) == 0.64
    assert error_between(errors, 1 - (0.5 * 0.25) ** 0.5) == pytest.approx(
        0.04
    )  # roots 0.1 and 0.3, half-way
    assert error_between({0.5: 0.0, 0.75: 0.04}, 1 - (0.5 * 0.25) ** 0.5) == pytest.approx(0.01)


@pytest.mark.parametrize("structure", ["unstructured", "4x1"])
def test_obs_between_the_levels_is_as_pruned(structure: str) -> None:
    torch.manual_seed(0)
    weight, found = torch.randn(32, 48), statistics(48)
    levels = default_candidates((structure,))[1:]
    errors = {p.candidate.sparsity: p.error for p in prune_each(weight, levels, found)}
    between = [c for c in refined(levels, 2) if c not in levels]
    assert len(between) == len(levels) - 1
    for pruned in prune_each(weight, between, found):
        assert error_between(errors, pruned.candidate.sparsity) == pytest.approx(
            pruned.error, rel=0.1, abs=2e-3
        )


def test_refined_keeps_what_it_was_given() -> None:
    levels = default_candidates(("unstructured", "2:4"), 3)
    found = refined(levels)
    assert found[: len(levels)] == levels
    sparsities = sorted(c.sparsity for c in found if str(c.structure) == "unstructured" and not c.is_dense)
    assert len(sparsities) == 9
    ratios = [(1 - b) / (1 - a) for a, b in itertools.pairwise(sparsities)]
    assert ratios == pytest.approx([ratios[0]] * 8, rel=0.02)
    assert [str(c) for c in found if c.structure.n_of_m] == ["2:4 at 50.0 %"]
