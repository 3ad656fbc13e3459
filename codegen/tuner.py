"""All calls of a model, searched on all benches there are: shares of the budget, progress, the outcome."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from sparsecomp.codegen.call import Call
from sparsecomp.codegen.crew import Crew
from sparsecomp.codegen.machine import Machine
from sparsecomp.codegen.timings import Timings, device_of
from sparsecomp.codegen.tune import BATCH, Search, Share, search_key
from sparsecomp.codegen.workbench import Bench
from sparsecomp.layer import Layer
from sparsecomp.progress import Watch
from sparsecomp.tuning import Budget, TunedCall, TuningReport, split

TRIALS_PER_CALL = 8 * BATCH
"""The budget where none is given."""


@dataclass(frozen=True)
class Outcome:
    """What a run of the tuner found, and how it ended."""

    calls: tuple[TunedCall, ...]
    trials: int
    seconds: float
    interrupted: bool
    notes: tuple[str, ...]


def searches_of(
    layers: Iterable[tuple[Layer, Tensor]], timings: Timings, machine: Machine, threads: int
) -> list[Search]:
    """One per distinct call, the layers that agree in it together. layers: with their matrices."""
    found: dict[object, tuple[Call, list[str]]] = {}
    for layer, matrix in layers:
        call = Call.of(layer, matrix)
        key = search_key(call, machine, threads)
        found.setdefault(key, (call, []))[1].append(layer.name)
    return [Search(call, names, timings, machine, threads) for call, names in found.values()]


@dataclass
class Tuner:
    """`watch` shows a bar: trials of a budget of trials, else seconds."""

    searches: Sequence[Search]
    benches: list[Bench]
    budget: Budget
    watch: Watch
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _start: float = field(default_factory=time.perf_counter)

    def run(self) -> Outcome:
        """Interrupted from the keyboard it returns what there is: all that was measured is on disk."""
        notes: list[str] = []
        interrupted = False
        if self.budget.amount == 0:
            self.budget = Budget(trials=TRIALS_PER_CALL * len(self.searches))
        try:
            self._begin(notes)
            self._finish(notes)
        except KeyboardInterrupt:
            interrupted = True
        calls = tuple(search.outcome() for search in self.searches)
        trials = sum(search.now for search in self.searches)
        return Outcome(calls, trials, time.perf_counter() - self._start, interrupted, tuple(notes))

    def _begin(self, notes: list[str]) -> None:
        """Time the defaults of calls that were never searched: they say what each call is worth."""
        new = [search for search in self.searches if search.standing is None]
        self.watch.stage("timing default kernels", total=len(new))

        def begin(search: Search, bench: Bench) -> None:
            self.watch.item(str(search))
            search.begin(bench, lambda *what: self._tell(search, *what))

        self._run(Crew(self.benches, begin), new, notes)

    def _finish(self, notes: list[str]) -> None:
        """Calls that take most of the model's time first."""
        begun = [search for search in self.searches if search.standing is not None]
        worths = [search.worth for search in begun]
        shares = {
            search: Share(amount, self.budget.trials is not None)
            for search, amount in zip(begun, split(self.budget, worths), strict=True)
        }
        order = sorted(begun, key=lambda search: -search.worth)
        pending = [search for search in order if not search.complete(shares[search])]
        self.watch.stage("searching", total=round(self.budget.amount))

        def finish(search: Search, bench: Bench) -> None:
            def told(kernel: str, seconds: float, predicted: float) -> None:
                self._tell(search, kernel, seconds, predicted)
                self.watch.at(self._spent(), f"{search}: {kernel}")

            search.finish(bench, shares[search], told, crew.stopping.is_set, left)

        def left() -> int:
            if self.budget.trials is not None:
                return max(0, self.budget.trials - sum(search.now for search in self.searches))
            return BATCH if sum(search.seconds for search in self.searches) < self.budget.amount else 0

        crew = Crew(self.benches, finish)
        self._run(crew, pending, notes)

    def _run(self, crew: Crew[Search], jobs: Sequence[Search], notes: list[str]) -> None:
        if not jobs:
            return
        try:
            crew.run(jobs)
        finally:
            notes += crew.notes

    def _spent(self) -> int:
        standings = [search.standing for search in self.searches if search.standing]
        if self.budget.trials is not None:
            return sum(standing.trials for standing in standings)
        return round(sum(standing.spent for standing in standings))

    def _tell(self, search: Search, kernel: str, seconds: float, predicted: float) -> None:
        off = predicted / seconds - 1.0
        self.watch.line(
            f"{search}: {kernel}  measured {seconds * 1e3:.3f} ms, "
            f"predicted {predicted * 1e3:.3f} ms ({off:+.0%})"
        )


def search_on(
    benches: Sequence[Bench], layers: Iterable[tuple[Layer, Tensor]], budget: Budget, watch: Watch
) -> TuningReport:
    """Search the calls of these layers, given with their matrices, and remember them on disk. All benches are of one
    kind; they are closed."""
    timings, machine, threads = Timings.on_disk(), benches[0].machine, benches[0].threads
    try:
        searches = searches_of(layers, timings, machine, threads)
        found = Tuner(searches, list(benches), budget, watch).run()
    finally:
        for bench in benches:
            bench.close()
    return TuningReport(
        device=device_of(machine),
        threads=threads,
        calls=found.calls,
        trials=found.trials,
        seconds=found.seconds,
        database=str(timings.path or ""),
        interrupted=found.interrupted,
        notes=found.notes,
    )
