"""The report: as text for people, as data for programs, and its sums."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from sparsecomp import analyze, compile_sparse
from sparsecomp.choice import DENSE, Candidate, Choice
from sparsecomp.layer import Layer
from sparsecomp.passes.measure_weights import measure_weight
from sparsecomp.pattern import RowBlocks
from sparsecomp.pipeline import Step
from sparsecomp.region import RowsKernelChoice, Schedule
from sparsecomp.report import LayerReport, RegionReport, Report

HOW = RowsKernelChoice(RowBlocks(4), Schedule(4, 64))
KEYS = {
    "name",
    "op",
    "shape",
    "density",
    "structure",
    "choice",
    "reason",
    "candidates",
    "dense_ms",
    "chosen_ms",
    "dense_bytes",
    "bytes",
    "dense_flops",
    "flops",
}
"""What every layer tells, at least."""


def layer_report(name: str, converted: bool, weight: str = "") -> LayerReport:
    """8 x 16 with half of the columns zero, on 10 tokens."""
    layer = Layer(name, "linear", weight or f"{name}.weight", (8, 16), (10, 16))
    matrix = torch.ones(8, 16)
    matrix[:, 8:] = 0
    candidates = (
        Candidate(DENSE, 2e-3, stored=128),
        Candidate(str(HOW), 5e-4, how=HOW, stored=64),
        Candidate("rows 1x1", refused="would multiply too much"),
    )
    how, reason = (HOW, "4.00x the speed of PyTorch") if converted else (None, "skipped on request")
    choice = Choice(name, how, reason, candidates)
    return LayerReport(
        layer, measure_weight(name, matrix), choice, 300 if converted else 512, 64 if converted else 128
    )


@pytest.fixture
def report() -> Report:
    return Report(
        target="cpu test (16 lanes)",
        threads=2,
        steps=(Step("find-layers", 0.0123, "layers +3"), Step("choose-kernels", 1.5, "choices +3")),
        layers=(
            layer_report("first", True),
            layer_report("again", True, "first.weight"),
            layer_report("last", False),
        ),
        untouched={"embedding": ("tokens", "embedding: not lowered yet")},
        regions=(RegionReport("region0", ("first", "again"), ("aten.softmax.int",)),),
        rung="whole graph",
        notes=("compiled once more: dimension 1 of x is 7, not 5",),
        eager_seconds=0.010,
        compiled_seconds=0.004,
    )


def test_text(report: Report, golden: Callable[[str], None]) -> None:
    golden(str(report))


def test_data(report: Report) -> None:
    data = report.as_dict()
    assert json.loads(json.dumps(data)) == data
    assert set(data) >= {"target", "threads", "passes", "layers", "totals"}
    assert all(set(layer) >= KEYS for layer in data["layers"])
    first, _, last = data["layers"]
    assert first["shape"] == [8, 16]
    assert first["density"] == 0.5
    assert first["choice"] == str(HOW)
    assert (first["dense_ms"], first["chosen_ms"]) == (2.0, 0.5)
    assert (first["dense_flops"], first["flops"]) == (2 * 8 * 16 * 10, 2 * 8 * 8 * 10)
    unknown = {"predicted_ms": None, "idle_ms": None}
    assert first["candidates"] == [
        {"kernel": DENSE, "ms": 2.0, **unknown, "stored": 128, "skips": False},
        {"kernel": str(HOW), "ms": 0.5, **unknown, "stored": 64, "skips": True},
        {"kernel": "rows 1x1", "refused": "would multiply too much"},
    ]
    assert first["break_even"] is None
    assert first["picture"] == {"cells": ["f" * 8 + "0" * 8] * 8, "corner": []}
    assert data["flow"] == []
    assert (last["choice"], last["chosen_ms"], last["bytes"]) == ("dense", 2.0, 512)
    assert data["untouched"] == [{"name": "tokens", "reason": "embedding: not lowered yet"}]
    assert data["passes"][0] == {"name": "find-layers", "ms": pytest.approx(12.3), "changed": "layers +3"}


def test_totals_count_a_shared_weight_once_and_its_work_twice(report: Report) -> None:
    totals = report.totals
    assert (totals["layers"], totals["converted_layers"]) == (3, 2)
    assert (totals["dense_bytes"], totals["bytes"]) == (2 * 512, 300 + 512)
    assert (totals["converted_dense_bytes"], totals["converted_bytes"]) == (512, 300)
    assert totals["flops"] == (64 + 64 + 128) * 2 * 10
    assert (totals["dense_ms"], totals["chosen_ms"]) == (6.0, 3.0)
    assert totals["speedup"] == pytest.approx(2.5)


def test_without_times_there_is_no_speedup(report: Report) -> None:
    quiet = replace(report, eager_seconds=None, compiled_seconds=None)
    assert quiet.totals["speedup"] is None
    assert "eager" not in str(quiet).splitlines()[0]


def test_a_model_that_pytorch_runs_after_all_has_no_speedup(report: Report) -> None:
    left = report.given_up("outputs differ by 2.0e-04 of the largest: PyTorch runs the model")
    assert left.totals["speedup"] is None
    assert left.totals["eager_model_ms"] == pytest.approx(10.0)
    assert "x eager" not in str(left)


def test_an_empty_report_prints() -> None:
    empty = Report("cpu", 1, (), (), {})
    assert str(empty) == "sparsecomp on cpu, 1 thread; analysis only: 0 of 0 layers converted"
    assert empty.as_dict()["totals"]["bytes"] == 0


def test_a_long_region_is_named_by_its_ends() -> None:
    names = tuple(f"layer{i}" for i in range(9))
    report = Report("cpu", 1, (), (), {}, regions=(RegionReport("region0", names, ()),))
    assert "layer0 ... layer8 (9 layers)" in str(report)


def test_reports_of_a_model(golden: Callable[[str], None]) -> None:
    """`analyze` and `compile_sparse` tell the same of structure; only the second chooses."""
    first = nn.Linear(16, 32)
    with torch.no_grad():
        first.weight[:, 4:] = 0
    model = nn.Sequential(first, nn.ReLU(), nn.Linear(32, 8)).eval()
    x = torch.randn(3, 16)
    found = analyze(model, (x,)).as_dict()
    compiled: dict[str, Any] = compile_sparse(model, (x,), target="reference").report.as_dict()
    structure = ("name", "op", "shape", "density", "structure", "zero_columns", "best_block", "n_of_m")
    assert [[layer[key] for key in structure] for layer in found["layers"]] == [
        [layer[key] for key in structure] for layer in compiled["layers"]
    ]
    assert all(layer["choice"] == "not chosen yet" for layer in found["layers"])
    assert all(layer["candidates"] and layer["reason"] for layer in compiled["layers"])
    assert compiled["regions"]
    assert all(region["ms"] is not None for region in compiled["regions"])
    assert [step["name"] for step in found["passes"]] == [
        step["name"] for step in compiled["passes"][: len(found["passes"])]
    ]
    golden(
        "\n".join(
            f"{layer['name']}: {layer['structure']} -> {layer['choice']}, {layer['reason']}"
            for layer in compiled["layers"]
        )
    )
