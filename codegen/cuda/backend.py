"""The target "cuda": each layer is a kernel on PyTorch's current GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import Tensor

from sparsecomp.codegen.backend import NoNativeCode
from sparsecomp.codegen.cuda import device
from sparsecomp.codegen.cuda.measure import CudaMeter
from sparsecomp.codegen.cuda.region import CudaRegion
from sparsecomp.codegen.cuda.tune import tune
from sparsecomp.codegen.cuda.weights import GpuStore
from sparsecomp.codegen.stream import StreamStore
from sparsecomp.codegen.timings import Timings, versions
from sparsecomp.errors import ArtifactError
from sparsecomp.layer import Layer
from sparsecomp.program import Body
from sparsecomp.progress import Watch
from sparsecomp.tuning import Budget, TuningReport


class CudaBackend(NoNativeCode):
    """See `Backend`. The GPU itself is asked for anew each time: which one is current may change."""

    @property
    def device(self) -> device.Device:
        """Raises InputError where it is not here."""
        return device.device_for(self.target)

    def describe(self) -> str:
        gpu = device.gpu_of(self.target)
        return f"cuda {gpu.name or 'GPU'} ({gpu.arch}, {gpu.multiprocessors} multiprocessors)"

    def identity(self) -> dict[str, str]:
        return {"device": device.fingerprint(self.target), "versions": versions()}

    def check_runs_here(self) -> None:
        device.device_for(self.target)

    @property
    def tensor_device(self) -> str:
        return self.device.kind

    def finish(self) -> None:
        self.device.finish()

    def stream_store(self) -> GpuStore:
        return GpuStore(device.gpu_of(self.target))

    def lower(self, body: Body, streams: StreamStore, threads: Callable[[], int]) -> CudaRegion:
        assert isinstance(streams, GpuStore)
        return CudaRegion(body, streams, self.device)

    def meter(self, threads: int) -> CudaMeter:
        return CudaMeter(self.target, self.device, Timings.on_disk())

    def autotune(
        self, layers: Iterable[tuple[Layer, Tensor]], threads: int | None, budget: Budget, watch: Watch
    ) -> TuningReport:
        return tune(layers, self.meter(0), budget, watch)

    def check_savable(self) -> None:
        raise ArtifactError(
            "a module for a GPU has no form in a file yet. Save the model itself, and compile it after loading: what was "
            "measured is remembered."
        )
