"""The search for the best schedules, one per distinct call, with the layer's own weight.

    defaults    what every compilation tries is timed first; it says how much a call is worth
    search      in batches, the best predicted first, each in a race with the best so far; the cost model
                learns from every batch; it ends with the budget, or where no prediction promises a gain
    decision    per pattern, default and tuned schedule run in one race; only a clear winner replaces the
                default, so what is tuned is never slower

All is in the database when a step ends, so a search goes on where it was stopped.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

from sparsecomp.codegen.call import Call, kernel_of
from sparsecomp.codegen.machine import Machine
from sparsecomp.codegen.measure import refusals
from sparsecomp.codegen.predict import CostModel, fit
from sparsecomp.codegen.schedules import candidates, parse_schedule, space
from sparsecomp.codegen.stopwatch import FAR_BEHIND
from sparsecomp.codegen.timings import Key, Record, Timings, call_of, device_of, versions
from sparsecomp.codegen.workbench import Bench
from sparsecomp.pattern import RowBlocks
from sparsecomp.region import RowsKernelChoice
from sparsecomp.tuning import TunedCall

BATCH = 6
"""Kernels that race with the best one at a time."""
CLEARLY = 0.98
"""Of the default's time, that a tuned kernel must stay below to replace it."""
FINALISTS = 2
"""Kernels of each pattern in the last race, beside the default."""
DOUBT = (0.1, 0.3)
"""Least and most share of a prediction that may be wrong."""
TWICE_THE_ERROR = 2.0
"""How far from a measurement nearly all predictions are, in their mean error."""
Told = Callable[[str, float, float], None]
"""Called with each kernel measured, its seconds, and those predicted."""


@dataclass(frozen=True)
class Standing:
    """How far the search of one call has come."""

    worth: float
    """Seconds of the fastest default when the search began, times the bits that its choice holds."""
    trials: int = 0
    """Kernels timed beside the defaults."""
    spent: float = 0.0
    """Seconds that took."""
    granted_trials: float = 0.0
    """The largest share of trials under which a search ended; so for seconds."""
    granted_seconds: float = 0.0
    exhausted: bool = False
    """Nothing left that is predicted to gain."""
    decided: bool = False
    """The last race was run, after all trials."""
    default: str = ""
    default_seconds: float = 0.0
    tuned: str = ""
    tuned_seconds: float = 0.0
    predicted_seconds: float = 0.0
    dense_seconds: float | None = None

    @staticmethod
    def of(details: Mapping[str, Any]) -> Standing | None:
        """None where these are details of something else."""
        try:
            return Standing(**details)
        except TypeError:
            return None


@dataclass(frozen=True)
class Share:
    """What one call may spend, earlier searches included."""

    amount: float
    of_trials: bool

    def left(self, standing: Standing) -> int:
        """Trials of the next batch; 0 where all is spent."""
        if self.of_trials:
            return max(0, min(BATCH, int(self.amount) - standing.trials))
        return BATCH if standing.spent < self.amount else 0

    def granted(self, standing: Standing) -> Standing:
        """The standing after a search with this share."""
        if self.of_trials:
            return replace(standing, granted_trials=max(self.amount, standing.granted_trials))
        return replace(standing, granted_seconds=max(self.amount, standing.granted_seconds))


