"""The target "cpu": regions become native code by TVM and LLVM, on PyTorch's own threads."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from sparsecomp.codegen import library as libraries
from sparsecomp.codegen.exported import exported
from sparsecomp.codegen.lowered_region import LoweredRegion, laid_out, lower_region
from sparsecomp.codegen.machine import Machine, check_host, machine_of
from sparsecomp.codegen.measure import Meter
from sparsecomp.codegen.stream import StreamStore
from sparsecomp.codegen.timings import Timings, device_of, versions
from sparsecomp.codegen.tuner import search_on
from sparsecomp.codegen.workbench import LocalBench
from sparsecomp.errors import ArtifactError
from sparsecomp.layer import Layer
from sparsecomp.primitives import Runner
from sparsecomp.program import Body
from sparsecomp.progress import Watch
from sparsecomp.target import Target
from sparsecomp.tuning import Budget, TuningReport


class CpuBackend:
    """See `Backend`."""

    tensor_device = "cpu"

    def __init__(self, target: Target) -> None:
        self.target = target

    @property
    def machine(self) -> Machine:
        return machine_of(self.target)

    def describe(self) -> str:
        return f"{self.target.kind} {self.machine}"

    def identity(self) -> dict[str, str]:
        return {"device": device_of(self.machine), "versions": versions()}

    def check_runs_here(self) -> None:
        if self.target != Target():
            check_host(self.target)

    def finish(self) -> None:
        """Calls return when they are done."""

    def stream_store(self) -> StreamStore:
        return StreamStore()

    def lower(self, body: Body, streams: StreamStore, threads: Callable[[], int]) -> LoweredRegion:
        return lower_region(body, self.machine, streams, threads)

    def meter(self, threads: int) -> Meter:
        return Meter(self.target, threads, Timings.on_disk())

    def autotune(
        self, layers: Iterable[tuple[Layer, Tensor]], threads: int | None, budget: Budget, watch: Watch
    ) -> TuningReport:
        meter = Meter(self.target, threads or torch.get_num_threads(), Timings.in_memory())
        return search_on([LocalBench(meter)], layers, budget, watch)

    def check_savable(self) -> None:
        """They always are."""

    def fingerprint(self, runner: Runner) -> str:
        return libraries.fingerprint(_lowered(runner).code.region, self.machine)

    def shared_library(self, runner: Runner) -> bytes:
        return libraries.library_of(_lowered(runner).code)

    def files_for_c(self, runner: Runner) -> dict[str, bytes]:
        return exported(_lowered(runner))

    def adopt(self, body: Body, streams: StreamStore, fingerprint: str, library: bytes) -> object:
        region, _ = laid_out(body, streams)
        if libraries.fingerprint(region, self.machine) != fingerprint:
            raise ArtifactError("its native code is that of another region")
        return libraries.adopt(region, self.machine, library)


def _lowered(runner: Runner) -> LoweredRegion:
    assert isinstance(runner, LoweredRegion)
    return runner
