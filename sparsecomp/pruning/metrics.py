"""The survey's measures of a sparse network: quality per parameter, and the least cost at nearly the same quality.

Hoefler, Alistarh, Ben-Nun, Dryden, Peste, "Sparsity in Deep Learning", 2021. Its measure of
"pruned parameter efficiency" is taken as the accuracy density of Bianco et al., "Benchmark Analysis of Representative
Deep Neural Network Architectures", 2018, with what is not zero in place of all parameters; the names are ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sparsecomp.errors import InputError


def accuracy_density(quality: float, parameters: int) -> float:
    """Quality per million parameters that are not zero. quality: larger is better, accuracy in percent say."""
    if parameters <= 0:
        raise InputError(f"accuracy density needs at least one parameter that is not zero, got {parameters}.")
    return quality / (parameters / 1e6)


@dataclass(frozen=True)
class Measurement:
    """Of one network at some sparsity: what it costs and how good it is."""

    cost: float
    """Parameters that are not zero, FLOPs, milliseconds or bytes: smaller is better."""
    quality: float
    """Accuracy, say: larger is better. Of a loss, give its negative."""


def smallest_within(
    measurements: Sequence[Measurement], dense: float, tolerance: float
) -> Measurement | None:
    """The cheapest whose quality is at least that of the dense network less tolerance x |dense|; None: no one.

    With parameters that are not zero as cost it is "nnz at epsilon"; with FLOPs or milliseconds, the same for these.

    Raises:
        InputError: the tolerance is negative, or a number is not finite.
    """
    numbers = [dense, tolerance, *(n for m in measurements for n in (m.cost, m.quality))]
    if not all(map(math.isfinite, numbers)) or tolerance < 0:
        raise InputError("costs, qualities and the tolerance must be finite, and the tolerance not negative.")
    good = [m for m in measurements if m.quality >= dense - tolerance * abs(dense)]
    return min(good, key=lambda m: (m.cost, -m.quality), default=None)
