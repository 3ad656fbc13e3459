"""A weight of which a graph holds only a part, and what it takes to have the whole again."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Cut:
    """One step: `take` selects, in order, what stays of the parameter `source`."""

    source: str
    take: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class CutWeight:
    """The part is held elsewhere, packed; here is where its elements belong, and what else is not zero.

    shape, dtype: of the whole. rows, columns: flags of what is part, of dimension 0 and of all others as one;
    columns has two dimensions where it differs from row to row (grouped convolutions).
    """

    whole: str
    part: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    rows: Tensor
    columns: Tensor
    rest: Tensor
    """Elements outside the part that are not zero: filters that nobody reads."""
    rest_at: Tensor | None
    """Their flat positions, int32 or int64; None: `rest` is all that is outside, in order."""

    @property
    def nbytes(self) -> int:
        held = (self.rows, self.columns, self.rest_at, self.rest)
        return sum(tensor.numel() * tensor.element_size() for tensor in held if tensor is not None)

    def restore(self, part: Tensor) -> Tensor:
        """The whole weight, exactly; `part` as its graph stores it. (A zero may lose its sign.)"""
        full = torch.zeros(math.prod(self.shape), dtype=self.dtype)
        inside = (self.rows[:, None] & self.columns).flatten()
        full[inside] = part.flatten().to(self.dtype)
        full[~inside if self.rest_at is None else self.rest_at.long()] = self.rest
        return full.reshape(self.shape)


def whole_of(part: str, cuts: Mapping[str, Cut]) -> str:
    """The uncut parameter, through any number of steps."""
    while part in cuts:
        part = cuts[part].source
    return part


def cut_weight(part: str, cuts: Mapping[str, Cut], weight: Callable[[str], Tensor]) -> CutWeight:
    """How to restore the parameter that `part` was cut from, in one step or several.

    weight: name of an uncut parameter -> its values.
    """
    steps: list[Cut] = []
    name = part
    while name in cuts:
        steps.append(cuts[name])
        name = cuts[name].source
    whole = weight(name).detach()
    places = torch.arange(whole.numel()).reshape(whole.shape)
    for step in reversed(steps):
        places = step.take(places)
    inside = torch.zeros(whole.numel(), dtype=torch.bool)
    inside[places.flatten()] = True
    grid = inside.reshape(whole.shape[0], -1)
    rows, columns = grid.any(1), grid.any(0)
    if not torch.equal(rows[:, None] & columns, grid):
        columns = grid
    rest, rest_at = _rest(whole.reshape(-1), ~inside)
    return CutWeight(name, part, tuple(whole.shape), whole.dtype, rows, columns, rest, rest_at)


def _rest(flat: Tensor, outside: Tensor) -> tuple[Tensor, Tensor | None]:
    """What is outside and not zero with its positions, or all of it, whichever is smaller."""
    found = torch.nonzero((flat != 0) & outside).flatten()
    if 2 * len(found) > int(outside.sum()):
        return flat[outside], None
    return flat[found], found.to(torch.int32 if len(flat) < 2**31 else torch.int64)
