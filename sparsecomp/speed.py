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
    """The fastest of several runs of each. Runs alternate, so that both meet the same moods of the machine. The
    first, which fill caches, need no turn of their own: only the fastest counts. `between` happens before each; `finish` waits for what a run only began."""
    times: tuple[list[float], list[float]] = ([], [])
    stop = time.perf_counter() + budget
    while len(times[0]) < rounds and (len(times[0]) < 3 or time.perf_counter() < stop):
        for run, own in zip((first, second), times, strict=True):
            between()
            start = time.perf_counter()
            run()
            finish()
            own.append(time.perf_counter() - start)
    return min(times[0]), min(times[1])
