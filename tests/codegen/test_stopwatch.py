"""Contestants take turns, and the hopeless drop out. Times are scripted: nothing here depends on the machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from sparsecomp.codegen import stopwatch
from sparsecomp.codegen.stopwatch import ROUNDS, Contestant, seconds_in_turn, seconds_of


def scripted(
    times: Sequence[Sequence[float]], monkeypatch: pytest.MonkeyPatch
) -> tuple[list[Contestant], list[int]]:
    """Contestant number i takes times[i][round]; the second list says who ran, in order."""
    order: list[int] = []
    current: list[float] = []
    monkeypatch.setattr(stopwatch, "seconds_of", lambda run, **options: current.pop())

    def contestant(number: int) -> Contestant:
        @contextmanager
        def prepared() -> Iterator[Callable[[], object]]:
            current.append(times[number][order.count(number)])
            order.append(number)
            yield lambda: None

        return prepared

    return [contestant(number) for number in range(len(times))], order


def test_each_runs_once_a_round_and_its_fastest_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    contestants, order = scripted([[3.0, 9.0, 9.0, 9.0], [9.0, 9.0, 9.0, 2.5]], monkeypatch)
    monkeypatch.setattr(stopwatch, "FAR_BEHIND", 100)
    assert seconds_in_turn(contestants) == [3.0, 2.5]
    assert order == [0, 1] * ROUNDS


def test_who_is_much_slower_after_two_rounds_drops_out(monkeypatch: pytest.MonkeyPatch) -> None:
    contestants, order = scripted([[1.0] * ROUNDS, [9.0, 8.0], [9.0, 1.2, 1.1, 1.1]], monkeypatch)
    assert seconds_in_turn(contestants) == [1.0, 8.0, 1.1]
    assert order == [0, 1, 2, 0, 1, 2, 0, 2, 0, 2]


def test_nobody_takes_no_time() -> None:
    assert seconds_in_turn([]) == []


@pytest.mark.parametrize(("budget", "runs"), [(0.0, 1 + 3), (60.0, 1 + 9)])
def test_a_run_is_repeated_within_its_budget(budget: float, runs: int) -> None:
    """The first run, which touches everything for the first time, is not timed."""
    calls: list[None] = []
    assert seconds_of(lambda: calls.append(None), budget=budget) > 0
    assert len(calls) == runs


def test_caches_fill_with_something_else_before_each_timed_run() -> None:
    happened: list[str] = []
    seconds_of(lambda: happened.append("run"), 2, 2, 0.0, between=lambda: happened.append("other"))
    assert happened == ["run", "other", "run", "other", "run"]


def test_the_rest_of_a_model_is_more_than_the_caches_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for text, nbytes in [("4096K\n", 8 << 20), ("2M", 4 << 20), ("1024M", 128 << 20), ("odd", 64 << 20)]:
        (tmp_path / "size").write_text(text)
        monkeypatch.setattr(stopwatch, "LAST_LEVEL", tmp_path / "size")
        stopwatch._last_level.cache_clear()
        read = stopwatch.rest_of_the_model()
        assert read() == nbytes // 4  # ones, each in memory of its own
    stopwatch._last_level.cache_clear()
