"""Where kernels of a call race: on this machine, or by another file on another (`remote.py`)."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Protocol

from sparsecomp.codegen.call import Call, grid_for
from sparsecomp.codegen.machine import Machine
from sparsecomp.codegen.measure import Meter, between_runs
from sparsecomp.codegen.stopwatch import Contestant, seconds_in_turn
from sparsecomp.codegen.stream import make_stream
from sparsecomp.errors import SparsecompError
from sparsecomp.pattern import PackedRows, RowBlocks, pack
from sparsecomp.region import RowsKernelChoice

LOG = logging.getLogger(__name__)
KEPT = 24
"""Kernels kept between the races of a call."""


class BenchLostError(SparsecompError):
    """The device does not answer any more: another one must do the work."""


class Bench(Protocol):
    """One place that runs one race at a time."""

    machine: Machine
    threads: int

    def race(self, call: Call, kernels: Sequence[RowsKernelChoice | None]) -> list[float]:
        """Seconds of each, taking turns; None is PyTorch's own operator. inf for what does not run here.

        Raises:
            BenchLostError: nothing more can be measured here.
        """
        ...

    def close(self) -> None: ...


class LocalBench:
    """This machine, on the layer's own lists, by the clock of every other measurement."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self.machine, self.threads = meter.machine, meter.threads
        self._call: Call | None = None
        self._packed: dict[RowBlocks, PackedRows] = {}
        self._made: dict[RowsKernelChoice, Contestant] = {}
        """Of the call, the last ones: those that lead race again and again."""

    def race(self, call: Call, kernels: Sequence[RowsKernelChoice | None]) -> list[float]:
        if self._call is not call:
            self._call = call
            self._packed.clear()
            self._made.clear()
        contestants = [self._contestant(call, kernel) for kernel in kernels]
        between = between_runs([call.layer], self.machine)
        seconds = iter(seconds_in_turn([one for one in contestants if one is not None], between))
        return [math.inf if one is None else next(seconds) for one in contestants]

    def _contestant(self, call: Call, how: RowsKernelChoice | None) -> Contestant | None:
        """None for a kernel that cannot be made."""
        if how is None:
            x, weight = call.layer.example(), call.matrix.contiguous()
            return lambda: nullcontext(lambda: call.layer.dense(x, weight))
        made = self._made.pop(how, None) or self._make(call, how)
        if made is not None:
            self._made[how] = made
        for oldest in list(self._made)[:-KEPT]:
            del self._made[oldest]
        return made

    def _make(self, call: Call, how: RowsKernelChoice) -> Contestant | None:
        if how.pattern not in self._packed:
            self._packed[how.pattern] = pack(call.matrix, how.pattern, call.layer.groups)
        grid = grid_for(how.schedule, call.geometry)
        stream = make_stream(self._packed[how.pattern], call.layer, grid, how.schedule)
        try:
            return self._meter.kernel(call.layer, stream)
        except Exception:
            LOG.warning("no kernel %s could be made for %s", how, call.layer.name, exc_info=True)
            return None

    def close(self) -> None:
        """Nothing is held."""
