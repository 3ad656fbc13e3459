"""How much each layer's error matters, found by trying: the search of SPDY.

The allocation adds up errors of layers as if an error meant the same in each. It does not: what one layer loses the next
may not have needed, or may make much of. So each layer's errors get a factor, and factors are kept whose plan is measured to
lose less (Frantar and Alistarh, "SPDY: Accurate Pruning with Speedup Guarantees", 2022, section 3.3). Plans are tried on
models that are put together from weights that were each pruned alone, which takes no more than running them.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence

from sparsecomp.pruning.series import Choices, Series, fingerprint, first_within

TRIES = 96
"""Factors drawn."""
SHARE = 0.1
"""Of the layers, whose factors are drawn anew at a time; one at least."""
WIDEST = 16.0
"""By which a factor may change at once, either way."""

Factors = Mapping[str, float]


def search_factors(
    starts: Sequence[Factors],
    series: Callable[[Factors], Series],
    budget: float,
    loss: Callable[[Choices], float],
    tries: int = TRIES,
    seed: int = 0,
) -> Factors:
    """The factors whose plan within the budget loses least, of those tried; the first start where no plan fits.

    Args:
        starts: Factors of all layers, by name, to begin with.
        series: The optimal plans, each layer's errors times its factor.
        budget: What a plan may cost.
        loss: Of a plan; asked once for each.
        tries: How many factors are drawn.
        seed: Of the draws: the same call gives the same factors.
    """
    known: dict[str, float] = {}

    def lost(factors: Factors) -> float:
        plans = series(factors)
        number = first_within(plans, budget)
        if number is None:
            return float("inf")
        choices = plans.choices(number)
        key = fingerprint(choices)
        if key not in known:
            known[key] = loss(choices)
        return known[key]

    losses = [lost(factors) for factors in starts]
    least = min(losses)
    best = starts[losses.index(least)]
    generator = random.Random(seed)
    for _ in range(tries if math.isfinite(least) else 0):  # costs have no factors: no plan would fit
        factors = _changed(best, generator)
        found = lost(factors)
        if found < least:
            best, least = factors, found
    return best


def _changed(factors: Factors, generator: random.Random) -> Factors:
    """Some of them drawn anew."""
    changed = dict(factors)
    for name in generator.sample(sorted(changed), max(1, round(SHARE * len(changed)))):
        changed[name] *= WIDEST ** generator.uniform(-1, 1)
    return changed
