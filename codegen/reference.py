"""The target that needs no kernel: regions run as plain PyTorch, and nothing is measured."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import NoReturn

import torch
from torch import Tensor

from sparsecomp.choice import DENSE, Candidate
from sparsecomp.codegen.backend import NoNativeCode
from sparsecomp.codegen.layout import source_geometry
from sparsecomp.codegen.stream import Stream, StreamStore, read_stream
from sparsecomp.cost import RegionTimes
from sparsecomp.layer import Layer
from sparsecomp.pattern import RowBlocks, stored_elements
from sparsecomp.program import Body
from sparsecomp.progress import Watch
from sparsecomp.region import RowsKernelChoice, Schedule
from sparsecomp.section import SectionOp, run_section
from sparsecomp.tuning import Budget


class ReferenceBackend(NoNativeCode):
    """See `Backend`."""

    tensor_device = "cpu"

    def describe(self) -> str:
        return "reference (plain PyTorch)"

    def identity(self) -> dict[str, str]:
        return {"device": "reference", "versions": f"torch {torch.__version__}"}

    def check_runs_here(self) -> None:
        """It runs wherever PyTorch does."""

    def finish(self) -> None:
        """Calls return when they are done."""

    def stream_store(self) -> StreamStore:
        return StreamStore()

    def lower(self, body: Body, streams: StreamStore, threads: Callable[[], int]) -> ReferenceRegion:
        return ReferenceRegion(body, streams)

    def meter(self, threads: int) -> StoredCost:
        return StoredCost()

    def autotune(
        self, layers: Iterable[tuple[Layer, Tensor]], threads: int | None, budget: Budget, watch: Watch
    ) -> NoReturn:
        raise AssertionError("it has no kernels")

    def check_savable(self) -> None:
        """They always are."""


PER_ELEMENT = {1: 2.0, 2: 1.5, 4: 1.1, 8: 1.1}
"""Cost of a stored element by rows per block, where a dense one costs 1: a stand-in for measured time."""


class ReferenceRegion:
    """Runs the body's section, its weights read back from the store."""

    def __init__(self, body: Body, streams: StreamStore) -> None:
        self.body = replace(body, packed={})
        geometry = source_geometry(body.section)
        self._stream_of = {
            op.site: streams.get(op.layer, geometry[op.site], body.how[op.site], body.packed.get(op.site))
            for op in body.section.layers
        }

    @property
    def streams(self) -> Sequence[Stream]:
        return tuple(self._stream_of.values())

    @property
    def labels(self) -> Sequence[tuple[str, str]]:
        return [("the whole section", "plain PyTorch")]

    def call_seconds(self, inputs: Sequence[Tensor]) -> list[float]:
        start = time.perf_counter()
        self.run(inputs)
        return [time.perf_counter() - start]

    def run(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        with torch.no_grad():
            return run_section(self.body.section, self._matrix, self.body.vectors, inputs)

    def _matrix(self, op: SectionOp) -> Tensor:
        return read_stream(self._stream_of[op.site])

    def shapes(self, inputs: Sequence[Tensor]) -> list[tuple[int, ...]]:
        section = self.body.section
        plain = {name for op in section.works for name in op.plain}
        first = next(name for name in section.inputs if name not in plain)
        x = inputs[section.inputs.index(first)]
        return [
            (x.shape[0], *shape[1:]) if section.images else (*x.shape[:-1], shape[-1])
            for shape in map(section.output_shape, section.outputs)
        ]


class StoredCost:
    """Orders candidates by the elements they multiply, one a nanosecond. Deterministic, and not a time."""

    def candidates(self, layer: Layer, matrix: Tensor) -> tuple[Candidate, ...]:
        found = [Candidate(DENSE, matrix.numel() * 1e-9, stored=matrix.numel())]
        stored = stored_elements(matrix)
        if layer.held_by:
            reason = f"its weight is also read by {layer.held_by}, which needs it dense"
            return (*found, Candidate("packed", refused=reason))
        for rows, cost in PER_ELEMENT.items():
            if layer.rows // layer.groups % rows:
                found.append(
                    Candidate(f"blocks {rows}x1", refused=f"{layer.rows} rows are no multiple of it")
                )
                continue
            pattern = RowBlocks(rows)
            how = RowsKernelChoice(pattern, Schedule(8, layer.columns))
            seconds = stored[pattern] * cost * 1e-9
            found.append(Candidate(str(how), seconds, how=how, stored=stored[pattern]))
        return tuple(found)

    def skipping(self, layer: Layer, matrix: Tensor, rows: int) -> float | None:
        if layer.rows // layer.groups % rows or rows not in PER_ELEMENT:
            return None
        return stored_elements(matrix, (RowBlocks(rows),))[RowBlocks(rows)] * PER_ELEMENT[rows] * 1e-9

    def doubt(self, layer: Layer, matrix: Tensor) -> None:
        """Counts do not change."""

    def conversion(self, layer: Layer) -> float:
        return 0.0

    def region(self, body: Body, prepare: object) -> RegionTimes:
        return RegionTimes(0.0, 0.0)
