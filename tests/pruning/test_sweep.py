"""Many plans, as a table and as a drawing."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sparsecomp import InputError
from sparsecomp.pruning.sweep import WAYS, Point, Sweep, sweep

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


def teacher() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32)).eval()


X = torch.randn(64, 32, generator=torch.Generator().manual_seed(1))
GOALS = ({"sparsity": 0.45}, {"sparsity": 0.8})
OPTIONS: dict[str, Any] = {"target": "reference", "measure": False, "method": "wanda", "levels": 4}


def evaluate(found: nn.Module) -> float:
    with torch.no_grad():
        return float((found(X) - teacher()(X)).square().mean())


def losses(found: Sweep) -> list[tuple[str, str, float | None, str]]:
    return [(point.way, point.goal, point.loss, point.failure) for point in found.points]


def test_plans_are_made_and_evaluated(tmp_path: Path) -> None:
    found = sweep(teacher(), [X], evaluate, GOALS, resume=tmp_path, **OPTIONS)
    assert len(found.points) == 2 * len(WAYS)
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
        sweep(teacher(), [X], evaluate, GOALS, {"odd": {"structures": ("5:4",)}}, **OPTIONS)


def test_times_of_different_devices_are_not_passed_over() -> None:
    points = (replace(POINTS[0], device="one CPU"), replace(POINTS[1], device="another CPU"))
    assert str(Sweep(points, 0.1)).endswith("times are of different devices: another CPU, one CPU")
    assert "different devices" not in str(Sweep((points[0], points[0]), 0.1))


class Backwards(Executor):
    """Runs what it was given when all of it is there, the last first; the machine is lost after some."""

    def __init__(self, left: float = math.inf) -> None:
        self.calls, self.left = list[tuple[Future[Any], Callable[[], Any]]](), left

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self.calls.append((future, partial(fn, *args, **kwargs)))
        if len(self.calls) == 3:
            for future, call in reversed(self.calls):
                self.left -= 1
                if self.left < 0:
                    future.set_exception(RuntimeError("a machine was lost"))
                else:
                    future.set_result(call())
        return self.calls[-1][0]


THREE = ({"sparsity": 0.45}, {"sparsity": 0.6}, {"sparsity": 0.8})
ONE: dict[str, Any] = {"unstructured": {"structures": ("unstructured",)}}


def test_an_executor_makes_the_same_points_in_the_same_order() -> None:
    here = sweep(teacher(), [X], evaluate, THREE, ONE, **OPTIONS)
    there = sweep(teacher(), [X], evaluate, THREE, ONE, executor=Backwards(), **OPTIONS)
    assert losses(there) == losses(here)


def test_what_is_finished_is_kept_when_a_machine_is_lost(tmp_path: Path) -> None:
    evaluated = []

    def counting(found: nn.Module) -> float:
        evaluated.append(found)
        return evaluate(found)

    with pytest.raises(RuntimeError, match="a machine was lost"):
        sweep(teacher(), [X], counting, THREE, ONE, executor=Backwards(2), resume=tmp_path, **OPTIONS)
    before = len(evaluated)
    whole = sweep(teacher(), [X], counting, THREE, ONE, resume=tmp_path, **OPTIONS)
    assert len(whole.points) == 3
    assert losses(whole) == losses(sweep(teacher(), [X], evaluate, THREE, ONE, **OPTIONS))
    again = len(evaluated)
    assert again - before < before  # one plan, not three
    assert losses(sweep(teacher(), [X], counting, THREE, ONE, resume=tmp_path, **OPTIONS)) == losses(whole)
    assert len(evaluated) == again + 1  # of the dense model
    with pytest.raises(InputError, match="another model"):
        sweep(nn.Sequential(nn.Linear(32, 32)).eval(), [X], counting, THREE, ONE, resume=tmp_path, **OPTIONS)
