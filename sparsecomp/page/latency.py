"""Sparsity against time: of one layer, kernel by kernel, and of all layers against PyTorch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sparsecomp.page.timeline import nice_step

WIDTH, HEIGHT = 420.0, 230.0
LEFT, RIGHT, TOP, BOTTOM = 52.0, 20.0, 14.0, 38.0
CLOSE = 9.0
"""Distance of points whose letters would lie on each other."""
WIDE, HIGH, INSET = 1100.0, 300.0, 14.0
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
LEAST_RATIO, MOST_RATIO = 0.5, 64.0
"""Times the speed of PyTorch that the chart of all layers shows; what lies beyond is at its edge."""


@dataclass(frozen=True)
class Point:
    """A measured kernel, or a layer; `kind` says how it is drawn."""

    x: float
    y: float
    kind: str
    label: str
    title: str
    radius: float = 4.0


@dataclass(frozen=True)
class LayerChart:
    """Milliseconds upwards, share of the weight that is skipped to the right; in units of the drawing."""

    points: tuple[Point, ...]
    dense: float
    """Height of the fastest way that multiplies all weights."""
    line: tuple[float, float, float, float] | None
    """x, y, x, y: of the fastest kernel that skips zeros, from where it meets the frame to a weight without any."""
    break_even: float | None
    marks_x: tuple[tuple[float, str], ...]
    marks_y: tuple[tuple[float, str], ...]


def lettered(layer: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """The layer's candidates; those that were measured have a letter, which the chart also shows."""
    letters = iter(LETTERS)
    return [(next(letters, "") if _ms(c) else "", c) for c in layer["candidates"]]


def layer_chart(layer: Mapping[str, Any]) -> LayerChart | None:
    """layer: as `LayerReport.as_dict` has it. None where nothing was measured."""
    measured = [(letter, c) for letter, c in lettered(layer) if _ms(c)]
    full = [c["ms"] for _, c in measured if not c["skips"]]
    if not full:
        return None
    size = math.prod(layer["shape"])
    top = 1.15 * max(c["ms"] for _, c in measured)
    points = tuple(
        Point(
            _x(1 - c["stored"] / size),
            _y(c["ms"] / top),
            "chosen" if _is_chosen(layer, c) else "skipping" if c["skips"] else "full",
            letter,
            c["kernel"],
        )
        for letter, c in measured
    )
    skipping = [c for _, c in measured if c["skips"] and c["idle_ms"] is not None and c["stored"]]
    best = min(skipping, key=lambda c: float(c["ms"]), default=None)
    return LayerChart(
        tuple(_told_apart(points)),
        _y(min(full) / top),
        _line(best, size, top) if best else None,
        None if layer["break_even"] is None else _x(layer["break_even"]),
        tuple((_x(share / 4), f"{25 * share} %") for share in range(5)),
        tuple(_heights(top)),
    )


def _told_apart(points: Sequence[Point]) -> Iterator[Point]:
    """Points, of which the first of several in one place has the letters of all."""
    told: set[str] = set()
    for point in points:
        close = [other for other in points if math.dist((point.x, point.y), (other.x, other.y)) < CLOSE]
        letters = [other.label for other in close if other.label not in told]
        told.update(letters)
        yield replace(point, label=" ".join(letters) if point.label in letters else "")


def _line(best: Mapping[str, Any], size: int, top: float) -> tuple[float, float, float, float]:
    """Straight through the kernel's time and its idle time, prolonged to the left as far as the frame goes."""
    slope = (best["ms"] - best["idle_ms"]) / (best["stored"] / size)
    kept = min(1.0, (top - best["idle_ms"]) / slope) if slope > 0 else 1.0
    return _x(1 - kept), _y((best["idle_ms"] + slope * kept) / top), _x(1.0), _y(best["idle_ms"] / top)


def _heights(top: float) -> Iterator[tuple[float, str]]:
    step = nice_step(top / 4)
    for number in range(int(top / step) + 1):
        yield _y(number * step / top), f"{number * step:g}"


def _is_chosen(layer: Mapping[str, Any], candidate: Mapping[str, Any]) -> bool:
    return bool(candidate["kernel"] == layer["choice"]) or (
        layer["choice"] == "dense" and candidate is layer["candidates"][0]
    )


def _ms(candidate: Mapping[str, Any]) -> float | None:
    ms: float | None = candidate.get("ms")
    return ms


def _x(share: float) -> float:
    return LEFT + share * (WIDTH - LEFT - RIGHT)


def _y(share: float) -> float:
    return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)


@dataclass(frozen=True)
class Overview:
    """Every measured layer: zeros of its weight to the right, times the speed of PyTorch upwards (logarithmic)."""

    points: tuple[Point, ...]
    break_evens: tuple[tuple[float, str], ...]
    """x of a mark on the line of equal speed, and the layer's name."""
    even: float
    """Height of that line."""
    marks_x: tuple[tuple[float, str], ...]
    marks_y: tuple[tuple[float, str], ...]


def overview(layers: Sequence[Mapping[str, Any]]) -> Overview | None:
    """None where no layer was measured."""
    shown = [(number, layer, fastest(layer)) for number, layer in enumerate(layers)]
    found = [(number, layer, ms) for number, layer, ms in shown if ms and layer["dense_ms"]]
    if not found:
        return None
    slowest = max(layer["dense_ms"] for _, layer, _ in found)
    highest = max(2.0, *(layer["dense_ms"] / ms for _, layer, ms in found))
    high = min(MOST_RATIO, 2.0 ** math.ceil(math.log2(highest * 1.05)))
    points = tuple(
        Point(
            _wide(1 - layer["density"]),
            _up(layer["dense_ms"] / ms, high),
            "full" if layer["choice"] == "dense" else "chosen",
            f"#layer-{number}",
            f"{layer['name']}: {100 * (1 - layer['density']):.0f} % zeros, {layer['dense_ms'] / ms:.2f}x",
            4.0 + 8.0 * math.sqrt(layer["dense_ms"] / slowest),
        )
        for number, layer, ms in found
    )
    ticks = tuple(
        (_wide(layer["break_even"]), f"{layer['name']}: break-even at {100 * layer['break_even']:.0f} %")
        for _, layer, _ in found
        if layer["break_even"] is not None
    )
    ratios = [2.0**power for power in range(-1, round(math.log2(high)) + 1)]
    marks_y = tuple((_up(ratio, high), f"{ratio:g}x") for ratio in ratios)
    marks_x = tuple((_wide(share / 10), f"{10 * share} %") for share in range(11))
    return Overview(points, ticks, _up(1.0, high), marks_x, marks_y)


def fastest(layer: Mapping[str, Any]) -> float | None:
    """Milliseconds of the layer's fastest kernel, whether or not it was taken; without any, of PyTorch."""
    kernels: list[float] = [c["ms"] for c in layer["candidates"][1:] if _ms(c)]
    now: float | None = layer["chosen_ms"]
    return now if layer["choice"] != "dense" or not kernels else min(kernels)


def _wide(share: float) -> float:
    return LEFT + INSET + share * (WIDE - LEFT - RIGHT - 2 * INSET)


def _up(ratio: float, high: float) -> float:
    low = math.log2(LEAST_RATIO)
    share = (math.log2(min(high, max(LEAST_RATIO, ratio))) - low) / (math.log2(high) - low)
    return HIGH - BOTTOM - share * (HIGH - TOP - BOTTOM)
