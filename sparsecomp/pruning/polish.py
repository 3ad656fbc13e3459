"""The best plan there is, changed here and there: kept where the pruned model is measured to lose less.

Ways to a budget are compared as wholes: one of a single structure may win though a few layers would be better off with
another, and errors added up do not say which. So the winner is where a search begins that has all structures: the factors of
`reweigh`, but one for each layer and structure, and each plan is judged on a model pruned by it, which takes longer than a sketch and
is what counts.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence

from sparsecomp.pruning.candidate import Candidate
from sparsecomp.pruning.reweigh import SHARE, WIDEST
from sparsecomp.pruning.series import Choices, OptimalSeries, fingerprint, first_within

TRIES = 16
"""Plans judged."""
DRAWS = 8 * TRIES
"""Factors drawn at most: many lead to plans that were judged before."""
STATES = 1024
"""Partial plans kept meanwhile."""
BANNED = 1e12
"""The factor of a structure that the winner did not have; a draw may let it in."""

Factors = dict[str, dict[str, float]]
"""Layer -> structure -> what its errors are multiplied by."""


def polished(
    start: OptimalSeries,
    candidates: Mapping[str, Sequence[Candidate]],
    budget: float,
    loss: Callable[[Choices], float],
    seed: int = 0,
) -> OptimalSeries:
    """The plans of the factors whose plan within the budget loses least, of those tried; `start` where no other loses less.

    Args:
        start: Plans of which one fits the budget.
        candidates: All that layers may become.
        loss: Of a model pruned by these choices.
        seed: Of the draws: the same call gives the same plans.
    """
    best, plan = start, _plan(start, budget)
    factors = _as_they_are(start, candidates)
    known = {fingerprint(plan): loss(plan)}
    least = min(known.values())
    generator = random.Random(seed)
    for _ in range(DRAWS):
        drawn = _changed(factors, generator)
        series = OptimalSeries(candidates, start.cost, _times(drawn, start), STATES)
        plan = _plan(series, budget)
        if fingerprint(plan) in known:
            continue
        found = known[fingerprint(plan)] = loss(plan)
        if found < least:
            best, factors, least = series, drawn, found
        if len(known) > TRIES:
            break
    return best


def _plan(series: OptimalSeries, budget: float) -> Choices:
    number = first_within(series, budget)
    assert number is not None, "costs have no factors: where one plan fits, others do"
    return series.choices(number)


def _as_they_are(start: OptimalSeries, candidates: Mapping[str, Sequence[Candidate]]) -> Factors:
    """1 for what the layers of `start` may become."""
    structures = {
        name: {c.structure.name for c in found if not c.is_dense} for name, found in start.candidates.items()
    }
    return {
        name: {c.structure.name: 1.0 if c.structure.name in structures[name] else BANNED for c in found}
        for name, found in candidates.items()
    }


def _times(factors: Factors, start: OptimalSeries) -> Callable[[str, Candidate], float]:
    return lambda name, candidate: factors[name][candidate.structure.name] * start.error(name, candidate)


def _changed(factors: Factors, generator: random.Random) -> Factors:
    """Of a few layers, the factor of one structure is drawn anew, about that of the best; or all change alike."""
    changed = {name: dict(found) for name, found in factors.items()}
    for name in generator.sample(sorted(changed), max(1, round(SHARE * len(changed)))):
        found, step = changed[name], WIDEST ** generator.uniform(-1, 1)
        if generator.random() < 0.5:
            found[generator.choice(sorted(found))] = min(found.values()) * step
        else:
            changed[name] = {structure: factor * step for structure, factor in found.items()}
    return changed
