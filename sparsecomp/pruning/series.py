"""Plans in a row, from the densest to the sparsest: one of them fits a budget."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, Protocol, get_args

import numpy as np
import torch
from torch import Tensor

from sparsecomp.pruning.allocate import ROUNDING, STATES, Array, frontier
from sparsecomp.pruning.candidate import DENSE, Candidate
from sparsecomp.train.distribution import layer_sparsities
from sparsecomp.train.pattern import Pattern
from sparsecomp.train.weights import Weight

Allocation = Literal["optimal", "uniform", "erk", "global"]
ALLOCATIONS: tuple[Allocation, ...] = get_args(Allocation)
Choices = dict[str, Candidate]
"""Layer -> what it becomes."""
Price = Callable[[str, Candidate], float]
"""Of a layer under a candidate: seconds, bytes, weights or error."""
SPARSITIES = tuple(np.round(np.linspace(0, 0.99, 199), 4).tolist())
"""Of a whole model, that the plain distributions are tried at: steps of half a per cent."""
QUANTILES = 4096
"""Of a layer's magnitudes, that stand for all of them."""


class Series(Protocol):
    """Plans by falling cost."""

    @property
    def costs(self) -> Array: ...

    def choices(self, number: int) -> Choices: ...


class OptimalSeries:
    """Those of least error: no plan of these candidates has both less cost and less error."""

    def __init__(
        self,
        candidates: Mapping[str, Sequence[Candidate]],
        cost: Price,
        error: Price,
        states: int = STATES,
    ) -> None:
        """states: partial plans that are kept, as in `frontier`."""
        self.candidates, self.cost, self.error = candidates, cost, error
        costs, errors = (
            [np.array([price(name, c) for c in found]) for name, found in candidates.items()]
            for price in (cost, error)
        )
        self._frontier = frontier(costs, errors, states)

    @property
    def costs(self) -> Array:
        return self._frontier.costs[::-1]

    def choices(self, number: int) -> Choices:
        chosen = self._frontier.choice(len(self.costs) - 1 - number)
        return {
            name: found[option] for (name, found), option in zip(self.candidates.items(), chosen, strict=True)
        }


class DistributedSeries:
    """One structure everywhere, its sparsity distributed by a rule that knows neither time nor error."""

    def __init__(
        self,
        shares: Callable[[float], Mapping[str, float]],
        structure: Pattern,
        cost: Price,
        rest: float = 0.0,
    ) -> None:
        """shares: sparsity of the whole model -> sparsity of each layer. rest: what all else costs."""
        self._plans = [
            {name: Candidate(structure, share) if share > 0 else DENSE for name, share in found.items()}
            for found in map(shares, SPARSITIES)
        ]
        found = np.array([sum(cost(name, c) for name, c in plan.items()) for plan in self._plans])
        self._costs: Array = np.minimum.accumulate(found) + rest

    @property
    def costs(self) -> Array:
        return self._costs

    def choices(self, number: int) -> Choices:
        return dict(self._plans[number])


def plain_series(
    allocation: Allocation,
    weights: Mapping[str, Weight],
    structure: Pattern,
    cost: Price,
    rest: float = 0.0,
) -> DistributedSeries:
    """ "uniform", "erk" (as `train.layer_sparsities`) or "global": one threshold of magnitude for all layers. rest: what
    all else costs."""
    if allocation == "global":
        return DistributedSeries(_global_shares(weights, structure), structure, cost, rest)
    shapes = {name: tuple(weight.parameter.shape) for name, weight in weights.items()}
    return DistributedSeries(lambda s: layer_sparsities(shapes, s, allocation), structure, cost, rest)


def _global_shares(
    weights: Mapping[str, Weight], structure: Pattern
) -> Callable[[float], Mapping[str, float]]:
    """Of each layer, the share of its groups of weights that lie below the threshold (Hoefler et al. 2021, section 3.9).
    No layer loses more than 99 %."""
    scores = {name: _quantiles(structure.scores(w, w.parameter.detach())) for name, w in weights.items()}
    sizes = {name: w.parameter.numel() for name, w in weights.items()}
    every = torch.cat(list(scores.values()))
    weight = torch.cat([torch.full((len(s),), sizes[name] / len(s)) for name, s in scores.items()])
    order = every.argsort(stable=True)
    below = weight[order].double().cumsum(0)

    def shares(sparsity: float) -> dict[str, float]:
        wanted = sparsity * float(below[-1]) * (1 - ROUNDING)
        place = int(torch.searchsorted(below, wanted))
        threshold = every[order[min(place, len(order) - 1)]]
        if sparsity == 0:
            return dict.fromkeys(scores, 0.0)
        return {
            name: min(0.99, int(torch.searchsorted(found, threshold, right=True)) / len(found))
            for name, found in scores.items()
        }

    return shares


def _quantiles(scores: Tensor) -> Tensor:
    """At most `QUANTILES` of the scores, in rising order."""
    rising = scores.flatten().float().sort().values
    if len(rising) <= QUANTILES:
        return rising
    return rising[torch.linspace(0, len(rising) - 1, QUANTILES).long()]


def first_within(series: Series, budget: float) -> int | None:
    """The densest plan that costs at most `budget`; None where none does."""
    fits = np.flatnonzero(series.costs <= budget * (1 + ROUNDING))
    return int(fits[0]) if len(fits) else None


def fingerprint(choices: Mapping[str, Candidate]) -> str:
    """Names what becomes of the layers; dense ones do not count."""
    sparse = sorted((n, str(c.structure), c.sparsity) for n, c in choices.items() if not c.is_dense)
    return hashlib.sha256(repr(sparse).encode()).hexdigest()[:20]
