"""What slimming found and did: the coupled groups of a model, what left with them, and why the rest stayed."""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sparsecomp.cut_weight import Cut

_MARK = re.compile(r"_slim_[0-9a-f]{8}$")


def slim_name(name: str, value: Tensor) -> str:
    """The name of a parameter that was cut: the old one, marked with a checksum of what is left of it."""
    data = value.detach().contiguous().flatten().view(torch.uint8).numpy()
    checksum = zlib.crc32(data.tobytes(), zlib.crc32(repr(tuple(value.shape)).encode()))
    return f"{full_name(name)}_slim_{checksum:08x}"


def full_name(name: str) -> str:
    """The parameter that it was cut from."""
    return _MARK.sub("", name)


@dataclass(frozen=True)
class SlimGroup:
    """One coupled group."""

    name: str
    """The first parameter that produces its units."""
    crosses: tuple[str, ...]
    """Parameters that shrink with it, each with the dimension: `conv2.weight[1]`."""
    units: int
    gone: int
    kept: Mapping[str, int]
    """Reason -> units that are dead and stay for it."""


@dataclass(frozen=True)
class Slimming:
    """Totals are of layers with weights: parameters of the model, FLOPs (two per multiply-add) of the example."""

    groups: tuple[SlimGroup, ...] = ()
    branches: tuple[str, ...] = ()
    """Sums that lost an operand which was the same for every input."""
    parameters: tuple[int, int] = (0, 0)
    """Before, after."""
    flops: tuple[int, int] = (0, 0)
    cuts: Mapping[str, Cut] = field(default_factory=dict, repr=False)
    """What is left of a parameter -> how it was cut."""
    refused: str = ""
    """Why the whole was not slimmed after all, if so."""

    @property
    def gone(self) -> int:
        return sum(group.gone for group in self.groups)

    @property
    def summary(self) -> str:
        """One line; empty where nothing left."""
        if self.refused:
            return f"not slimmed: {self.refused}"
        if self.parameters[0] == self.parameters[1]:
            return ""
        branches = f" and {len(self.branches)} branches" if self.branches else ""
        shares = [(now / max(1, before)) for before, now in (self.parameters, self.flops)]
        return (
            f"slimmed: {self.gone} units{branches} left; parameters {_pair(self.parameters)} ({shares[0]:.1%}), "
            f"FLOPs of layers {_pair(self.flops)} ({shares[1]:.1%})"
        )

    def as_dict(self) -> dict[str, Any]:
        return {
            "groups": [
                {
                    "name": group.name,
                    "crosses": list(group.crosses),
                    "units": group.units,
                    "gone": group.gone,
                    "kept": dict(group.kept),
                }
                for group in self.groups
            ],
            "branches": list(self.branches),
            "parameters": list(self.parameters),
            "flops": list(self.flops),
            "refused": self.refused,
        }


def _pair(counts: tuple[int, int]) -> str:
    return f"{counts[0]:,} -> {counts[1]:,}"
