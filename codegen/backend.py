"""What a target must be able to do, for all who compile for it: one class for each kind of target.

Which class it is says `sparsecomp.target.KINDS`, by name: it is imported, and TVM with it, when the first question is
asked of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from pkgutil import resolve_name
from typing import TYPE_CHECKING, NoReturn, Protocol

from torch import Tensor

from sparsecomp.cost import RepeatableCost
from sparsecomp.errors import ArtifactError
from sparsecomp.layer import Layer
from sparsecomp.primitives import Runner
from sparsecomp.program import Body
from sparsecomp.progress import Watch
from sparsecomp.target import Target
from sparsecomp.tuning import Budget, TuningReport

if TYPE_CHECKING:
    from sparsecomp.codegen.stream import StreamStore


class Backend(Protocol):
    """Made of a target, and holds nothing else."""

    # The device ----------------------------------------------------------------------------------------------

    def describe(self) -> str:
        """As a report names it: "cpu znver4 (16 lanes)"."""
        ...

    def identity(self) -> dict[str, str]:
        """What native code depends on beyond its region: "device", and "versions" of all that makes code."""
        ...

    def check_runs_here(self) -> None:
        """Raise InputError if its code cannot run on this machine."""
        ...

    @property
    def tensor_device(self) -> str:
        """PyTorch's name of the device that its tensors are on."""
        ...

    def finish(self) -> None:
        """Wait until it has done all that was asked of it: before the clock is read."""
        ...

    # Regions -------------------------------------------------------------------------------------------------

    def stream_store(self) -> StreamStore:
        """An empty store of packed weights, for one compiled model."""
        ...

    def lower(self, body: Body, streams: StreamStore, threads: Callable[[], int]) -> Runner:
        """Compile a region and bind its weights, taken from `streams` where they are there already.

        `threads` is asked at every call how many to use.
        """
        ...

    # Times ---------------------------------------------------------------------------------------------------

    def meter(self, threads: int) -> RepeatableCost:
        """Measures candidates on this machine, and remembers them on disk."""
        ...

    def autotune(
        self, layers: Iterable[tuple[Layer, Tensor]], threads: int | None, budget: Budget, watch: Watch
    ) -> TuningReport:
        """Search the best kernels of these layers, given with their matrices, and remember them on disk. Not asked of a
        target without kernels."""
        ...

    # Files ---------------------------------------------------------------------------------------------------

    def check_savable(self) -> None:
        """Raise ArtifactError if modules for it have no form in a file."""
        ...

    def fingerprint(self, runner: Runner) -> str | None:
        """Equal for regions whose native code is the same; None of one that has no native code."""
        ...

    def shared_library(self, runner: Runner) -> bytes:
        """Native code of a region, as a shared library.

        Raises:
            ArtifactError: there is none, or it cannot be linked: there is no C compiler.
        """
        ...

    def files_for_c(self, runner: Runner) -> dict[str, bytes]:
        """A region as files for C, by name.

        Raises:
            ArtifactError: it has no native code, or there is no C compiler.
        """
        ...

    def adopt(self, body: Body, streams: StreamStore, fingerprint: str, library: bytes) -> object:
        """Let `lower` use this native code, which is trusted, for the body: as long as the result is kept. Its
        weights must be in the store.

        Raises:
            ArtifactError: it is code of another region, or cannot be loaded.
        """
        ...


class NoNativeCode:
    """What a backend whose code goes into no file answers when it is asked for it."""

    def __init__(self, target: Target) -> None:
        self.target = target

    def fingerprint(self, runner: Runner) -> None:
        return None

    def shared_library(self, runner: Runner) -> NoReturn:
        self._refuse()

    def files_for_c(self, runner: Runner) -> NoReturn:
        self._refuse()

    def adopt(self, body: Body, streams: StreamStore, fingerprint: str, library: bytes) -> NoReturn:
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise ArtifactError(f"the target {str(self.target)!r} has no native code to export.")


@cache
def backend_of(target: Target) -> Backend:
    backend: Backend = resolve_name(target.traits.backend)(target)
    return backend
