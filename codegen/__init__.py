"""The kernels: a region and a target -> something that runs. The only room that imports tvm.

`lower` is the door for regions, `meter` for measured times. TVM is imported when they are called, not when
this package is.

To add a kernel: a file in `codegen/cpu/` with a frozen specification and a function that writes it, a line in
`compiled_region.RULES`, a test file in `tests/codegen/`. To add an activation: a line in `sparsecomp/epilogue.py` for
its meaning and one in `cpu/epilogues.py` for its vector form. A kernel for GPUs is a file in `codegen/cuda/` with a family,
and a line in `cuda/families.py`. To add a target: a kind in `sparsecomp/target.py`, a branch in `lower` and in `meter`,
a folder here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sparsecomp.cost import RepeatableCost
from sparsecomp.errors import ArtifactError
from sparsecomp.layer import Layer
from sparsecomp.primitives import Runner
from sparsecomp.program import Body
from sparsecomp.progress import Watch
from sparsecomp.target import Remote, Target
from sparsecomp.tuning import Budget, TuningReport

if TYPE_CHECKING:
    from sparsecomp.codegen.stream import StreamStore
    from sparsecomp.codegen.workbench import Bench


def stream_store(target: Target | None = None) -> StreamStore:
    """An empty store of packed weights, for one compiled model."""
    if target is not None and target.kind == "cuda":
        from sparsecomp.codegen.cuda.device import gpu_of
        from sparsecomp.codegen.cuda.weights import GpuStore

        return GpuStore(gpu_of(target))
    from sparsecomp.codegen.stream import StreamStore

    return StreamStore()


def lower(body: Body, target: Target, streams: StreamStore, threads: Callable[[], int]) -> Runner:
    """Compile a region and bind its weights, taken from `streams` where they are there already.

    `threads` is asked at every call how many to use.
    """
    if target.kind == "reference":
        from sparsecomp.codegen.reference import ReferenceRegion

        return ReferenceRegion(body, streams)
    if target.kind == "cuda":
        from sparsecomp.codegen.cuda.device import device_for
        from sparsecomp.codegen.cuda.region import CudaRegion
        from sparsecomp.codegen.cuda.weights import GpuStore

        assert isinstance(streams, GpuStore)
        return CudaRegion(body, streams, device_for(target))
    from sparsecomp.codegen.lowered_region import lower_region
    from sparsecomp.codegen.machine import machine_of

    return lower_region(body, machine_of(target), streams, threads)


def identity(target: Target) -> dict[str, str]:
    """What native code depends on beyond its region: the processor, and the versions of all that makes code."""
    if target.kind == "reference":
        return {"device": "reference", "versions": f"torch {torch.__version__}"}
    if target.kind == "cuda":
        from sparsecomp.codegen.cuda.device import fingerprint as gpu
        from sparsecomp.codegen.timings import versions as software

        return {"device": gpu(target), "versions": software()}
    from sparsecomp.codegen.machine import machine_of
    from sparsecomp.codegen.timings import device_of, versions

    return {"device": device_of(machine_of(target)), "versions": versions()}


def fingerprint(runner: Runner, target: Target) -> str | None:
    """Equal for regions whose native code is the same; None of one that has no native code."""
    from sparsecomp.codegen import library as libraries
    from sparsecomp.codegen.lowered_region import LoweredRegion
    from sparsecomp.codegen.machine import machine_of

    if not isinstance(runner, LoweredRegion):
        return None
    return libraries.fingerprint(runner.code.region, machine_of(target))


def shared_library(runner: Runner) -> bytes:
    """Native code of a region, as a shared library.

    Raises:
        ArtifactError: it cannot be linked: there is no C compiler.
    """
    from sparsecomp.codegen.library import library_of
    from sparsecomp.codegen.lowered_region import LoweredRegion

    assert isinstance(runner, LoweredRegion)
    return library_of(runner.code)


def files_for_c(runner: Runner) -> dict[str, bytes]:
    """A region as files for C, by name.

    Raises:
        ArtifactError: it has no native code, or there is no C compiler.
    """
    from sparsecomp.codegen.exported import exported
    from sparsecomp.codegen.lowered_region import LoweredRegion

    if not isinstance(runner, LoweredRegion):
        raise ArtifactError("the target 'reference' has no native code to export.")
    return exported(runner)


def adopt(body: Body, target: Target, streams: StreamStore, fingerprint: str, library: bytes) -> object:
    """Let `lower` use this native code, which is trusted, for the body: as long as the result is kept. Its weights
    must be in the store.

    Raises:
        ArtifactError: it is code of another region, or cannot be loaded.
    """
    from sparsecomp.codegen import library as libraries
    from sparsecomp.codegen.lowered_region import laid_out
    from sparsecomp.codegen.machine import machine_of

    (region, _), machine = laid_out(body, streams), machine_of(target)
    if libraries.fingerprint(region, machine) != fingerprint:
        raise ArtifactError("its native code is that of another region")
    return libraries.adopt(region, machine, library)


def meter(target: Target, threads: int) -> RepeatableCost:
    """Measures candidates on this machine, and remembers them on disk."""
    if target.kind == "reference":
        from sparsecomp.codegen.reference import StoredCost

        return StoredCost()
    if target.kind == "cuda":
        from sparsecomp.codegen.cuda.device import device_for
        from sparsecomp.codegen.cuda.measure import CudaMeter
        from sparsecomp.codegen.timings import Timings as Database

        return CudaMeter(target, device_for(target), Database.on_disk())
    from sparsecomp.codegen.measure import Meter
    from sparsecomp.codegen.timings import Timings

    return Meter(target, threads, Timings.on_disk())


def conditions(target: Target, threads: int) -> str:
    """All that a measured time depends on but for what is run: device, threads, versions."""
    here = identity(target)
    return f"{here['device']}, {threads} threads, {here['versions']}"


def autotune(
    layers: Iterable[tuple[Layer, Tensor]],
    device: Target | Remote,
    threads: int | None,
    budget: Budget,
    watch: Watch,
) -> TuningReport:
    """Search the best kernels of these layers, given with their matrices, and remember them on disk.

    Raises:
        InputError: `device` is a remote one that cannot be reached.
    """
    from sparsecomp.codegen.timings import Timings, device_of
    from sparsecomp.codegen.tuner import Tuner, searches_of

    if isinstance(device, Target) and device.kind == "cuda":
        from sparsecomp.codegen.cuda.measure import CudaMeter
        from sparsecomp.codegen.cuda.tune import tune

        measuring = meter(device, 0)
        assert isinstance(measuring, CudaMeter)
        return tune(layers, measuring, budget, watch)
    watch.stage("looking for devices")
    timings, benches = Timings.on_disk(), _benches(device, threads)
    machine, count = benches[0].machine, benches[0].threads
    try:
        searches = searches_of(layers, timings, machine, count)
        found = Tuner(searches, benches, budget, watch).run()
    finally:
        for bench in benches:
            bench.close()
    return TuningReport(
        device=device_of(machine),
        threads=count,
        calls=found.calls,
        trials=found.trials,
        seconds=found.seconds,
        database=str(timings.path or ""),
        interrupted=found.interrupted,
        notes=found.notes,
    )


def _benches(device: Target | Remote, threads: int | None) -> list[Bench]:
    if isinstance(device, Remote):
        from sparsecomp.codegen.remote import connect

        return list(connect(device, threads))
    from sparsecomp.codegen.measure import Meter
    from sparsecomp.codegen.timings import Timings
    from sparsecomp.codegen.workbench import LocalBench

    return [LocalBench(Meter(device, threads or torch.get_num_threads(), Timings.in_memory()))]


def check_runs_here(target: Target) -> None:
    """Raise InputError if code for the target cannot run on this machine."""
    if target.kind == "reference" or target == Target():
        return
    if target.kind == "cuda":
        from sparsecomp.codegen.cuda.device import device_for

        device_for(target)
        return
    from sparsecomp.codegen.machine import check_host

    check_host(target)


def tensor_device(target: Target) -> str:
    """PyTorch's name of the device that the target's tensors are on."""
    if target.kind != "cuda":
        return "cpu"
    from sparsecomp.codegen.cuda.device import device_for

    return device_for(target).kind


def finish(target: Target) -> None:
    """Wait until the target has done all that was asked of it: before the clock is read."""
    if target.kind == "cuda":
        from sparsecomp.codegen.cuda.device import device_for

        device_for(target).finish()


def describe(target: Target) -> str:
    """The target as a report names it: "cpu znver4 (16 lanes)"."""
    if target.kind == "reference":
        return "reference (plain PyTorch)"
    if target.kind == "cuda":
        from sparsecomp.codegen.cuda.device import gpu_of

        gpu = gpu_of(target)
        return f"cuda {gpu.name or 'GPU'} ({gpu.arch}, {gpu.multiprocessors} multiprocessors)"
    from sparsecomp.codegen.machine import machine_of

    return f"{target.kind} {machine_of(target)}"
