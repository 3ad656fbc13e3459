"""Several contestants side by side."""

from __future__ import annotations

from sparsecomp.alternate import alternate


def test_rounds_alternate() -> None:
    calls: list[str] = []
    contestants = {name: lambda name=name: calls.append(name) for name in "abc"}
    counts: list[int] = []
    times = alternate(contestants, rounds=6, warmup=1, finished=counts.append)
    assert counts == [1, 2, 3, 4, 5, 6]
    assert calls[:3] == ["a", "b", "c"]
    rounds = [tuple(calls[start : start + 3]) for start in range(3, 21, 3)]
    assert len(set(rounds)) > 3
    assert all(set(called) == {"a", "b", "c"} for called in rounds)
    assert times["a"].minimum <= times["a"].median
    assert times["a"].rounds == 6
    assert alternate(contestants, rounds=1, duration=0.02)["b"].rounds > 1
