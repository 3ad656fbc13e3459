"""What is decided for a layer, with what was considered and why."""

from __future__ import annotations

from dataclasses import dataclass, field

from sparsecomp.region import Depthwise, RowsKernelChoice

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
    predicted: float | None = field(default=None, compare=False)
    """Seconds that the cost model expects by what was measured before this compilation; it decides nothing."""
    predicted_idle: float | None = field(default=None, compare=False)
    """The same if it had nothing to multiply. Between the two, time is nearly linear in what is stored."""

    @property
    def idle(self) -> float | None:
        """Seconds with nothing to multiply: as the cost model has it, brought to what was measured."""
        if not self.seconds or not self.predicted or self.predicted_idle is None:
            return None
        return self.seconds * min(1.0, self.predicted_idle / self.predicted)

    @property
    def skips(self) -> bool:
        """Whether each zero that it need not multiply saves time: it has lists of columns for few rows."""
        if self.how is None or self.refused or isinstance(self.how.schedule, Depthwise):
            return False
        return not self.how.pattern.shared


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

    def break_even(self, size: int) -> float | None:
        """Share of a weight's `size` elements from which the fastest kernel that skips zeros, skipping so many, beats
        the fastest way that multiplies them all.

        By the straight line through its measured time and its idle time. 0 where it is faster in any case, None where
        it never is, or was not measured.
        """
        skipping = [c for c in self.candidates if c.skips and c.idle is not None and c.stored]
        full = [c.seconds for c in self.candidates if not (c.skips or c.refused) and c.seconds is not None]
        if not skipping or not full:
            return None
        kernel = min(skipping, key=lambda c: c.seconds or 0.0)
        seconds, idle = kernel.seconds or 0.0, kernel.idle or 0.0
        if idle >= min(full):
            return None
        kept = kernel.stored * (min(full) - idle) / max(seconds - idle, 1e-12)
        return max(0.0, 1.0 - kept / size)
