"""Measured times, as the passes ask for them. A target's meter answers; passes know nothing of kernels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from sparsecomp.choice import Candidate
from sparsecomp.layer import Layer
from sparsecomp.program import Body

Rivals = tuple[Callable[[], object], Callable[[], object]]
"""Run a region, and the same operators in PyTorch."""


@dataclass(frozen=True)
class RegionTimes:
    """Seconds on inputs of the example's shapes."""

    region: float
    pytorch: float


class Cost(Protocol):
    """All times in seconds, on the shapes of the example."""

    def candidates(self, layer: Layer, matrix: Tensor) -> tuple[Candidate, ...]:
        """PyTorch's operator first, then every kernel, measured or refused. matrix: rows x columns."""
        ...

    def skipping(self, layer: Layer, matrix: Tensor, rows: int) -> float | None:
        """Of the best kernel that skips zeros, one list of columns for each 1, 2, 4 or 8 rows; None where there is
        none. Unlike `candidates` it may measure nothing else beside it."""
        ...

    def conversion(self, layer: Layer) -> float:
        """To bring the layer's output to PyTorch's layout and back."""
        ...

    def region(self, body: Body, prepare: Callable[[], Rivals]) -> RegionTimes:
        """Of a whole region and of its operators in PyTorch, which run in turn. `prepare`, called if they are not
        known yet, returns what runs both."""
        ...


class RepeatableCost(Cost, Protocol):
    """One whose measurements may be doubted."""

    def doubt(self, layer: Layer, matrix: Tensor) -> None:
        """What was measured of the layer with a weight like this one is measured again when it is next asked for, and the
        shorter time is kept: what else runs on a machine only ever adds."""
        ...
