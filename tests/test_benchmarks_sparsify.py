"""The benchmarks of plans: their tables, and that an interrupted plan counts the time before."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import equal_latency, sparsify
from sparsecomp.pruning.rivals import POLISHED

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
    def row(dense: float, all_structures: float, blocks: float, way: str) -> dict[str, Any]:
        found = {"dense": {"loss": dense}, "all structures": {"loss": all_structures}}
        found |= {"4x1 alone": {"loss": blocks}}
        return found | {equal_latency.VERIFIED: found[way] | {"way": way}}

    rows = {
        "convnet, obs, seed 0": row(0.1, 0.2, 0.3, "all structures"),
        "convnet, obs, seed 1": row(0.1, 0.4, 0.3, "4x1 alone"),
        "convnet, obs, seed 2": row(0.1, 0.4, 0.5, "4x1 alone"),
    }
    text = equal_latency.markdown(rows)
    assert "| convnet, obs, seed 1 | 0.1000 | 0.3000 (4x1 alone) | 0.4000 | 0.3000 |" in text
    assert text.splitlines()[-1] == "| convnet: less, as much, more |  |  | 1, 1, 1 | 1, 2, 0 |"
    assert json.dumps(rows)


@pytest.mark.slow
def test_every_way_keeps_to_one_latency_on_real_digits() -> None:
    network = equal_latency.NETWORKS["convnet"]
    table = equal_latency.latency_table("convnet", equal_latency.TABLE)
    found = equal_latency.row(network, 0, "wanda", table, quick=True)
    budget = found["dense"]["ms"] / network.speedup
    ways = {way: told for way, told in found.items() if way not in ("dense", equal_latency.VERIFIED)}
    taken = found[equal_latency.VERIFIED]
    assert len(ways) >= 6
    assert all(0.5 * budget < told["ms"] <= budget * (1 + 1e-9) for told in (taken, *ways.values()))
    best = min(told["seen"] for told in ways.values())
    assert taken["seen"] < best if taken["way"].endswith(POLISHED) else taken["seen"] == best
