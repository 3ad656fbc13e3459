"""The time line of a call: its parts end to end, regions above, their kernels below."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

WIDTH = 1100.0
"""Of the drawing, in its own units."""
LETTER = 6.2
"""Width of a letter of a label."""
KINDS = {
    "layer": "layers",
    "work": "work between layers",
    "border": "conversion of layout",
    "pytorch": "operators of PyTorch",
    "rest": "the rest: Python, checks, allocation",
}
BORDERS = ("enter", "exit", "split")


@dataclass(frozen=True)
class Bar:
    """`x` and `width` in units of the drawing; `kind` is one of KINDS, or "region"."""

    x: float
    width: float
    kind: str
    name: str
    what: str
    ms: float

    @property
    def label(self) -> str:
        """What of the name fits, its last letters, which tell layers apart."""
        room = int((self.width - 6) / LETTER)
        if room >= len(self.name):
            return self.name
        return f"…{self.name[1 - room :]}" if room >= 12 else ""


@dataclass(frozen=True)
class Timeline:
    """Two rows of bars, marks of an axis (x, text), and what each kind takes together."""

    total: float
    """Milliseconds of the whole call, or of all parts where these take longer."""
    whole: tuple[Bar, ...]
    parts: tuple[Bar, ...]
    marks: tuple[tuple[float, str], ...]

    @property
    def kinds(self) -> dict[str, float]:
        """Kind -> milliseconds, for those there are."""
        sums = {kind: sum(bar.ms for bar in self.parts if bar.kind == kind) for kind in KINDS}
        return {kind: ms for kind, ms in sums.items() if ms}


def timeline(profile: Mapping[str, Any], layers: Sequence[str]) -> Timeline:
    """profile: as `Profile.as_dict` has it. layers: names of the model's layers."""
    regions = {region["name"]: region for region in profile["regions"]}
    operators = {operator["name"]: operator for operator in profile["operators"]}
    spent = profile["kernels_ms"] + profile["pytorch_ms"]
    total = max(profile["ms"], spent) or 1.0
    whole: list[Bar] = []
    parts: list[Bar] = []
    at = 0.0
    for name in profile["order"] or [*regions, *operators]:
        if name in regions:
            own = list(_kernels(regions[name], set(layers), at, total))
            whole.append(_bar(at, sum(bar.ms for bar in own), "region", name, "region", total))
            parts += own
        else:
            own = [_bar(at, operators[name]["ms"], "pytorch", name, "operator of PyTorch", total)]
            whole += own
            parts += own
        at += sum(bar.ms for bar in own)
    if total > at:
        rest = _bar(at, total - at, "rest", "rest", KINDS["rest"], total)
        whole.append(rest)
        parts.append(rest)
    return Timeline(total, tuple(whole), tuple(parts), tuple(_marks(total)))


def _kernels(region: Mapping[str, Any], layers: set[str], at: float, total: float) -> Iterator[Bar]:
    for call in region["calls"]:
        kind = "layer" if call["label"] in layers else "border" if call["label"] in BORDERS else "work"
        yield _bar(at, call["ms"], kind, call["label"], call["what"], total)
        at += call["ms"]


def _bar(at: float, ms: float, kind: str, name: str, what: str, total: float) -> Bar:
    return Bar(at / total * WIDTH, ms / total * WIDTH, kind, name, what, ms)


def _marks(total: float) -> Iterator[tuple[float, str]]:
    """Round numbers of milliseconds, about eight."""
    step = nice_step(total / 8)
    for number in range(int(total / step) + 1):
        yield number * step / total * WIDTH, f"{number * step:g}"


def nice_step(least: float) -> float:
    """The smallest of 1, 2, 5, 10, 20 ... (and their tenths) that is no less."""
    power: float = 10.0 ** math.floor(math.log10(least))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= least * 0.999)
