"""The search for the fastest kernels of a model's layers on a GPU, into the database that compilations read.

Every kernel of every family is raced in batches, each with the fastest so far, until the budget is spent. There is no
cost model: a kernel takes microseconds to time. Only a clear winner replaces what a compilation had found.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from sparsecomp.choice import DENSE
from sparsecomp.codegen.cuda.families import FAMILIES, name_of
from sparsecomp.codegen.cuda.kernel import Case
from sparsecomp.codegen.cuda.measure import CudaMeter, Place
from sparsecomp.codegen.cuda.runnable import Runnable
from sparsecomp.codegen.timings import call_of
from sparsecomp.layer import Layer
from sparsecomp.progress import Watch
from sparsecomp.tuning import Budget, TunedCall, TuningReport

BATCH = 6
"""Kernels that race with the best one at a time."""
CLEARLY = 0.98
"""Of the time of what was found before, that another must stay below to replace it."""
TRIALS_PER_CALL = 48
"""The budget where none is given."""


@dataclass
class Search:
    """One distinct call; `names` are the layers it stands for."""

    case: Case
    names: list[str]
    trials: int = 0
    found: dict[str, Place] = field(default_factory=dict)
    """By family, and of PyTorch's own operator."""
    before: dict[str, Place] = field(default_factory=dict)

    @property
    def fastest(self) -> Place:
        return _fastest(self.found)

    def row(self, signature: str) -> TunedCall:
        default, tuned = _fastest(self.before), self.fastest
        row = TunedCall(call_of(self.case.layer), signature, tuple(self.names), self.trials)
        if default.kernel is None or tuned.kernel is None:
            return row
        return TunedCall(
            row.call,
            row.signature,
            row.layers,
            row.trials,
            name_of(default.kernel),
            default.seconds,
            name_of(tuned.kernel),
            min(tuned.seconds, default.seconds),
            dense_seconds=self.found[DENSE].seconds,
        )


def _fastest(places: dict[str, Place]) -> Place:
    kernels = [place for name, place in places.items() if name != DENSE and place.kernel is not None]
    return min(kernels, key=lambda place: place.seconds, default=Place(float("inf")))


def tune(
    layers: Iterable[tuple[Layer, Tensor]], meter: CudaMeter, budget: Budget, watch: Watch
) -> TuningReport:
    """layers: with their matrices, on the device. Interrupted from the keyboard it returns what there is."""
    start, interrupted = time.perf_counter(), False
    searches = _searches(layers, meter)
    if budget.amount == 0:
        budget = Budget(trials=TRIALS_PER_CALL * len(searches))
    watch.stage("searching", total=len(searches))
    try:
        for number, search in enumerate(searches):
            watch.item(search.names[0])
            left = _share(budget, searches, number, time.perf_counter() - start)
            _run(search, meter, left)
    except KeyboardInterrupt:
        interrupted = True
    rows = [search.row(meter.key(search.case, "search").signature) for search in searches]
    return TuningReport(
        device=meter.name,
        threads=0,
        calls=tuple(rows),
        trials=sum(search.trials for search in searches),
        seconds=time.perf_counter() - start,
        database=str(meter.timings.path or ""),
        interrupted=interrupted,
    )


def _searches(layers: Iterable[tuple[Layer, Tensor]], meter: CudaMeter) -> list[Search]:
    found: dict[object, Search] = {}
    for layer, matrix in layers:
        case = Case(layer, matrix, meter.device.gpu)
        found.setdefault(meter.key(case, "search"), Search(case, [])).names.append(layer.name)
    return list(found.values())


def _share(budget: Budget, searches: Sequence[Search], number: int, spent: float) -> Budget:
    """Of what is left of the budget, for search `number`: as much as for each that follows it."""
    waiting = len(searches) - number
    if budget.trials is not None:
        return Budget(trials=(budget.trials - sum(search.trials for search in searches)) // waiting)
    return Budget(seconds=max(0.0, (budget.seconds or 0.0) - spent) / waiting)


def _run(search: Search, meter: CudaMeter, budget: Budget) -> None:
    case, stop = search.case, time.perf_counter() + (budget.seconds or 0.0)
    families = [family for family in FAMILIES if meter.refused(case, family.name) is None]
    search.found = dict(meter.timed(case, [family.name for family in families]))
    search.before = dict(search.found)
    tried = {place.kernel for place in search.found.values()} | meter.tried(case, families)
    waiting = [(f.name, kernel) for f in families for kernel in f.kernels(case) if kernel not in tried]
    while waiting:
        room = BATCH if budget.trials is None else min(BATCH, budget.trials - search.trials)
        if room <= 0 or (budget.seconds is not None and time.perf_counter() >= stop):
            break
        batch, waiting = waiting[:room], waiting[room:]
        search.trials += len(batch)
        _race(search, meter, batch)
    for name, place in search.found.items():
        if name != DENSE and place.kernel is not None:
            meter.put(case, name, place)


def _race(search: Search, meter: CudaMeter, batch: Sequence[tuple[str, Runnable]]) -> None:
    """A batch against the best of each of its families; times of two races are not to be compared."""
    best = {name: search.found[name].kernel for name, _ in batch if search.found[name].kernel is not None}
    entrants: list[tuple[str, Runnable | None]] = [(DENSE, None), *best.items(), *batch]
    seconds = meter.race(search.case, entrants)
    for name, kernel in batch:
        limit = CLEARLY * seconds[name, best[name]] if name in best else float("inf")
        now = search.found[name]
        if seconds[name, kernel] < min(limit, now.seconds if now.kernel not in best.values() else limit):
            search.found[name] = Place(seconds[name, kernel], kernel)
