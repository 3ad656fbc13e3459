"""Time, in a way that other processes disturb as little as possible."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch

REPEATS = 9
ROUNDS = 4
FAR_BEHIND = 1.5
"""Who takes so much longer than the fastest after two rounds is not timed any further."""

Contestant = Callable[[], AbstractContextManager[Callable[[], object]]]
"""Prepares for a round, outside of the time that counts."""


def seconds_of(
    run: Callable[[], object], repeats: int = REPEATS, least: int = 3, budget: float = 0.25
) -> float:
    """The fastest of several single runs, since other processes only ever add time. Between runs a buffer of
    the size of an L2 cache is written, as other layers would do."""
    evict = torch.empty(1 << 18)
    run()
    times: list[float] = []
    stop = time.perf_counter() + budget
    while len(times) < repeats and (len(times) < least or time.perf_counter() < stop):
        evict.zero_()
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def seconds_in_turn(contestants: Sequence[Contestant]) -> list[float]:
    """The fastest run of each. They take turns, so that what slows the machine for a while slows all of them."""
    best = [math.inf] * len(contestants)
    for turn in range(ROUNDS):
        limit = FAR_BEHIND * min(best, default=0.0)
        for number, contestant in enumerate(contestants):
            if turn < 2 or best[number] <= limit:
                with contestant() as run:
                    seconds = seconds_of(run, repeats=3, least=1, budget=0.06)
                best[number] = min(best[number], seconds)
    return best
