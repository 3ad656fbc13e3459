"""The kernels: a region and a target -> something that runs. The only room that imports tvm.

`lower` is the door for regions, `meter` for measured times; each function asks the target's `Backend`. TVM is imported
when one of them is called, not when this package is.

To add a kernel: a file in `codegen/cpu/` with a frozen specification and a function that writes it, a line in
`compiled_region.RULES`, a test file in `tests/codegen/`. To add an activation: a line in `sparsecomp/epilogue.py` for
its meaning and one in `cpu/epilogues.py` for its vector form. A kernel for GPUs is a file in `codegen/cuda/` with a family,
and a line in `cuda/families.py`. To add a target: a folder here with a class that has the methods of `backend.Backend`,
a line in `sparsecomp.target.KINDS` that names it, a test that `tests/codegen/test_backend.py` shows the way of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from torch import Tensor

from sparsecomp.codegen.backend import backend_of
from sparsecomp.cost import RepeatableCost
from sparsecomp.layer import Layer
from sparsecomp.primitives import Runner
from sparsecomp.program import Body
from sparsecomp.progress import Watch
from sparsecomp.target import Remote, Target
from sparsecomp.tuning import Budget, TuningReport

if TYPE_CHECKING:
    from sparsecomp.codegen.stream import StreamStore


def describe(target: Target) -> str:
    """The target as a report names it: "cpu znver4 (16 lanes)"."""
    return backend_of(target).describe()


def identity(target: Target) -> dict[str, str]:
    """What native code depends on beyond its region: the processor, and the versions of all that makes code."""
    return backend_of(target).identity()


def conditions(target: Target, threads: int) -> str:
    """All that a measured time depends on but for what is run: device, threads, versions."""
    here = identity(target)
    return f"{here['device']}, {threads} threads, {here['versions']}"


def check_runs_here(target: Target) -> None:
    """Raise InputError if code for the target cannot run on this machine."""
    backend_of(target).check_runs_here()


def tensor_device(target: Target) -> str:
    """PyTorch's name of the device that the target's tensors are on."""
    return backend_of(target).tensor_device


def finish(target: Target) -> None:
    """Wait until the target has done all that was asked of it: before the clock is read."""
    backend_of(target).finish()


def stream_store(target: Target | None = None) -> StreamStore:
    """An empty store of packed weights, for one compiled model."""
    return backend_of(target or Target()).stream_store()


def lower(body: Body, target: Target, streams: StreamStore, threads: Callable[[], int]) -> Runner:
    """Compile a region and bind its weights, taken from `streams` where they are there already.

    `threads` is asked at every call how many to use.
    """
    return backend_of(target).lower(body, streams, threads)


def meter(target: Target, threads: int) -> RepeatableCost:
    """Measures candidates on this machine, and remembers them on disk."""
    return backend_of(target).meter(threads)


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
    watch.stage("looking for devices")
    if isinstance(device, Target):
        return backend_of(device).autotune(layers, threads, budget, watch)
    from sparsecomp.codegen.remote import connect
    from sparsecomp.codegen.tuner import search_on

    return search_on(list(connect(device, threads)), layers, budget, watch)


def check_savable(target: Target) -> None:
    """Raise ArtifactError if modules for the target have no form in a file."""
    backend_of(target).check_savable()


def fingerprint(runner: Runner, target: Target) -> str | None:
    """Equal for regions whose native code is the same; None of one that has no native code."""
    return backend_of(target).fingerprint(runner)


def shared_library(runner: Runner, target: Target) -> bytes:
    """Native code of a region, as a shared library.

    Raises:
        ArtifactError: it cannot be linked: there is no C compiler.
    """
    return backend_of(target).shared_library(runner)


def files_for_c(runner: Runner, target: Target) -> dict[str, bytes]:
    """A region as files for C, by name.

    Raises:
        ArtifactError: it has no native code, or there is no C compiler.
    """
    return backend_of(target).files_for_c(runner)


def adopt(body: Body, target: Target, streams: StreamStore, fingerprint: str, library: bytes) -> object:
    """Let `lower` use this native code, which is trusted, for the body: as long as the result is kept. Its weights
    must be in the store.

    Raises:
        ArtifactError: it is code of another region, or cannot be loaded.
    """
    return backend_of(target).adopt(body, streams, fingerprint, library)
