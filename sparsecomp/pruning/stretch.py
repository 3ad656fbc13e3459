"""What a whole compiled model takes, from what its layers take alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LEAST_FACTOR, MOST_FACTOR = 0.5, 3.0
"""Slopes beyond these are noise: a layer in sequence is not that much faster or slower than alone."""


@dataclass(frozen=True)
class Sample:
    """A whole compiled model that was measured; seconds."""

    alone: float
    """The sum over its layers, each run alone."""
    whole: float


@dataclass(frozen=True)
class Stretch:
    """whole = fixed + factor * alone.

    Layers timed in a loop find weights and activations in the caches; in sequence they do not, so that each takes
    longer, by about the same factor. What is done between layers is the same in every plan. Two whole models,
    dense and very sparse, give both numbers.
    """

    fixed: float
    factor: float

    @staticmethod
    def through(samples: Sequence[Sample]) -> Stretch:
        """The line of least squared relative error; with a single sample the factor is 1. The newest of more than
        two counts most: it lies nearest to what is looked for.

        Args:
            samples: At least one.
        """
        alone, whole = (np.array([getattr(s, name) for s in samples]) for name in ("alone", "whole"))
        weight = 1 / whole
        if len(samples) > 2:
            weight[-1] *= 10
        centre = float(np.average(alone, weights=weight**2)), float(np.average(whole, weights=weight**2))
        spread = float(np.sum((weight * (alone - centre[0])) ** 2))
        slope = 1.0
        if spread > 0:
            slope = float(np.sum(weight**2 * (alone - centre[0]) * (whole - centre[1]))) / spread
        factor = min(MOST_FACTOR, max(LEAST_FACTOR, slope))
        return Stretch(centre[1] - factor * centre[0], factor)

    def whole(self, alone: float) -> float:
        return self.fixed + self.factor * alone

    def alone(self, whole: float) -> float:
        """Inverse of `whole`; negative where no layers are fast enough."""
        return (whole - self.fixed) / self.factor
