"""What a layer may become: a structure of zeros and how many of them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from sparsecomp.errors import InputError
from sparsecomp.pattern import RowBlocks
from sparsecomp.train.pattern import Pattern
from sparsecomp.train.schedule import check_share

LEVELS = 12
"""Sparsities of each structure that is offered by default."""
STEPS = 4
"""From one sparsity at which errors are measured to the next."""
LOWEST, HIGHEST = 0.4, 0.99
"""Below the first nothing is gained, says Hoefler et al. 2021, section 2.1; SPDY's grid has the same ends."""


@dataclass(frozen=True)
class Candidate:
    """A structure at a sparsity, "4x1 at 80.0 %"; at sparsity 0 the layer stays dense.

    `structure` is a `Pattern`: "unstructured", "4x1" (blocks of output rows x columns), "2:4", "filter",
    "kernel", "shape", "channel". Its name, or the compiler's own `RowBlocks`, may be given.

    Raises:
        InputError: there is no such structure, the sparsity is not in [0, 1), or N:M has another one.
    """

    structure: Pattern
    sparsity: float

    def __init__(self, structure: str | RowBlocks | Pattern, sparsity: float) -> None:
        pattern = Pattern.parse(structure)
        check_share("sparsity", sparsity)
        only = pattern.only_sparsity
        if only is not None and sparsity and abs(sparsity - only) > 1e-9:
            raise InputError(
                f"{pattern} leaves a sparsity of {only:g}: ask for that, or for 0, not for {sparsity:g}."
            )
        object.__setattr__(self, "structure", pattern)
        object.__setattr__(self, "sparsity", float(sparsity))

    @property
    def is_dense(self) -> bool:
        return self.sparsity == 0

    def __str__(self) -> str:
        return "dense" if self.is_dense else f"{self.structure} at {self.sparsity:.1%}".replace("%", " %")


DENSE = Candidate("unstructured", 0.0)
"""The layer as it is."""


def default_candidates(
    structures: Sequence[str | RowBlocks | Pattern] = ("unstructured", "4x1", "2:4"), levels: int = LEVELS
) -> tuple[Candidate, ...]:
    """Dense, and each structure from 40 % to 99 % zeros in steps of constant density ratio.

    The grid is that of Frantar and Alistarh, "SPDY", 2022, section 5 (there 41 levels). N:M has its one sparsity.

    Raises:
        InputError: there is no such structure, or fewer than two levels are asked for.
    """
    if levels < 2:
        raise InputError(f"levels must be at least 2, got {levels}.")
    ratio = ((1 - HIGHEST) / (1 - LOWEST)) ** (1 / (levels - 1))
    grid = [1 - (1 - LOWEST) * ratio**step for step in range(levels)]
    found = [DENSE]
    for structure in map(Pattern.parse, structures):
        only = structure.only_sparsity
        found += [Candidate(structure, round(s, 4)) for s in (grid if only is None else [only])]
    return tuple(found)


def refined(candidates: Sequence[Candidate], steps: int = STEPS) -> tuple[Candidate, ...]:
    """Those, and between each two neighbours of a structure others at equal ratios of density.

    A budget is seldom met by a coarse grid alone: a plan of few layers then leaves some of it unused, where one sparsity
    for all layers uses it up and loses less.
    """
    found = list(candidates)
    for structure in dict.fromkeys(c.structure for c in candidates if not c.is_dense):
        levels = sorted(c.sparsity for c in candidates if c.structure == structure and not c.is_dense)
        for low, high in itertools.pairwise(levels):
            ratio = ((1 - high) / (1 - low)) ** (1 / steps)
            between = (1 - (1 - low) * ratio**step for step in range(1, steps))
            found += [Candidate(structure, round(sparsity, 4)) for sparsity in between]
    return tuple(dict.fromkeys(found))
