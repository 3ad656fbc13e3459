"""Measured times, as the passes ask for them. A target's meter answers; passes know nothing of kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from sparsecomp.choice import Candidate
from sparsecomp.layer import Layer
from sparsecomp.program import Body
from sparsecomp.section import WorkOp


class Cost(Protocol):
    """All times in seconds, on the shapes of the example."""

    def candidates(self, layer: Layer, matrix: Tensor) -> tuple[Candidate, ...]:
        """PyTorch's operator first, then every kernel, measured or refused. matrix: rows x columns."""
        ...

    def conversion(self, layer: Layer) -> float:
        """To bring the layer's output to PyTorch's layout and back."""
        ...

    def elementwise(self, shape: tuple[int, ...]) -> float:
        """Of one element-wise operator of PyTorch on a tensor of this shape."""
        ...

    def work(self, op: WorkOp) -> float:
        """Of the work between layers, in PyTorch."""
        ...

    def region(self, body: Body, prepare: Callable[[], Callable[[], object]]) -> float:
        """Of a whole region. `prepare`, called if that is not known yet, returns what runs it."""
        ...
