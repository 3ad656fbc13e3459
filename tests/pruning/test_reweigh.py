"""The search for what each layer's error is worth."""

from __future__ import annotations

import numpy as np

from sparsecomp.pruning.candidate import DENSE, Candidate
from sparsecomp.pruning.reweigh import Factors, search_factors
from sparsecomp.pruning.series import Choices, OptimalSeries

LEVELS = (DENSE, *(Candidate("unstructured", s) for s in (0.5, 0.75, 0.9)))
WORTH = {"a": 100.0, "b": 1.0, "c": 0.01}
"""What an error of each layer truly does to the loss."""


def cost(name: str, candidate: Candidate) -> float:
    return 1 - candidate.sparsity


def series(factors: Factors) -> OptimalSeries:
    return OptimalSeries(
        dict.fromkeys(WORTH, LEVELS), cost, lambda name, c: factors[name] * c.sparsity**2, states=64
    )


def loss(choices: Choices) -> float:
    return sum(WORTH[name] * c.sparsity**2 for name, c in choices.items())


def lost(factors: Factors) -> float:
    plans = series(factors)
    return loss(plans.choices(int(np.flatnonzero(plans.costs <= 1.5)[0])))


def test_it_finds_that_errors_do_not_mean_the_same() -> None:
    ones = dict.fromkeys(WORTH, 1.0)
    asked: list[Choices] = []

    def told(choices: Choices) -> float:
        asked.append(choices)
        return loss(choices)

    found = search_factors([ones], series, 1.5, told)
    assert lost(ones) > 20
    assert lost(found) == lost(WORTH) < 1
    assert len({str(choices) for choices in asked}) == len(asked)  # each plan is asked for once
    assert found == search_factors([ones], series, 1.5, loss)


def test_it_begins_with_the_best_start_and_stays_where_nothing_fits() -> None:
    ones = dict.fromkeys(WORTH, 1.0)
    assert search_factors([ones, WORTH], series, 1.5, loss, tries=0) == WORTH
    assert search_factors([ones, WORTH], series, 0.01, loss, tries=3) == ones
