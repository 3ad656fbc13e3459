"""Choose one option per layer: the least error within a budget, for every budget at once."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int32]
STATES = 8192
"""Partial plans kept after each layer."""
ROUNDING = 1e-9
"""Relative: sums of the same numbers in another order differ by that."""


@dataclass(frozen=True)
class _Step:
    """How the partial plans after one layer continue those before it."""

    before: Indices
    option: Indices


@dataclass(frozen=True)
class Frontier:
    """The plans that no other plan beats in both cost and error, by rising cost and falling error."""

    costs: Array
    errors: Array
    steps: tuple[_Step, ...]

    def __len__(self) -> int:
        return len(self.costs)

    def choice(self, number: int) -> tuple[int, ...]:
        """Which option of each layer the plan of that number takes."""
        chosen = []
        for step in reversed(self.steps):
            chosen.append(int(step.option[number]))
            number = int(step.before[number])
        return tuple(reversed(chosen))

    def within(self, budget: float) -> int | None:
        """The number of the plan of least error among those that cost at most `budget`; None where none does."""
        count = int(np.searchsorted(self.costs, budget * (1 + ROUNDING), side="right"))
        return count - 1 if count else None


def frontier(costs: Sequence[Array], errors: Sequence[Array], states: int = STATES) -> Frontier:
    """Of all ways to take one option per layer, those that are not beaten; costs and errors add up.

    Dynamic programming over the layers, as in Frantar and Alistarh, "SPDY", 2022, section 3.2, but on the exact sums
    instead of rounded ones: a plan never costs more than it says. It is exact while there are at most `states`
    partial plans; beyond that, of those whose costs lie within 1/`states` of the range the one of least error goes on.

    Args:
        costs: Of each layer, float64, one number of at least 0 for each of its options; seconds, or bytes.
        errors: The same shapes, at least 0.
        states: As above.
    """
    front = Frontier(np.zeros(1), np.zeros(1), ())
    for cost, error in zip(costs, errors, strict=True):
        every_cost = (front.costs[:, None] + cost[None, :]).ravel()
        every_error = (front.errors[:, None] + error[None, :]).ravel()
        kept = _thinned(every_cost, _unbeaten(every_cost, every_error), states)
        before, option = np.divmod(kept, len(cost))
        step = _Step(before.astype(np.int32), option.astype(np.int32))
        front = Frontier(every_cost[kept], every_error[kept], (*front.steps, step))
    return front


def _unbeaten(costs: Array, errors: Array) -> npt.NDArray[np.int64]:
    """The indices of the points that no other beats, by rising cost; of equal ones the first."""
    order = np.lexsort((errors, costs))
    least = np.minimum.accumulate(errors[order])
    better = np.concatenate(([True], least[1:] < least[:-1]))
    return order[better]


def _thinned(costs: Array, kept: npt.NDArray[np.int64], states: int) -> npt.NDArray[np.int64]:
    """Of the points in each step of cost the last, which has the least error; and the cheapest of all."""
    if len(kept) <= states:
        return kept
    low, high = costs[kept[0]], costs[kept[-1]]
    steps = np.floor((costs[kept] - low) / (high - low) * (states - 2))
    last = np.concatenate((steps[1:] != steps[:-1], [True]))
    last[0] = True
    return kept[last]


def runners_up(costs: Array, errors: Array, chosen: int, count: int = 2) -> tuple[int, ...]:
    """The other options that come nearest to being chosen, one cheaper and one better in turn.

    At a price p the option of least error + p * cost is chosen. As p rises from where one is chosen, the next is the
    cheaper option of least (its error - the chosen error) / (the chosen cost - its cost); as p falls, the better option
    of the largest. Options that are neither cheaper nor better come last, those of least error first.
    """

    def price(option: int) -> float:
        return float((errors[option] - errors[chosen]) / (costs[chosen] - costs[option]))

    others = [option for option in range(len(costs)) if option != chosen]
    cheaper = sorted((o for o in others if costs[o] < costs[chosen]), key=price)
    better = [o for o in others if costs[o] > costs[chosen] and errors[o] < errors[chosen]]
    better.sort(key=price, reverse=True)
    pairs = itertools.zip_longest(cheaper, better)
    near = [option for pair in pairs for option in pair if option is not None]
    beaten = sorted((o for o in others if o not in near), key=lambda o: float(errors[o]))
    return tuple((near + beaten)[:count])
