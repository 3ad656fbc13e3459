"""What is pruned together: named groups of weights, and the choice of N of each M."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from sparsecomp.errors import InputError
from sparsecomp.pattern import RowBlocks
from sparsecomp.train.tiling import Tiled, Tiling
from sparsecomp.train.weights import Weight


def _one_group_of_rows(weight: Tiled) -> int:
    return max(1, weight.shape[0] // weight.groups)


GROUPS: dict[str, Callable[[Tiled], Tiling]] = {
    "unstructured": lambda weight: Tiling(1, 1),
    "kernel": lambda weight: Tiling(1, weight.taps),
    "shape": lambda weight: Tiling(_one_group_of_rows(weight), 1),
    "channel": lambda weight: Tiling(_one_group_of_rows(weight), weight.taps),
    "input": lambda weight: Tiling(_one_group_of_rows(weight), weight.taps),
    "filter": lambda weight: Tiling(1, weight.shape[1]),
    "neuron": lambda weight: Tiling(1, weight.shape[1]),
    "depth": lambda weight: Tiling(*weight.shape),
}
"""From small to large: what comes later never lies within what comes earlier."""
BLOCKS = re.compile(r"(?:blocks )?(\d+)x(\d+)")
N_OF_M = re.compile(r"(\d+):(\d+)")


@dataclass(frozen=True)
class Pattern:
    """Groups of weights of which each is kept or dropped as a whole.

    `name` is one of `GROUPS`, "RxC" for blocks of so many rows and columns, or "N:M": of M consecutive columns
    in a row at most N are kept.
    """

    name: str

    @staticmethod
    def parse(pattern: str | RowBlocks | Pattern) -> Pattern:
        """Also the names that reports print, "blocks 4x1", and the compiler's own patterns.

        Raises:
            InputError: there is no such pattern.
        """
        if isinstance(pattern, RowBlocks):
            if pattern.shared:
                return Pattern("shape")
            return Pattern("unstructured" if pattern.rows == 1 else f"{pattern.rows}x1")
        name = pattern.name if isinstance(pattern, Pattern) else pattern
        if isinstance(name, str):
            block, few = BLOCKS.fullmatch(name), N_OF_M.fullmatch(name)
            if block and min(map(int, block.groups())) > 0:
                return Pattern(f"{int(block[1])}x{int(block[2])}")
            if few and 0 < int(few[1]) < int(few[2]):
                return Pattern(f"{int(few[1])}:{int(few[2])}")
            if name in GROUPS and name != "depth":
                return Pattern(name)
        names = ", ".join(name for name in GROUPS if name != "depth")
        raise InputError(
            f"pattern {pattern!r} is not known. Use one of {names}, RxC for blocks such as '4x1', "
            "or N:M with N < M such as '2:4'."
        )

    @property
    def n_of_m(self) -> tuple[int, int] | None:
        found = N_OF_M.fullmatch(self.name)
        return (int(found[1]), int(found[2])) if found else None

    @property
    def only_sparsity(self) -> float | None:
        """The one that N:M has; None where any is possible."""
        return None if self.n_of_m is None else 1 - self.n_of_m[0] / self.n_of_m[1]

    def tiling(self, weight: Tiled) -> Tiling:
        if self.n_of_m:
            return Tiling(1, 1)
        block = BLOCKS.fullmatch(self.name)
        return Tiling(int(block[1]), int(block[2])) if block else GROUPS[self.name](weight)

    def scores(self, weight: Weight, value: Tensor) -> Tensor:
        """The root mean square of each group, groups down x groups across: |w| for single weights, and fair to
        the smaller groups at the edges."""
        tiling = self.tiling(weight)
        norms = tiling.norms(weight.matrix(value))
        return norms / tiling.sizes(weight.shape).to(norms.device).sqrt()

    def mask(self, weight: Weight, kept: Tensor) -> Tensor:
        """Groups down x groups across, bool -> bool of the parameter's shape."""
        return weight.stored(self.tiling(weight).spread(kept, weight.shape)).contiguous()

    def lines(self, groups: Tensor, fill: float) -> Tensor:
        """Groups down x across -> lines x entries, among which a choice is free: all groups in one line, or each
        M in a line of its own, the last ones of a row filled up."""
        if not self.n_of_m:
            return groups.reshape(1, -1)
        m = self.n_of_m[1]
        return F.pad(groups, (0, -groups.shape[1] % m), value=fill).reshape(-1, m)

    def unlined(self, lines: Tensor, shape: tuple[int, int]) -> Tensor:
        """Inverse of `lines`; shape: groups down and across."""
        return lines.reshape(shape[0], -1)[:, : shape[1]]

    def droppable(self, scores: Tensor) -> Tensor:
        """bool, groups down x across: those that may be dropped, all but the N largest of each M."""
        if not self.n_of_m:
            return torch.ones_like(scores, dtype=torch.bool)
        lines = self.lines(scores, -1.0)
        kept = largest(lines, torch.full((len(lines), 1), self.n_of_m[0], device=lines.device))
        return ~self.unlined(kept, (scores.shape[0], scores.shape[1]))

    def __str__(self) -> str:
        return self.name


def largest(lines: Tensor, counts: Tensor) -> Tensor:
    """bool, lines x entries: the largest of each line, as many as `counts` (lines x 1) says; ties go to the first."""
    order = lines.argsort(dim=1, descending=True, stable=True)
    ranks = torch.empty_like(order)
    ranks.scatter_(1, order, torch.arange(lines.shape[1], device=lines.device).expand_as(order))
    return ranks < counts
