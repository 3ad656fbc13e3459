"""A layer with its own weight, as something to measure: its keys in the database, and the work of its kernels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsecomp.choice import DENSE
from sparsecomp.codegen.layout import source_geometry
from sparsecomp.codegen.machine import Machine
from sparsecomp.codegen.predict import Work, work_of
from sparsecomp.codegen.signature import signature
from sparsecomp.codegen.timings import Key, Record, layer_key
from sparsecomp.geometry import Geometry, TokenRows
from sparsecomp.layer import Layer
from sparsecomp.pattern import IN_PLACE, PATTERNS, RowBlocks, list_lengths
from sparsecomp.region import AnySchedule, RowsKernelChoice, is_tokens_first
from sparsecomp.section import Section, SectionOp


@dataclass(frozen=True, eq=False)
class Call:
    """`lengths`: of the list of columns of each block of rows, by pattern."""

    layer: Layer
    matrix: Tensor
    geometry: Geometry
    lengths: Mapping[RowBlocks, Tensor]

    @staticmethod
    def of(layer: Layer, matrix: Tensor) -> Call:
        geometry = source_geometry(single(layer))["layer"]
        return Call(layer, matrix, geometry, list_lengths(matrix, patterns_of(layer), layer.groups))

    @property
    def stored(self) -> dict[RowBlocks, int]:
        """Elements that each pattern stores."""
        return {pattern: int(found.sum()) * pattern.rows for pattern, found in self.lengths.items()}

    @property
    def dead_rows(self) -> int:
        """Rows without any weight."""
        return int((~(self.matrix != 0).any(dim=1)).sum())

    @property
    def nonzeros(self) -> int:
        return int((self.matrix != 0).sum())

    def signature(self, pattern: RowBlocks) -> str:
        return signature(self.lengths[pattern], pattern, (self.layer.rows, self.layer.columns))

    def key(self, machine: Machine, threads: int, pattern: RowBlocks | None) -> Key:
        """Of the kernels of a pattern; None is PyTorch's own operator, for which zeros do not matter."""
        if pattern is None:
            return layer_key(machine, threads, self.layer, DENSE)
        return layer_key(machine, threads, self.layer, str(pattern), self.signature(pattern))

    def work(self, how: RowsKernelChoice, machine: Machine) -> Work:
        return work_of(self.layer, self.geometry, self.lengths[how.pattern], how, machine)

    def idle_work(self, how: RowsKernelChoice, machine: Machine) -> Work:
        """What the kernel does where all lists are empty."""
        nothing = torch.zeros_like(self.lengths[how.pattern])
        return work_of(self.layer, self.geometry, nothing, how, machine)

    def trial(
        self,
        machine: Machine,
        threads: int,
        how: RowsKernelChoice,
        seconds: float,
        predicted: float | None = None,
    ) -> Record:
        """The record of a measurement."""
        key = self.key(machine, threads, how.pattern)
        return Record("trial", key, seconds, str(how.schedule), predicted, self.work(how, machine))


def patterns_of(layer: Layer) -> tuple[RowBlocks, ...]:
    """All that are considered for the layer."""
    return (IN_PLACE,) if layer.held_by else PATTERNS


def single(layer: Layer, epilogue: str = "", tokens_first: bool = False) -> Section:
    """A section of one layer."""
    return Section(("x",), (SectionOp("layer", layer, "x", "y", epilogue),), ("y",), tokens_first)


def grid_for(schedule: AnySchedule, geometry: Geometry) -> Geometry:
    """Where the kernel's input lies, given where that of gathered rows does."""
    return TokenRows() if is_tokens_first(schedule) else geometry


def kernel_of(how: RowsKernelChoice | None) -> str:
    """As reports and the database write it."""
    return DENSE if how is None else str(how)
