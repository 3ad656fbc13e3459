"""What a search for better kernels was asked for, and what it found: as text, and as data."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table


@dataclass(frozen=True)
class Budget:
    """At most so many seconds, or so many trials, for all calls together; a search may need less."""

    seconds: float | None = None
    trials: int | None = None

    @property
    def amount(self) -> float:
        return self.trials or self.seconds or 0.0


@dataclass(frozen=True)
class TunedCall:
    """One distinct call: a layer's shapes and the structure of its zeros. Times in seconds, of one race."""

    call: str
    signature: str
    layers: tuple[str, ...]
    """Those it stands for."""
    trials: int
    """Schedules timed beside the default ones, in this and in earlier searches."""
    default: str = ""
    """The fastest kernel of those that every compilation tries; "" where the search did not get so far."""
    default_seconds: float = math.nan
    tuned: str = ""
    """The fastest found, which may be the default."""
    tuned_seconds: float = math.nan
    predicted_seconds: float = math.nan
    """Of the tuned kernel, by the cost model before it was measured."""
    dense_seconds: float | None = None
    """Of PyTorch's own operator; None for a device that does not have it."""

    @property
    def decided(self) -> bool:
        return bool(self.tuned)

    @property
    def zeros(self) -> str:
        """The signature under the tuned kernel's pattern."""
        parts = dict(part.split(": ", 1) for part in self.signature.split(" | ") if part)
        return next((found for name, found in parts.items() if self.tuned.startswith(name)), "")

    @property
    def gain(self) -> float:
        """Speed of the tuned kernel over that of the default; at least 1."""
        return self.default_seconds / self.tuned_seconds if self.decided else 1.0

    def as_dict(self) -> dict[str, Any]:
        return {
            "call": self.call,
            "signature": self.signature,
            "layers": list(self.layers),
            "trials": self.trials,
            "default": self.default,
            "default_ms": _ms(self.default_seconds),
            "tuned": self.tuned,
            "tuned_ms": _ms(self.tuned_seconds),
            "predicted_ms": _ms(self.predicted_seconds),
            "dense_ms": _ms(self.dense_seconds),
            "gain": self.gain,
        }


@dataclass(frozen=True)
class TuningReport:
    """The outcome of `autotune`. `print(report)` for people, `as_dict()` for programs."""

    device: str
    threads: int
    calls: tuple[TunedCall, ...]
    trials: int
    """Schedules timed now; 0 where everything was known."""
    seconds: float
    """That the search took."""
    database: str
    """The file that holds what was measured; "" where none could be written."""
    interrupted: bool = False
    """Ended from outside before it was done. Calling again goes on where it stopped."""
    notes: tuple[str, ...] = ()

    @property
    def gain(self) -> float:
        """Geometric mean over the distinct calls."""
        gains = [math.log(call.gain) for call in self.calls if call.decided]
        return math.exp(sum(gains) / len(gains)) if gains else 1.0

    @property
    def totals(self) -> dict[str, Any]:
        """Milliseconds are of all layers, each counted as its call."""
        decided = [call for call in self.calls if call.decided]
        return {
            "calls": len(self.calls),
            "layers": sum(len(call.layers) for call in self.calls),
            "trials": self.trials,
            "default_ms": sum(len(call.layers) * call.default_seconds for call in decided) * 1e3,
            "tuned_ms": sum(len(call.layers) * call.tuned_seconds for call in decided) * 1e3,
            "gain": self.gain,
        }

    def as_dict(self) -> dict[str, Any]:
        return {
            "device": self.device,
            "threads": self.threads,
            "seconds": self.seconds,
            "interrupted": self.interrupted,
            "notes": list(self.notes),
            "database": self.database,
            "calls": [call.as_dict() for call in self.calls],
            "totals": self.totals,
        }

    def __str__(self) -> str:
        file = io.StringIO()
        console = Console(file=file, width=240, color_system=None, highlight=False)
        console.print(self._headline())
        for note in self.notes:
            console.print(f"note: {note}", markup=False)
        if self.calls:
            console.print()
            console.print(self._table())
        return "\n".join(line.rstrip() for line in file.getvalue().splitlines())

    def _headline(self) -> str:
        totals = self.totals
        parts = [f"sparsecomp tuned for {self.device}, {self.threads} thread{'s' * (self.threads != 1)}"]
        parts.append(f"{totals['calls']} distinct calls of {totals['layers']} layers")
        parts.append(f"{self.trials} trials in {self.seconds:.0f} s")
        parts.append(f"kernels {totals['default_ms']:.2f} -> {totals['tuned_ms']:.2f} ms")
        parts.append(f"gain {self.gain:.2f}x (geometric mean)")
        if self.interrupted:
            parts.append("interrupted: call autotune again to go on")
        return "; ".join(parts)

    def _table(self) -> Table:
        table = Table(box=None, pad_edge=False, show_edge=False)
        numeric = ("layers", "default ms", "tuned ms", "gain", "predicted ms", "PyTorch ms", "trials")
        for column in ("call", "zeros", *numeric, "schedule"):
            table.add_column(column, justify="right" if column in numeric else "left")
        for call in self.calls:
            table.add_row(
                *(call.call, call.zeros, str(len(call.layers))),
                *(_number(call.default_seconds), _number(call.tuned_seconds)),
                f"{call.gain:.2f}x" if call.decided else "",
                *(_number(call.predicted_seconds), _number(call.dense_seconds), str(call.trials)),
                escape(call.tuned or "not decided yet"),
            )
        return table


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None or math.isnan(seconds) else seconds * 1e3


def _number(seconds: float | None) -> str:
    value = _ms(seconds)
    return "" if value is None else f"{value:.3f}"


def split(budget: Budget, worths: Sequence[float]) -> list[float]:
    """Each call's share of the budget, in its unit: by worth; of trials at least one."""
    total = sum(worths) or 1.0
    shares = [budget.amount * worth / total for worth in worths]
    return shares if budget.trials is None else [float(max(1, round(share))) for share in shares]
