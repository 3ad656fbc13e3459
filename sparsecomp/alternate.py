"""Time several contestants side by side, in alternating rounds, so that all see the same machine."""

from __future__ import annotations

import gc
import itertools
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Times:
    """The spread of one contestant's rounds, in seconds."""

    median: float
    minimum: float
    iqr: float
    """Between the first and the third quartile."""
    rounds: int

    @staticmethod
    def of(seconds: list[float]) -> Times:
        if len(seconds) == 1:
            return Times(seconds[0], seconds[0], 0.0, 1)
        first, median, third = statistics.quantiles(seconds, n=4, method="inclusive")
        return Times(median, min(seconds), third - first, len(seconds))


def alternate(
    contestants: Mapping[str, Callable[[], object]],
    rounds: int = 20,
    duration: float = 0.0,
    warmup: int = 3,
    pause: float = 0.0,
    finished: Callable[[int], None] = lambda rounds: None,
) -> dict[str, Times]:
    """Every round calls every contestant once; there are at least `rounds`, and more until they have taken
    `duration` seconds: short calls scatter more.

    The order rotates from round to round and runs backwards in every second one, so that nobody always
    follows the same neighbour. `pause` seconds pass before each call: worker threads of the previous
    contestant that still spin for work go to sleep meanwhile. `finished` is told how many rounds there were.
    """
    for call in contestants.values():
        for _ in range(warmup):
            call()
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    gc.collect()
    gc.disable()
    try:
        stop = time.perf_counter() + duration
        for index in itertools.count():
            if index >= rounds and time.perf_counter() >= stop:
                break
            for name in _order(list(contestants), index):
                time.sleep(pause)
                start = time.perf_counter()
                contestants[name]()
                seconds[name].append(time.perf_counter() - start)
            finished(index + 1)
    finally:
        gc.enable()
    return {name: Times.of(taken) for name, taken in seconds.items()}


def _order(names: list[str], index: int) -> list[str]:
    first = index % len(names)
    order = names[first:] + names[:first]
    return order[::-1] if index % 2 else order
