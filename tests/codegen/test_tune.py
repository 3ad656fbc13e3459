"""The search ends, goes on where it stopped, and never makes anything slower. Clocks are invented."""

from __future__ import annotations

import _thread
import math
import random
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from sparsecomp.codegen import measure
from sparsecomp.codegen.call import Call
from sparsecomp.codegen.crew import ATTEMPTS, Crew
from sparsecomp.codegen.machine import machine_of
from sparsecomp.codegen.measure import Meter
from sparsecomp.codegen.predict import fit
from sparsecomp.codegen.timings import Timings
from sparsecomp.codegen.tune import BATCH, Search
from sparsecomp.codegen.tuner import Outcome, Tuner, searches_of
from sparsecomp.codegen.workbench import Bench, BenchLostError
from sparsecomp.layer import Layer
from sparsecomp.pattern import RowBlocks
from sparsecomp.progress import Watch
from sparsecomp.region import RowsKernelChoice, Schedule
from sparsecomp.target import Target
from sparsecomp.tuning import Budget, split

MACHINE = machine_of(Target())
LAYERS = tuple(
    Layer(f"layer{number}", "linear", f"w{number}", (64, columns), (70, columns))
    for number, columns in enumerate((96, 96, 200))
)
"""Two of them are one call."""
Clock = Callable[[RowsKernelChoice], float]


def matrix(layer: Layer) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = (layer.rows, layer.columns)
    return torch.rand(shape, generator=generator) * (torch.rand(shape, generator=generator) < 0.1)


class InventedBench:
    """Tells what `clock` says; notes every race. Ends with `end` in the race of that number."""

    threads = 1
    machine = MACHINE

    def __init__(self, clock: Clock, ends: int = 0, end: BaseException | None = None) -> None:
        self.clock, self.ends, self.end = clock, ends, end
        self.races: list[tuple[str, list[RowsKernelChoice | None]]] = []

    def race(self, call: Call, kernels: Sequence[RowsKernelChoice | None]) -> list[float]:
        self.races.append((call.layer.name, list(kernels)))
        if self.end is not None and len(self.races) == self.ends:
            raise self.end
        return [1.0 if kernel is None else self.clock(kernel) for kernel in kernels]

    def close(self) -> None: ...


def wide(kernel: RowsKernelChoice) -> float:
    """A width that no default has is best, and a single pass."""
    return 1e-4 * kernel.pattern.rows * (1 + abs(vectors(kernel) - BEST)) * (1 + 10 / columns(kernel))


def vectors(kernel: RowsKernelChoice) -> int:
    assert isinstance(kernel.schedule, Schedule)
    return kernel.schedule.vectors


def columns(kernel: RowsKernelChoice) -> int:
    assert isinstance(kernel.schedule, Schedule)
    return kernel.schedule.columns


def defaults_win(kernel: RowsKernelChoice) -> float:
    return 1e-4 if kernel in DEFAULTS else 2e-4


def searches(timings: Timings) -> list[Search]:
    return searches_of([(layer, matrix(layer)) for layer in LAYERS], timings, MACHINE, 1)


DEFAULTS = {kernel for search in searches(Timings.in_memory()) for kernel in search.defaults}
BEST = min({1, 2, 3, 4, 5} - {vectors(kernel) for kernel in DEFAULTS if kernel.pattern == RowBlocks(1)})
"""Vectors of columns, in the file's invention."""


def run(
    timings: Timings, *benches: Bench, trials: int | None = None, seconds: float | None = None
) -> Outcome:
    return Tuner(searches(timings), list(benches), Budget(seconds, trials), Watch()).run()


def test_layers_that_agree_are_one_call() -> None:
    assert [search.names for search in searches(Timings.in_memory())] == [("layer0", "layer1"), ("layer2",)]


