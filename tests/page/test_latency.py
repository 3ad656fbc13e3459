"""Sparsity against time: where points and lines lie."""

from __future__ import annotations

from typing import Any

import pytest

from sparsecomp.page.latency import fastest, layer_chart, overview
from tests.page.samples import report


def layers() -> list[dict[str, Any]]:
    return list(report().as_dict()["layers"])


def test_the_line_meets_that_of_dense_at_the_break_even() -> None:
    chart = layer_chart(layers()[0])
    assert chart is not None
    assert chart.line is not None
    assert chart.break_even is not None
    x0, y0, x1, y1 = chart.line
    at = y0 + (y1 - y0) * (chart.break_even - x0) / (x1 - x0)
    assert at == pytest.approx(chart.dense)


def test_measured_kernels_are_points_and_the_chosen_one_is_marked() -> None:
    chart = layer_chart(layers()[0])
    assert chart is not None
    assert [(point.label, point.kind) for point in chart.points] == [("A", "full"), ("B", "chosen")]
    dense, kernel = chart.points
    assert kernel.x > dense.x, "it skips more"
    assert kernel.y > dense.y, "it is faster: further down"
    assert dense.y == chart.dense


def test_where_pytorch_stays_its_point_is_marked_and_the_kernel_lies_above_the_line() -> None:
    chart = layer_chart(layers()[-1])
    assert chart is not None
    assert [point.kind for point in chart.points] == ["chosen", "skipping"]
    assert chart.points[1].y < chart.dense


def test_without_measurements_there_is_no_chart() -> None:
    nothing = {**layers()[0], "candidates": [], "dense_ms": None, "chosen_ms": None, "break_even": None}
    assert layer_chart(nothing) is None
    assert overview([nothing]) is None
    assert overview([]) is None


def test_the_overview_has_every_measured_layer_and_its_break_even() -> None:
    shown = overview(layers())
    assert shown is not None
    assert [point.kind for point in shown.points] == ["chosen", "chosen", "full"]
    assert all(point.y < shown.even for point in shown.points[:2]), "faster than PyTorch: above"
    assert shown.points[2].y > shown.even
    assert shown.points[1].radius > shown.points[0].radius, "PyTorch takes longer for it"
    titles = [title for _, title in shown.break_evens]
    assert titles[-1] == "last: break-even at 55 %"
    assert len(titles) == 3


def test_a_layer_that_stays_shows_its_fastest_kernel() -> None:
    stays = layers()[-1]
    assert fastest(stays) == pytest.approx(2 * stays["dense_ms"])
    assert fastest({**stays, "candidates": stays["candidates"][:1]}) == stays["dense_ms"]


def test_points_in_one_place_share_their_letters() -> None:
    first = layers()[0]
    dense, kernel, refused = first["candidates"]
    twin = {**kernel, "kernel": "unstructured", "ms": kernel["ms"] * 1.001}
    chart = layer_chart({**first, "candidates": [dense, kernel, twin, refused]})
    assert chart is not None
    assert [point.label for point in chart.points] == ["A", "B C", ""]
