"""Time, in a way that other processes disturb as little as possible."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import cache
from pathlib import Path

import torch

from sparsecomp.geometry import FLOAT

REPEATS = 9
ROUNDS = 4
FAR_BEHIND = 1.5
"""Who takes so much longer than the fastest after two rounds is not timed any further."""

Contestant = Callable[[], AbstractContextManager[Callable[[], object]]]
"""Prepares for a round, outside of the time that counts."""
MOST_TO_READ = 128 << 20
"""Bytes, where caches are larger still."""
LAST_LEVEL = Path("/sys/devices/system/cpu/cpu0/cache/index3/size")
USUAL_LAST_LEVEL = 32 << 20


def next_layer() -> Callable[[], object]:
    """What happens between two runs of a layer that computes for long: an L2 cache is written over."""
    return torch.empty(1 << 18, dtype=torch.float32).zero_


def rest_of_the_model() -> Callable[[], object]:
    """What happens between two runs of a layer that reads each weight for a token or two: more is read than the
    caches hold, so that its weights come from memory, as they do in a model that is larger."""
    return torch.ones(min(2 * _last_level(), MOST_TO_READ) // FLOAT, dtype=torch.float32).sum


@cache
def _last_level() -> int:
    """Bytes of the largest cache of this machine."""
    text = LAST_LEVEL.read_text().strip() if LAST_LEVEL.exists() else ""
    units = {"K": 1 << 10, "M": 1 << 20}
    return int(text[:-1]) * units[text[-1]] if text[:-1].isdigit() and text[-1] in units else USUAL_LAST_LEVEL


def seconds_of(
    run: Callable[[], object],
    repeats: int = REPEATS,
    least: int = 3,
    budget: float = 0.25,
    between: Callable[[], object] | None = None,
) -> float:
    """The fastest of several single runs, since other processes only ever add time. `between` runs the caches fill
    with something else."""
    evict = between or next_layer()
    run()
    times: list[float] = []
    stop = time.perf_counter() + budget
    while len(times) < repeats and (len(times) < least or time.perf_counter() < stop):
        evict()
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def seconds_in_turn(
    contestants: Sequence[Contestant], between: Callable[[], object] | None = None
) -> list[float]:
    """The fastest run of each. They take turns, so that what slows the machine for a while slows all of them."""
    best = [math.inf] * len(contestants)
    for turn in range(ROUNDS):
        limit = FAR_BEHIND * min(best, default=0.0)
        for number, contestant in enumerate(contestants):
            if turn < 2 or best[number] <= limit:
                with contestant() as run:
                    seconds = seconds_of(run, repeats=3, least=1, budget=0.06, between=between)
                best[number] = min(best[number], seconds)
    return best
