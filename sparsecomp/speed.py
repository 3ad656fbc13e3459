"""Two ways of doing the same thing, timed in turn."""

from __future__ import annotations

import time
from collections.abc import Callable


def alternating_seconds(
    first: Callable[[], object],
    second: Callable[[], object],
    rounds: int = 7,
    budget: float = 0.5,
    between: Callable[[], object] = lambda: None,
    finish: Callable[[], object] = lambda: None,
) -> tuple[float, float]:
    """The fastest of several runs of each. The first ones, which fill caches, need no turn of their own: only the
    fastest counts. For arguments see `alternating_runs`."""
    one, other = alternating_runs(first, second, rounds, budget, between, finish)
    return min(one), min(other)


def alternating_runs(
    first: Callable[[], object],
    second: Callable[[], object],
    rounds: int,
    budget: float,
    between: Callable[[], object] = lambda: None,
    finish: Callable[[], object] = lambda: None,
) -> tuple[list[float], list[float]]:
    """Seconds of the runs of each, in turn, so that both meet the same moods of the machine.

    Args:
        first, second: What is run.
        rounds: Runs of each at most.
        budget: Seconds after which no round begins, once there were three.
        between: Happens before each run.
        finish: Waits for what a run only began.
    """
    times: tuple[list[float], list[float]] = ([], [])
    stop = time.perf_counter() + budget
    while len(times[0]) < rounds and (len(times[0]) < 3 or time.perf_counter() < stop):
        for run, own in zip((first, second), times, strict=True):
            between()
            start = time.perf_counter()
            run()
            finish()
            own.append(time.perf_counter() - start)
    return times
