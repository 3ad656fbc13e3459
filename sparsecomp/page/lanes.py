"""The graph as a column of operators, with lines between them in lanes, as histories of versions are drawn.

An operator stands in the lane of the first of its inputs that nobody reads after it, else in the first free one. A lane is
taken from the operator that makes a value to the last that reads it, so lines cross only between two rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

ROW, LANE, WIDEST = 26, 14, 210
"""Height of a row and width of a lane, in pixels; most for all lanes."""


@dataclass(frozen=True)
class Row:
    """An operator of the flow."""

    op: Mapping[str, Any]
    x: float
    y: float


@dataclass(frozen=True)
class Run:
    """Operators that follow each other in one region, or in PyTorch (""), below a heading that is a row as well."""

    region: str
    rows: tuple[Row, ...]
    top: float

    @property
    def height(self) -> float:
        return (len(self.rows) + 1) * ROW


@dataclass(frozen=True)
class Drawing:
    """Sizes in pixels; `lines` are paths of SVG."""

    runs: tuple[Run, ...]
    lines: tuple[str, ...]
    width: float
    height: float


def drawing(flow: Sequence[Mapping[str, Any]]) -> Drawing:
    """flow: as `Report.as_dict` has it, `reads` naming earlier operators only."""
    flow = condensed(flow)
    lanes = lanes_of(flow)
    step = min(LANE, WIDEST / max(1, max(lanes, default=0) + 1))
    at: list[tuple[float, float]] = []
    runs: list[Run] = []
    y = 0.0
    for region, numbers in groupby(range(len(flow)), key=lambda number: str(flow[number]["region"])):
        top = y
        rows: list[Row] = []
        for number in numbers:
            y += ROW
            at.append((step * (lanes[number] + 0.5), y + ROW / 2))
            rows.append(Row(flow[number], *at[-1]))
        runs.append(Run(region, tuple(rows), top))
        y += ROW
    lines = tuple(_line(at[read], at[number]) for number, op in enumerate(flow) for read in op["reads"])
    return Drawing(tuple(runs), lines, step * (max(lanes, default=0) + 1), y)


def condensed(flow: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Operators of PyTorch that only hand a value on to each other as one, "aten.view → aten.permute"."""
    readers = Counter(read for op in flow for read in set(op["reads"]))
    ops: list[dict[str, Any]] = []
    place: list[int] = []
    """Operator of the flow -> where it is among `ops`."""
    for number, op in enumerate(flow):
        reads = [place[read] for read in op["reads"]]
        follows = op["reads"] == [number - 1] and readers[number - 1] == 1
        if follows and _plain(op) and _plain(flow[number - 1]):
            ops[-1]["what"] += f" → {op['what']}"
        else:
            ops.append({**op, "reads": reads})
        place.append(len(ops) - 1)
    return ops


def _plain(op: Mapping[str, Any]) -> bool:
    return not op["region"] and not op["layer"] and op["what"] not in ("input", "output")


def lanes_of(flow: Sequence[Mapping[str, Any]]) -> list[int]:
    """The lane of each operator, counted from 0."""
    last = _last_readers(flow)
    held: dict[int, int] = {}
    """Lane -> the operator whose value takes it."""
    lanes: list[int] = []
    for number, op in enumerate(flow):
        ending = [read for read in op["reads"] if last[read] == number]
        for read in ending:
            held.pop(lanes[read], None)
        lane = lanes[ending[0]] if ending else next(_free(held))
        lanes.append(lane)
        if number in last:
            held[lane] = number
    return lanes


def _last_readers(flow: Sequence[Mapping[str, Any]]) -> dict[int, int]:
    return {read: number for number, op in enumerate(flow) for read in op["reads"]}


def _free(held: Mapping[int, int]) -> Iterator[int]:
    lane = 0
    while True:
        if lane not in held:
            yield lane
        lane += 1


def _line(start: tuple[float, float], end: tuple[float, float]) -> str:
    """Down in the lane of the value, and over to that of its reader in the last step."""
    (x, y), (to_x, to_y) = start, end
    if x == to_x:
        return f"M{x:g} {y:g}V{to_y:g}"
    bend = to_y - ROW
    down = f"V{bend:g}" if bend > y else ""
    return f"M{x:g} {y:g}{down}C{x:g} {to_y - ROW / 2:g} {to_x:g} {to_y - ROW / 2:g} {to_x:g} {to_y:g}"
