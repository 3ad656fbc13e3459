"""Lines on a plane as SVG: enough for a trade-off, and no dependency."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

COLOURS = ("#1b6ca8", "#c8553d", "#3a7d44", "#8e5ea2", "#b08900", "#444444")
WIDTH, HEIGHT, MARGIN = 460, 320, 52
"""Of one panel, in pixels; the margin holds its numbers."""
TICKS = 4


@dataclass(frozen=True)
class Panel:
    """One plane: points by line, and what its axes are."""

    across: str
    up: str
    lines: Mapping[str, Sequence[tuple[float, float]]]

    def svg(self, left: int) -> str:
        """The panel, `left` pixels from the left."""
        points = [point for line in self.lines.values() for point in line]
        axes = [_Axis.over([point[axis] for point in points]) for axis in (0, 1)]
        inside = WIDTH - 2 * MARGIN, HEIGHT - 2 * MARGIN

        def place(point: tuple[float, float]) -> tuple[float, float]:
            x, y = (axis.share(value) for axis, value in zip(axes, point, strict=True))
            return MARGIN + x * inside[0], HEIGHT - MARGIN - y * inside[1]

        parts = [f'<g transform="translate({left},0)">']
        parts.append(_text(WIDTH / 2, HEIGHT - 12, self.across, "middle"))
        parts.append(_text(MARGIN, MARGIN - 14, self.up, "start"))
        parts += _ticks(axes[0], axes[1], inside)
        for (name, line), colour in zip(self.lines.items(), _cycle(len(self.lines)), strict=True):
            placed = " ".join(f"{x:.1f},{y:.1f}" for x, y in map(place, sorted(line)))
            parts.append(
                f'<polyline points="{placed}" fill="none" stroke="{colour}"><title>{escape(name)}</title></polyline>'
            )
            parts += [
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in map(place, line)
            ]
        return "\n".join([*parts, "</g>"])


@dataclass(frozen=True)
class _Axis:
    low: float
    high: float

    @staticmethod
    def over(values: Sequence[float]) -> _Axis:
        low, high = min(values, default=0.0), max(values, default=1.0)
        return _Axis(low, high if high > low else low + 1.0)

    def share(self, value: float) -> float:
        return (value - self.low) / (self.high - self.low)

    @property
    def ticks(self) -> list[float]:
        return [self.low + (self.high - self.low) * step / TICKS for step in range(TICKS + 1)]


def chart(title: str, panels: Sequence[Panel]) -> str:
    """A file of SVG: the panels side by side, and the names of their lines, which all have in common."""
    names = list(panels[0].lines)
    width = WIDTH * len(panels)
    height = HEIGHT + 20 * len(names)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" font-size="11">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        _text(width / 2, 18, title, "middle"),
    ]
    parts += [panel.svg(number * WIDTH) for number, panel in enumerate(panels)]
    for number, (name, colour) in enumerate(zip(names, _cycle(len(names)), strict=True)):
        y = HEIGHT + 20 * number + 4
        parts.append(f'<rect x="{MARGIN}" y="{y - 9}" width="10" height="10" fill="{colour}"/>')
        parts.append(_text(MARGIN + 16, y, name, "start"))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _cycle(count: int) -> list[str]:
    return [COLOURS[number % len(COLOURS)] for number in range(count)]


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}">{escape(text)}</text>'


def _ticks(across: _Axis, up: _Axis, inside: tuple[int, int]) -> list[str]:
    parts = [
        f'<rect x="{MARGIN}" y="{MARGIN}" width="{inside[0]}" height="{inside[1]}" fill="none" stroke="#999"/>'
    ]
    for value in across.ticks:
        parts.append(
            _text(MARGIN + across.share(value) * inside[0], HEIGHT - MARGIN + 15, f"{value:.3g}", "middle")
        )
    for value in up.ticks:
        parts.append(
            _text(MARGIN - 6, HEIGHT - MARGIN - up.share(value) * inside[1] + 4, f"{value:.3g}", "end")
        )
    return parts