class Search:
    """One call. `names` are the layers it stands for."""

    def __init__(
        self, call: Call, names: Sequence[str], timings: Timings, machine: Machine, threads: int
    ) -> None:
        self.call, self.names, self.timings = call, tuple(names), timings
        self.machine, self.threads = machine, threads
        self.patterns = timed_patterns(call, machine)
        self.key = search_key(call, machine, threads)
        found = timings.search(self.key)
        self.standing = Standing.of(found.details) if found else None
        self.tried = self._recorded()
        self.now, self.seconds = 0, 0.0
        """Trials of this run, and what they took."""

    def __str__(self) -> str:
        rest = f" and {len(self.names) - 1} more" if len(self.names) > 1 else ""
        return f"{self.names[0]}{rest}"

    @property
    def worth(self) -> float:
        """Of its share of the budget: what all its layers take, times what is uncertain."""
        return len(self.names) * (self.standing.worth if self.standing else 0.0)

    @cached_property
    def defaults(self) -> list[RowsKernelChoice]:
        return self._kernels(candidates)

    @cached_property
    def kernels(self) -> list[RowsKernelChoice]:
        """All there are to try, the defaults among them."""
        return self._kernels(space)

    def _kernels(self, source: Callable[..., Sequence[object]]) -> list[RowsKernelChoice]:
        return [
            RowsKernelChoice(pattern, schedule)  # type: ignore[arg-type]
            for pattern in self.patterns
            for schedule in source(self.call.layer, self.call.geometry, pattern, self.machine)
        ]

    def _recorded(self) -> dict[RowsKernelChoice, float]:
        tried = {}
        for pattern in self.patterns:
            records = self.timings.trials(self.call.key(self.machine, self.threads, pattern))
            for schedule, record in records.items():
                tried[RowsKernelChoice(pattern, parse_schedule(schedule))] = record.seconds
        return tried

    # Steps -----------------------------------------------------------------------------------------------

    def begin(self, bench: Bench, told: Told) -> None:
        """Time the defaults that were not timed yet."""
        missing = [kernel for kernel in self.defaults if kernel not in self.tried]
        if missing:
            self._measure(bench, missing, self._model(), told)
        if self.standing is None:
            fastest = min((self.tried[kernel] for kernel in self.defaults), default=0.0)
            self.standing = Standing(worth=fastest * math.log2(1 + len(self.kernels)))
            self._keep()

    def finish(
        self, bench: Bench, share: Share, told: Told, stopped: Callable[[], bool], left: Callable[[], int]
    ) -> None:
        """Search until the share is spent, or `left`, the trials that all calls together still have, is 0, or
        nothing promises a gain; then decide. When `stopped` between two races, return at once."""
        while not self._standing.exhausted and (room := min(share.left(self._standing), left())):
            if stopped():
                return
            model = self._model()
            batch = self.promising(model)[:room]
            if batch:
                self._search(bench, batch, model, told)
            else:
                self.standing = replace(self._standing, exhausted=True)
            self._keep()
        if not stopped():
            self.standing = share.granted(self._standing)
            if self._standing.decided or not self.patterns:
                self._keep()
            else:
                self._decide(bench)

    def _search(self, bench: Bench, batch: Sequence[RowsKernelChoice], model: CostModel, told: Told) -> None:
        start = time.perf_counter()
        self._measure(bench, batch, model, told)
        took = time.perf_counter() - start
        self.now += len(batch)
        self.seconds += took
        standing = self._standing
        trials, spent = standing.trials + len(batch), standing.spent + took
        self.standing = replace(standing, trials=trials, spent=spent, decided=False)

    def complete(self, share: Share) -> bool:
        """Whether `finish` would have nothing to do."""
        standing = self.standing
        if standing is None or not (standing.decided or not self.patterns):
            return False
        return standing.exhausted or share.granted(standing) == standing

    # What they are made of -------------------------------------------------------------------------------

    @property
    def _standing(self) -> Standing:
        assert self.standing is not None, "begin() comes first"
        return self.standing

    def promising(self, model: CostModel) -> list[RowsKernelChoice]:
        """What may beat the fastest kernel tried, the best predicted first."""
        fastest = min(self.tried.values(), default=math.inf)
        doubt = min(max(DOUBT[0], TWICE_THE_ERROR * model.error), DOUBT[1])
        in_reach = {p for p in self.patterns if self._fastest(p, self.tried) <= FAR_BEHIND * fastest}
        predicted = {
            kernel: model.seconds(self.call.work(kernel, self.machine))
            for kernel in self.kernels
            if kernel.pattern in in_reach and kernel not in self.tried
        }
        hopeful = [kernel for kernel, seconds in predicted.items() if seconds * (1 - doubt) < fastest]
        return sorted(hopeful, key=lambda kernel: predicted[kernel])

    def _model(self) -> CostModel:
        records = self.timings.all_trials(device_of(self.machine), self.threads)
        return fit(records, self.threads, call_of(self.call.layer))

    def _measure(
        self, bench: Bench, kernels: Sequence[RowsKernelChoice], model: CostModel, told: Told
    ) -> None:
        """Race them with the fastest so far; what ran is a record each."""
        best = min(self.tried, key=lambda kernel: self.tried[kernel], default=None)
        seconds = bench.race(self.call, [*kernels, *([best] if best else [])])
        records = []
        for kernel, measured in zip(kernels, seconds, strict=False):
            predicted = model.seconds(self.call.work(kernel, self.machine))
            self.tried[kernel] = measured
            if math.isfinite(measured):
                records.append(self.call.trial(self.machine, self.threads, kernel, measured, predicted))
            told(str(kernel), measured, predicted)
        self.timings.add(records)
        if best:  # as this race saw it: times of two moments are not to be compared
            self.tried[best] = seconds[-1]

    def _decide(self, bench: Bench) -> None:
        """One race of PyTorch, and per pattern the default and the fastest tried; twice, for certainty."""
        default = {p: self._fastest_of(p, self.defaults)[0] for p in self.patterns}
        finalists = {p: self._fastest_of(p, list(self.tried))[:FINALISTS] for p in self.patterns}
        entrants = list(dict.fromkeys([None, *default.values(), *itertools.chain(*finalists.values())]))
        first, second = bench.race(self.call, entrants), bench.race(self.call, entrants)
        seconds = dict(zip(entrants, map(min, first, second), strict=True))
        chosen = {}
        for pattern, before in default.items():
            fastest = min(finalists[pattern], key=lambda kernel: seconds[kernel])
            chosen[pattern] = fastest if seconds[fastest] < CLEARLY * seconds[before] else before
        before = min(default.values(), key=lambda kernel: seconds[kernel])
        after = min(chosen.values(), key=lambda kernel: seconds[kernel])
        if seconds[after] >= CLEARLY * seconds[before]:
            after = before
        dense = seconds[None]
        self.standing = replace(
            self._standing,
            decided=True,
            default=kernel_of(before),
            default_seconds=seconds[before],
            tuned=kernel_of(after),
            tuned_seconds=seconds[after],
            predicted_seconds=self._predicted(after),
            dense_seconds=dense if math.isfinite(dense) else None,
        )
        self._keep({pattern: (kernel, seconds[kernel]) for pattern, kernel in chosen.items()})

    def _keep(self, best: Mapping[RowBlocks, tuple[RowsKernelChoice, float]] | None = None) -> None:
        """The standing, and what compilations are to use."""
        standing = self._standing
        records = [Record("search", self.key, standing.tuned_seconds, standing.tuned, None, asdict(standing))]
        for pattern, (kernel, seconds) in (best or {}).items():
            if math.isfinite(seconds):
                key = self.call.key(self.machine, self.threads, pattern)
                records.append(Record("best", key, seconds, str(kernel.schedule)))
        if best and standing.dense_seconds is not None:
            key = self.call.key(self.machine, self.threads, None)
            records.append(Record("best", key, standing.dense_seconds))
        self.timings.add(records)

    def _predicted(self, kernel: RowsKernelChoice) -> float:
        key = self.call.key(self.machine, self.threads, kernel.pattern)
        trial = self.timings.trials(key).get(str(kernel.schedule))
        if trial and trial.predicted is not None:
            return trial.predicted
        return self._model().seconds(self.call.work(kernel, self.machine))

    def _fastest(self, pattern: RowBlocks, tried: Mapping[RowsKernelChoice, float]) -> float:
        return min((seconds for kernel, seconds in tried.items() if kernel.pattern == pattern), default=0.0)

    def _fastest_of(self, pattern: RowBlocks, kernels: Sequence[RowsKernelChoice]) -> list[RowsKernelChoice]:
        """The pattern's own, the fastest first."""
        own = [kernel for kernel in kernels if kernel.pattern == pattern]
        return sorted(own, key=lambda kernel: self.tried[kernel])

    def outcome(self) -> TunedCall:
        standing = self.standing
        row = TunedCall(self.key.call, self.key.signature, self.names, standing.trials if standing else 0)
        if standing is None or not standing.decided:
            return row
        return replace(
            row,
            default=standing.default,
            default_seconds=standing.default_seconds,
            tuned=standing.tuned,
            tuned_seconds=standing.tuned_seconds,
            predicted_seconds=standing.predicted_seconds,
            dense_seconds=standing.dense_seconds,
        )


def timed_patterns(call: Call, machine: Machine) -> tuple[RowBlocks, ...]:
    """Those that compilations time."""
    refused = refusals(call, machine)
    return tuple(pattern for pattern in call.stored if not refused[pattern])


def search_key(call: Call, machine: Machine, threads: int) -> Key:
    """Of a call with all its patterns: two weights share a search only where all of these agree."""
    signature = " | ".join(
        f"{pattern}: {call.signature(pattern)}" for pattern in timed_patterns(call, machine)
    )
    return Key(call_of(call.layer), "search", signature, threads, device_of(machine), versions())