def test_every_default_is_timed_and_the_best_predicted_come_next() -> None:
    timings, bench = Timings.in_memory(), InventedBench(wide)
    search = searches(timings)[0]
    search.begin(bench, lambda *what: None)
    assert bench.races[0][1] == search.defaults
    order = search.promising(fit([], 1))
    predicted = [fit([], 1).seconds(search.call.work(kernel, MACHINE)) for kernel in order]
    assert predicted == sorted(predicted)
    assert not set(order) & set(search.defaults)


def test_a_better_schedule_is_found_and_used() -> None:
    timings = Timings.in_memory()
    found = run(timings, InventedBench(wide), trials=400)
    assert found.trials > 0
    for call in found.calls:
        assert f"V{BEST}" in call.tuned
        assert call.gain > 1.5
        assert call.tuned_seconds < call.default_seconds
        assert not math.isnan(call.predicted_seconds)
    for search in searches(timings):
        best = timings.get(search.call.key(MACHINE, 1, RowBlocks(1)))
        assert best is not None
        assert f"V{BEST}" in best[1]


def test_later_compilations_use_it_without_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    timings = Timings.in_memory()
    run(timings, InventedBench(wide), trials=400)
    monkeypatch.setattr(Meter, "_race", lambda *what: pytest.fail("measured"))
    candidates = Meter(Target(), 1, timings).candidates(LAYERS[0], matrix(LAYERS[0]))
    tuned = next(candidate for candidate in candidates if candidate.how and candidate.how.pattern.rows == 1)
    assert tuned.how is not None
    assert isinstance(tuned.how.schedule, Schedule)
    assert tuned.how.schedule.vectors == BEST


def test_candidates_say_what_was_predicted_before_they_were_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    timings, layer = Timings.in_memory(), LAYERS[0]
    monkeypatch.setattr(measure, "seconds_in_turn", lambda contestants, *rest: [1e-4] * len(contestants))
    dense, *kernels = Meter(Target(), 1, timings).candidates(layer, matrix(layer))
    assert dense.predicted is None
    timed = [candidate for candidate in kernels if not candidate.refused]
    for candidate in timed:
        assert candidate.how is not None
        work = Call.of(layer, matrix(layer)).work(candidate.how, MACHINE)
        assert candidate.predicted == pytest.approx(fit([], 1).seconds(work)), "nothing was known yet"
        assert candidate.predicted is not None
        assert candidate.predicted_idle is not None
        assert 0 < candidate.predicted_idle < candidate.predicted
    later = Meter(Target(), 1, timings).candidates(layer, matrix(layer))
    assert [candidate.predicted for candidate in later[1:]] != [candidate.predicted for candidate in kernels]


def test_where_the_defaults_win_they_stay() -> None:
    timings = Timings.in_memory()
    found = run(timings, InventedBench(defaults_win), trials=60)
    for call in found.calls:
        assert call.tuned == call.default
        assert call.gain == 1.0
    for search in searches(timings):
        for pattern in search.patterns:
            best = timings.get(search.call.key(MACHINE, 1, pattern))
            assert best is not None
            assert best[1] in {str(kernel.schedule) for kernel in search.defaults}


@pytest.mark.parametrize("seed", range(5))
def test_never_slower_on_a_noisy_clock(seed: int) -> None:
    draw = random.Random(seed)
    found = run(Timings.in_memory(), InventedBench(lambda kernel: draw.uniform(1, 2) * 1e-4), trials=60)
    assert all(call.gain >= 1.0 for call in found.calls)


@pytest.mark.parametrize("trials", [2, 7, 40])
def test_a_budget_of_trials_is_kept(trials: int) -> None:
    found = run(Timings.in_memory(), InventedBench(wide), trials=trials)
    assert 0 < found.trials <= trials
    assert all(call.decided for call in found.calls)


def test_a_second_process_tunes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "timings.jsonl"
    first = run(Timings(path), InventedBench(wide), trials=30)
    bench = InventedBench(wide)
    second = run(Timings(path), bench, trials=30)
    assert bench.races == []
    assert second.trials == 0
    assert second.calls == first.calls


