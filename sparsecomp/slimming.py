"""What slimming found and did: the coupled groups of a model, what left with them, and why the rest stayed."""

from __future__ import annotations

import re
import textwrap
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sparsecomp.cut_weight import Cut

_ROLES = {"produces": "made by", "scales": "scaled by", "reads": "read by"}
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
    crosses: Mapping[str, str]
    """Parameters that shrink with it, each with the dimension, `conv2.weight[1]` -> what it does to the units:
    "produces", "scales" or "reads"."""
    units: int
    gone: int
    kept: Mapping[str, int]
    """Reason -> units that are dead and stay for it."""

    def __str__(self) -> str:
        """
        conv1.weight: 3 of 6 units left the model, with their slices of
            made by    conv1.weight[0], conv1.bias[0]
            scaled by  norm1.weight[0], norm1.bias[0]
            read by    conv2.weight[1]
        """
        what = "left the model, with their slices of" if self.gone else "could leave, with their slices of"
        lines = [f"{self.name}: {self.gone or self.units} of {self.units} units {what}"]
        for role, title in _ROLES.items():
            names = [name for name, does in self.crosses.items() if does == role]
            if names:
                lines.append(_listed(f"    {title:<11}", names))
        lines += [f"    dead and stay: {count}, {reason}" for reason, count in self.kept.items()]
        return "\n".join(lines)


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

    def __str__(self) -> str:
        """The graph of what is coupled: every group of which something left or is dead, with all that it crosses."""
        lines = [self.summary or "nothing left the model"]
        lines += [str(group) for group in self.groups if group.gone or group.kept]
        lines += [
            f"{name}: a sum that lost an operand, which was the same for every input"
            for name in self.branches
        ]
        alive = [group for group in self.groups if not group.gone and not group.kept]
        if alive:
            names = [f"{group.name} ({group.units})" for group in alive]
            lines.append(_listed("no dead units: ", names))
        return "\n\n".join(lines)

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
                    "roles": list(group.crosses.values()),
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


def _listed(title: str, names: Sequence[str]) -> str:
    """The names after a title, over as many lines as that takes."""
    indent = " " * len(title)
    return textwrap.fill(
        ", ".join(names), 110, initial_indent=title, subsequent_indent=indent, break_long_words=False
    )


def _pair(counts: tuple[int, int]) -> str:
    return f"{counts[0]:,} -> {counts[1]:,}"
