"""What slimming found and did: the coupled groups of a model, what left with them, and why the rest stayed."""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field

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