def test_nor_with_a_budget_of_seconds(tmp_path: Path) -> None:
    path = tmp_path / "timings.jsonl"
    assert run(Timings(path), InventedBench(wide), seconds=0.05).trials > 0
    bench = InventedBench(wide)
    run(Timings(path), bench, seconds=0.05)
    assert bench.races == []


def test_a_larger_budget_goes_on() -> None:
    timings = Timings.in_memory()
    run(timings, InventedBench(wide), trials=12)
    assert 0 < run(timings, InventedBench(wide), trials=30).trials <= 20


@pytest.mark.parametrize("race", [1, 2, 3, 5, 8])
def test_interrupted_it_goes_on_where_it_stopped(race: int, tmp_path: Path) -> None:
    path = tmp_path / "timings.jsonl"
    first = InventedBench(wide, race, KeyboardInterrupt())
    stopped = run(Timings(path), first, trials=24)
    assert stopped.interrupted
    measured = {(name, kernel) for name, kernels in first.races[:-1] for kernel in kernels}
    second = InventedBench(wide)
    resumed = run(Timings(path), second, trials=24)
    assert not resumed.interrupted
    assert all(call.decided for call in resumed.calls)
    assert stopped.trials + resumed.trials <= 24 + len(resumed.calls)
    for name, kernels in second.races:
        new = [kernel for kernel in kernels[:BATCH] if (name, kernel) not in measured]
        assert new or None in kernels or len(kernels) == 1  # the last race runs finalists again


# Several devices ---------------------------------------------------------------------------------------------


def test_a_lost_device_costs_nothing_but_its_race(tmp_path: Path) -> None:
    path = tmp_path / "timings.jsonl"
    lost = InventedBench(wide, 2, BenchLostError("board 1 does not answer"))
    found = run(Timings(path), lost, InventedBench(wide), trials=40)
    assert all(call.decided for call in found.calls)
    assert not found.interrupted
    assert not found.notes or "board 1 does not answer" in found.notes[0]


def test_without_any_device_left_it_ends_and_says_so() -> None:
    benches = [InventedBench(wide, 2, BenchLostError(f"board {number} is gone")) for number in range(2)]
    found = run(Timings.in_memory(), *benches, trials=40)
    assert not all(call.decided for call in found.calls)
    assert any("no device is left" in note for note in found.notes)


def test_an_interrupt_stops_all_devices(tmp_path: Path) -> None:
    def interrupting(kernel: RowsKernelChoice) -> float:
        if not interrupted:
            interrupted.append(True)
            _thread.interrupt_main()
        time.sleep(1e-3)
        return wide(kernel)

    interrupted: list[bool] = []
    path = tmp_path / "timings.jsonl"
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it is ignored
    try:
        found = run(Timings(path), InventedBench(interrupting), InventedBench(interrupting), trials=400)
    finally:
        signal.signal(signal.SIGINT, before)
    assert found.interrupted
    resumed = run(Timings(path), InventedBench(wide), trials=20)
    assert all(call.decided for call in resumed.calls)


def test_what_ends_every_device_is_given_up() -> None:
    def work(job: str, bench: Bench) -> None:
        done.append(job)
        if job == "poison":
            raise BenchLostError("gone")

    done: list[str] = []
    crew = Crew([InventedBench(wide) for _ in range(ATTEMPTS + 1)], work)
    crew.run(["poison", "a", "b", "c"])
    assert done.count("poison") == ATTEMPTS
    assert {"a", "b", "c"} < set(done)
    assert any("given up" in note for note in crew.notes)


@pytest.mark.parametrize("count", [1, 2])
def test_what_a_job_raises_is_raised(count: int) -> None:
    def work(job: int, bench: Bench) -> None:
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        Crew([InventedBench(wide) for _ in range(count)], work).run([1, 2, 3])


def test_the_budget_goes_where_the_time_goes() -> None:
    assert split(Budget(seconds=10.0), [3.0, 1.0, 1.0]) == [6.0, 2.0, 2.0]
    assert split(Budget(trials=10), [98.0, 1.0, 1.0]) == [10.0, 1.0, 1.0]
