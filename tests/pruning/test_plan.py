"""The plan as text and as data."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from sparsecomp import InputError
from sparsecomp.pruning.candidate import DENSE, Candidate
from sparsecomp.pruning.metrics import Measurement
from sparsecomp.pruning.plan import LayerPlan, Option, Plan, Totals


def a_plan() -> Plan:
    sparse, blocks = Candidate("unstructured", 0.9), Candidate("4x1", 0.72)
    layers = (
        LayerPlan(
            "encoder.up",
            (64, 32),
            Option(sparse, 1.5e-4, 0.0123456),
            1e-3,
            (Option(blocks, 2e-4, 0.02), Option(DENSE, 1e-3, 0.0)),
            "delta",
            979,
        ),
        LayerPlan("encoder.down", (32, 64), Option(blocks, 3e-4, 0.04), 9e-4, (), "bitmap 4x1", 2350),
        LayerPlan(
            "head",
            (2, 32),
            Option(DENSE, 0.0, 0.0),
            0.0,
            nbytes=256,
            note="stays dense: it has only 64 weights",
        ),
    )
    totals = Totals(
        predicted_seconds=1.1e-3,
        dense_bytes=16640,
        bytes=5000,
        weights=4160,
        kept=860,
        error=0.0523,
        measured_seconds=1.05e-3,
        dense_seconds=2.1e-3,
        eager_seconds=4.2e-3,
        dense_loss=0.1,
        loss=0.125,
        dense_quality=98.0,
        quality=97.5,
        parameters=4258,
        nonzeros=958,
        dense_flops=532480,
        flops=110080,
        formats={
            "delta": 3300,
            "bitmap": 3400,
            "bitmap 4x1": 4000,
            "csr": 4100,
            "bsr 4x1": 4200,
            "dense": 16384,
        },
    )
    return Plan(
        "target_speedup=2", "obs", "optimal", "cpu", 2, layers, totals, ("one thing to know",), seconds=12.3
    )


def test_text(golden: Callable[[str], None]) -> None:
    golden(str(a_plan()))


def test_text_without_measurements(golden: Callable[[str], None]) -> None:
    plan = a_plan()
    totals = Totals(1e-3, 16640, 5000, 4160, 860, 0.0523)
    golden(str(Plan("sparsity=0.8", "magnitude", "erk", "cpu", 1, plan.layers, totals)))


def test_data_go_to_a_file_and_back(tmp_path: Path) -> None:
    plan = a_plan()
    plan.save(tmp_path / "plan.json")
    again = Plan.load(tmp_path / "plan.json")
    assert again.choices == plan.choices
    assert again.as_dict() == plan.as_dict() == json.loads((tmp_path / "plan.json").read_text())
    assert str(again) == str(plan)
    assert again.totals == plan.totals
    assert again.totals.speedup == pytest.approx(2.0)
    assert again.totals.eager_speedup == pytest.approx(4.0)
    assert again.totals.sparsity == pytest.approx(1 - 860 / 4160)


def test_plans_are_compared_by_any_cost() -> None:
    plan = a_plan()
    assert plan.totals.densities == pytest.approx((98.0 / 0.004258, 97.5 / 0.000958))
    assert plan.measurement("nonzeros") == Measurement(958, 97.5)
    assert plan.measurement("flops") == Measurement(110080, 97.5)
    assert plan.measurement("seconds") == Measurement(1.05e-3, 97.5)
    only_loss = replace(plan, totals=replace(plan.totals, quality=None, measured_seconds=None))
    assert only_loss.measurement("bytes") == Measurement(5000, -0.125)
    assert only_loss.measurement("seconds").cost == 1.1e-3
    with pytest.raises(InputError, match="give quality= or evaluate="):
        replace(plan, totals=replace(plan.totals, quality=None, loss=None)).measurement("flops")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "holds no plan"),
        ("[]", "holds no plan"),
        ('{"format": 0}', "of format 0; this version reads 2"),
        ('{"format": 2}', "holds no plan: KeyError"),
    ],
)
def test_a_file_that_is_no_plan_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        Plan.load(path)
    with pytest.raises(InputError, match="holds no plan: FileNotFoundError"):
        Plan.load(tmp_path / "absent.json")


def test_a_plan_from_a_file_has_no_weights_but_makes_them() -> None:
    model = nn.ModuleDict({"up": nn.Linear(32, 64), "down": nn.Linear(64, 32)})
    whole = nn.ModuleDict({"encoder": model, "head": nn.Linear(32, 2)})
    plan = a_plan()
    with pytest.raises(InputError, match=r"holds no weights: plan.apply\(model, calibration\)"):
        _ = plan.model
    before = {name: value.clone() for name, value in whole.state_dict().items()}
    plan = Plan(**{**vars(plan), "method": "magnitude"})
    pruned = plan.apply(whole)
    up = pruned.get_parameter("encoder.up.weight")
    assert int(up.count_nonzero()) == round(0.1 * up.numel())
    assert torch.equal(pruned.get_parameter("head.weight"), whole.get_parameter("head.weight"))
    assert all(torch.equal(value, before[name]) for name, value in whole.state_dict().items())
    with pytest.raises(InputError, match=r"encoder\.up"):
        plan.apply(nn.Linear(2, 2))
