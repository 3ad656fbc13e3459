"""The benchmarks of plans: their tables, and that an interrupted plan counts the time before."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import equal_latency, sparsify

TOTALS = {
    "predicted_seconds": 0.05,
    "measured_seconds": 0.048,
    "dense_seconds": 0.1,
    "sparsity": 0.61,
    "speedup": 2.083,
    "eager_speedup": 3.2,
}


def test_a_table_of_plans() -> None:
    rows: dict[str, dict[str, Any]] = {
        "bert-base, 2x, 2 threads": {
            "machine": "some CPU",
            "totals": TOTALS,
            "notes": [],
            "peak_gib": 3.25,
            "seconds": 240.0,
            "turns": 2,
        },
        "bert-base, 90x, 2 threads": {"failure": "target_speedup=90 is out of reach: the most is 20"},
    }
    text = sparsify.markdown(rows)
    assert (
        "| bert-base, 2x, 2 threads | 61.0% | 100.00 | 50.00 | 48.00 | +4.2% | 2.08 | 3.20 | 4.0 in 2 | 3.2 |"
        in text
    )
    assert "| bert-base, 90x, 2 threads | target_speedup=90 is out of reach" in text
    assert "some CPU" in text


def test_an_interrupted_plan_says_so_and_counts_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = sparsify.parse(["--small", "--minutes", "0.0001", "--out", str(tmp_path / "rows.json")])
    first = sparsify.ask("bert-base", 2.0, options, {})
    assert first["failure"] == "interrupted"
    assert first["turns"] == 1
    second = sparsify.ask("bert-base", 2.0, options, first)
    assert second["turns"] == 2
    assert second["seconds"] > first["seconds"]
    done = {"totals": TOTALS, "seconds": 9.0, "turns": 3}
    assert sparsify.ask("bert-base", 2.0, options, done)["turns"] == 1  # from the beginning


def test_a_table_of_losses() -> None:
    mixed = {"speedup": 5.1, "sparsity": 0.9, "loss": 0.2, "accuracy": 95.0}
    other = mixed | {"loss": 0.3}
    failed = {"failure": "out of reach"}
    dense = {"loss": 0.1, "accuracy": 97.0}
    rows: dict[str, dict[str, Any]] = {
        "5x, seed 0": {"dense": dense} | dict.fromkeys(equal_latency.WAYS, other) | {"mixed": mixed},
        "5x, seed 2": {"dense": dense}
        | dict.fromkeys(equal_latency.WAYS, other | {"speedup": 9.0})
        | {"mixed": mixed},
        "5x, seed 1": {"dense": dense} | dict.fromkeys(equal_latency.WAYS, failed) | {"mixed": mixed},
    }
    text = equal_latency.markdown(rows, "obs")
    assert "0.200 (95.0 %; 5.10x)" in text
    assert "out of reach" in text
    assert text.splitlines()[-1].split(" | ")[3:] == ["1 of 1"] * 2 + ["1 of 1 |"]
    assert json.dumps(rows)
