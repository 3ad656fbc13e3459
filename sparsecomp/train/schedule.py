"""How much is pruned when: schedules over optimiser steps."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sparsecomp.errors import InputError


@dataclass(frozen=True)
class CubicSchedule:
    """Sparsity that rises fast at first and slowly in the end, from step `begin` to step `end`.

    s_t = s_f + (s_i - s_f) (1 - (t - t_0) / (n dt))^3  for t = t_0, t_0 + dt, ..., t_0 + n dt

    Zhu and Gupta, "To prune, or not to prune", 2017, equation 1. Where `every` does not divide the time, the
    last step of pruning is `end` all the same. Raises InputError for what cannot be.
    """

    final: float
    """Share of groups that are zero in the end."""
    begin: int
    end: int
    every: int = 100
    """Steps between two prunings."""
    initial: float = 0.0

    def __post_init__(self) -> None:
        check_span(self.begin, self.end, self.every)
        for name, value in (("initial", self.initial), ("final", self.final)):
            check_share(name, value)
        if self.initial > self.final:
            raise InputError(
                f"the schedule begins at a sparsity of {self.initial} and ends at {self.final}: pruning only adds zeros."
            )

    def is_due(self, step: int) -> bool:
        """Whether something is pruned after so many steps of the optimiser; the first is step 1."""
        if not self.begin <= step <= self.end:
            return False
        return step == self.end or (step - self.begin) % self.every == 0

    def sparsity(self, step: int) -> float:
        """After `step` steps of the optimiser; 0 before it begins."""
        if step < self.begin:
            return 0.0
        rest = 1 - (min(step, self.end) - self.begin) / (self.end - self.begin)
        return self.final + (self.initial - self.final) * rest**3


@dataclass(frozen=True)
class CosineSchedule:
    """The share of the kept groups that are exchanged, falling to nothing at step `end`.

    f(t) = alpha / 2 (1 + cos(pi t / T_end))

    Evci, Gale, Menick, Castro, Elsen, "Rigging the Lottery", ICML 2020, section 3. Nothing is exchanged at `end` or
    later. Raises InputError for what cannot be.
    """

    end: int
    every: int = 100
    """Steps between two exchanges."""
    alpha: float = 0.3

    def __post_init__(self) -> None:
        check_span(0, self.end, self.every)
        check_share("alpha", self.alpha)

    def is_due(self, step: int) -> bool:
        return 0 < step < self.end and step % self.every == 0

    def share(self, step: int) -> float:
        return self.alpha / 2 * (1 + math.cos(math.pi * min(step, self.end) / self.end))


def check_span(begin: object, end: object, every: object) -> None:
    """Raises InputError unless there is time between the first and the last step."""
    for name, value, least in (("begin", begin, 0), ("end", end, 0), ("every", every, 1)):
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise InputError(f"{name} must be a whole number of steps, at least {least}, not {value!r}.")
    assert isinstance(begin, int)
    assert isinstance(end, int)
    if end <= begin:
        raise InputError(f"the schedule ends at step {end}, before it begins at step {begin}.")


def check_share(name: str, value: object) -> float:
    """Raises InputError unless it is a number of at least 0 and below 1."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < 1:
        raise InputError(f"{name} must be a share, at least 0 and below 1, not {value!r}.")
    return float(value)
