"""Many plans, as a table and as a drawing."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sparsecomp import InputError
from sparsecomp.pruning.sweep import Point, Sweep, sweep

POINTS = (
    Point("mixed", "sparsity=0.5", 2e-3, 2 << 20, 0.51, 0.25),
    Point("mixed", "sparsity=0.8", 1e-3, 1 << 20, 0.81, 0.5),
    Point("2:4", "sparsity=0.5", 3e-3, 3 << 20, 0.5, 0.75),
    Point("2:4", "sparsity=0.8", failure="sparsity=0.8 is out of reach: at least 50 of 100"),
)


def test_text(golden: Callable[[str], None]) -> None:
    golden(str(Sweep(POINTS, 0.125)))


def test_a_drawing_has_a_point_for_every_plan(tmp_path: Path) -> None:
    Sweep(POINTS, 0.125).save_chart(tmp_path / "chart.svg", "a <title>")
    root = ET.parse(tmp_path / "chart.svg").getroot()
    space = "{http://www.w3.org/2000/svg}"
    circles = list(root.iter(f"{space}circle"))
    assert len(circles) == 2 * 3
    assert len(list(root.iter(f"{space}polyline"))) == 2 * 2
    x = [float(circle.attrib["cx"]) for circle in circles[:3]]
    assert x[1] < x[0] < x[2]  # by milliseconds
    y = [float(circle.attrib["cy"]) for circle in circles[:3]]
    assert y[2] < y[1] < y[0]  # a larger loss is higher
    texts = [element.text for element in root.iter(f"{space}text")]
    assert {"a <title>", "milliseconds", "MiB", "loss", "mixed", "2:4"} <= set(texts)


def test_nothing_to_draw_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing to draw"):
        Sweep(POINTS[3:], 0.1).save_chart(tmp_path / "chart.svg")


def test_plans_are_made_and_evaluated(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32)).eval()
    x = torch.randn(64, 32)
    with torch.no_grad():
        expected = model(x)

    def evaluate(found: nn.Module) -> float:
        with torch.no_grad():
            return float((found(x) - expected).square().mean())

    options: dict[str, Any] = {"target": "reference", "measure": False, "method": "wanda", "levels": 4}
    goals = ({"sparsity": 0.45}, {"sparsity": 0.8})
    found = sweep(model, [x], evaluate, goals, resume=tmp_path, **options)
    assert len(found.points) == 2 * 5
    assert found.dense_loss == 0.0
    by_way = {(point.way, point.goal): point for point in found.points}
    assert "out of reach" in by_way["2:4", "sparsity=0.8"].failure
    for point in found.points:
        if not point.failure:
            assert point.loss is not None
            assert point.loss > 0
            assert point.seconds is not None
            assert point.nbytes is not None
    assert found.as_dict()["points"][0]["way"] == "mixed"
    with pytest.raises(InputError, match="not known"):
        sweep(model, [x], evaluate, goals, {"odd": {"structures": ("5:4",)}}, **options)
