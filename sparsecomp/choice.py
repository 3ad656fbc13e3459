"""What is decided for a layer, with what was considered and why."""

from __future__ import annotations

from dataclasses import dataclass

from sparsecomp.region import RowsKernelChoice

DENSE = "PyTorch dense"


@dataclass(frozen=True)
class Candidate:
    """One way to run a layer: measured, or refused with a reason."""

    kernel: str
    seconds: float | None = None
    refused: str = ""
    how: RowsKernelChoice | None = None
    """None for PyTorch."""
    stored: int = 0
    """Weight elements it multiplies."""


@dataclass(frozen=True)
class Choice:
    """`how` is None where the layer stays with PyTorch."""

    layer: str
    how: RowsKernelChoice | None
    reason: str
    candidates: tuple[Candidate, ...] = ()

    @property
    def chosen(self) -> Candidate | None:
        for candidate in self.candidates:
            if candidate.how == self.how and not candidate.refused:
                return candidate
        return None

    @property
    def dense_seconds(self) -> float | None:
        for candidate in self.candidates:
            if candidate.kernel == DENSE:
                return candidate.seconds
        return None
