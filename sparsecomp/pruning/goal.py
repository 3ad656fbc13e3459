"""What a plan is to reach."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from sparsecomp.errors import InputError

Kind = Literal["target_speedup", "max_loss", "target_bytes", "sparsity"]


@dataclass(frozen=True)
class Goal:
    """One budget: a speed-up over the dense compiled model, a rise of the loss, bytes, or a share of zeros."""

    kind: Kind
    amount: float

    def __str__(self) -> str:
        return f"{self.kind}={self.amount:g}"

    @staticmethod
    def parse(
        target_speedup: object = None,
        max_loss: object = None,
        target_bytes: object = None,
        sparsity: object = None,
    ) -> Goal:
        """
        Raises:
            InputError: there is not exactly one, or it is no number that makes sense.
        """
        asked: dict[Kind, object] = {
            "target_speedup": target_speedup,
            "max_loss": max_loss,
            "target_bytes": target_bytes,
            "sparsity": sparsity,
        }
        given = {kind: value for kind, value in asked.items() if value is not None}
        if len(given) != 1:
            what = " and ".join(f"{kind}={value!r}" for kind, value in given.items()) or "none"
            raise InputError(f"give exactly one of {', '.join(asked)}; got {what}.")
        ((kind, value),) = given.items()
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
            raise InputError(f"{kind} must be a number, not {value!r}.")
        least, below = {"target_speedup": (1.0, math.inf), "sparsity": (0.0, 1.0)}.get(kind, (0.0, math.inf))
        if not least <= value < below:
            end = "" if below == math.inf else f" and below {below:g}"
            raise InputError(f"{kind} must be at least {least:g}{end}, not {value!r}.")
        return Goal(kind, float(value))
