"""Ways to keep to one budget; which of them is best is measured on pruned models.

That errors of layers add up is believed by the allocation, and is not true where much is pruned: what one layer loses,
the next may not have needed. Then a plan of all structures may turn out worse than one that has fewer to choose from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sparsecomp.pruning.candidate import DENSE, Candidate
from sparsecomp.pruning.polish import polished
from sparsecomp.pruning.reweigh import Factors, search_factors
from sparsecomp.pruning.series import (
    Allocation,
    Choices,
    DistributedSeries,
    OptimalSeries,
    Price,
    Series,
    fingerprint,
    first_within,
    plain_series,
)
from sparsecomp.pruning.subject import Subject
from sparsecomp.train.pattern import Pattern

ALL = "all structures"
WEIGHED = "all structures, layers weighed"
POLISHED = "changed here and there"
SKETCH = 256
"""Partial plans kept while factors are tried."""
PROBE = 0.8
"""Sparsity at which it is tried how much a layer's error matters."""


def rivals_of(subject: Subject, cost: Price, budget: float) -> dict[str, Series]:
    """The optimal plans of all structures first, then those of each structure alone, and one sparsity for all layers."""
    structures = subject.structures
    found: dict[str, Series] = {ALL: optimal(subject, cost)}
    alone = structures if len(structures) > 1 else ()
    if subject.is_small:
        found[WEIGHED] = weighed(subject, cost, budget)
    for structure in alone:
        found[f"{structure} alone"] = optimal(subject, cost, structure)
        if subject.is_small:
            found[f"{structure} alone, layers weighed"] = weighed(subject, cost, budget, structure)
    for structure in structures:
        if structure.only_sparsity is None:
            found[f"uniform {structure}"] = distributed(subject, cost, "uniform", structure)
    return found


def optimal(subject: Subject, cost: Price, structure: Pattern | None = None) -> OptimalSeries:
    """Plans of least error. structure: the only one, beside dense."""
    return OptimalSeries(_of(subject.choices, structure), cost, subject.expected_error)


def _of(choices: Mapping[str, Sequence[Candidate]], structure: Pattern | None) -> dict[str, list[Candidate]]:
    """Those of one structure, and dense; or all."""
    return {
        name: [c for c in found if c.is_dense or structure in (None, c.structure)]
        for name, found in choices.items()
    }


def weighed(subject: Subject, cost: Price, budget: float, structure: Pattern | None = None) -> OptimalSeries:
    """Plans of least error, where each layer's errors are multiplied by a factor that was searched for at this budget."""
    factors = _factors(subject, cost, budget, structure)
    return OptimalSeries(_of(subject.choices, structure), cost, _times(factors, subject.expected_error))


def _times(factors: Factors, error: Price) -> Price:
    """An error means so much in each layer."""
    return lambda name, candidate: factors[name] * error(name, candidate)


def _factors(subject: Subject, cost: Price, budget: float, structure: Pattern | None) -> Factors:
    """Searched for once, then kept."""
    candidates = _of(subject.candidates, structure)

    def series(factors: Factors) -> OptimalSeries:
        """Of candidates whose weights the sketch has."""
        return OptimalSeries(candidates, cost, _times(factors, subject.error), SKETCH)

    of = f" of {structure}" if structure else ""
    key = f"factors of errors{of} at {budget!r} by {subject.judge.measure}"
    found: Any = subject.kept_opinions.get(key)
    if found is None:
        starts = _starts(subject, cost, budget, structure)
        found = search_factors(starts, series, budget, subject.sketched)
        subject.kept_opinions.put(key, found)
    factors: Factors = found
    return factors


def _starts(subject: Subject, cost: Price, budget: float, structure: Pattern | None) -> list[Factors]:
    """Errors as they are; by how much the loss rises for each layer alone; and for all structures together, what
    was found for each alone."""
    names = list(subject.candidates)
    starts: list[Factors] = [dict.fromkeys(names, 1.0), {name: _gain(subject, name) for name in names}]
    if structure is None and len(subject.structures) > 1:
        starts += [_factors(subject, cost, budget, single) for single in subject.structures]
    return starts


def _gain(subject: Subject, name: str) -> float:
    """By how much the loss rises for an error of this layer alone."""
    sparse = [c for c in subject.candidates[name] if not c.is_dense]
    if not sparse:
        return 1.0
    probe = min(sparse, key=lambda c: abs(c.sparsity - PROBE))
    rise = max(0.0, subject.sketched({name: probe}) - subject.sketched({}))
    return rise / subject.error(name, probe) if subject.error(name, probe) else 1.0


def distributed(
    subject: Subject, cost: Price, allocation: Allocation, structure: Pattern
) -> DistributedSeries:
    """One structure, its sparsity by a rule; layers that must stay dense cost what they do."""
    free = {name: subject.weights[name] for name, found in subject.candidates.items() if len(found) > 1}
    stuck = sum(cost(name, DENSE) for name in subject.candidates if name not in free)
    return plain_series(allocation, free, structure, cost, stuck)


def best_of(
    subject: Subject, rivals: Mapping[str, Series], budget: float, loss: Callable[[Choices], float]
) -> tuple[Series, Verdict]:
    """Of all ways to the budget the one that is measured to lose least; of a small model, that one improved by trying."""
    verdict = compare(rivals, lambda series: first_within(series, budget), loss)
    best = rivals[verdict.best]
    if not (verdict.losses and subject.is_small and isinstance(best, OptimalSeries)):
        return best, verdict
    better = polished(best, subject.choices, budget, loss)
    if better is best:
        return best, verdict
    number = first_within(better, budget)
    assert number is not None
    name = f"{verdict.best}, {POLISHED}"
    return better, Verdict({**verdict.losses, name: loss(better.choices(number))})


@dataclass(frozen=True)
class Verdict:
    """What was measured of each rival that can keep to the budget."""

    losses: Mapping[str, float]

    @property
    def best(self) -> str:
        """Of several that are equally good, the first."""
        return min(self.losses, key=self.losses.__getitem__, default=ALL)

    def __str__(self) -> str:
        each = ", ".join(f"{name} {loss:.4g}" for name, loss in self.losses.items())
        return f"measured on calibration data, of each way to the same budget: {each}"


def compare(
    rivals: Mapping[str, Series],
    within: Callable[[Series], int | None],
    loss: Callable[[Choices], float],
) -> Verdict:
    """
    Args:
        rivals: By name.
        within: The number of the plan that keeps to the budget; None where none does.
        loss: Of the model pruned by these choices.
    """
    losses, known = {}, dict[str, float]()
    for name, series in rivals.items():
        number = within(series)
        if number is None:
            continue
        choices = series.choices(number)
        key = fingerprint(choices)
        if key not in known:
            known[key] = loss(choices)
        losses[name] = known[key]
    return Verdict(losses)
