"""The GPU that kernels run on, and the clock that tells how long they take. Tests put a device without one in its place."""

from __future__ import annotations

import logging
import math
import os
import shutil
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor

from sparsecomp.codegen.cuda.kernel import Gpu
from sparsecomp.codegen.cuda.runnable import Runnable
from sparsecomp.compare import relative_error, tolerance
from sparsecomp.errors import InputError
from sparsecomp.target import Target

LOG = logging.getLogger(__name__)
KNOWN = {
    "sm_80": Gpu("sm_80", 108, 163 * 1024),
    "sm_86": Gpu("sm_86", 84, 99 * 1024),
    "sm_89": Gpu("sm_89", 128, 99 * 1024),
    "sm_90": Gpu("sm_90", 132, 227 * 1024),
}
"""What to make code for where the GPU is not here: the largest of each kind (A100, A40, L40, H100)."""
ROUNDS = 12
"""Runs of each contestant; the fastest counts."""


class Device(Protocol):
    gpu: Gpu
    kind: str
    """PyTorch's name of the device that tensors are on."""

    def load(self, kernel: Runnable) -> Callable[..., object]:
        """What runs it on tensors of the device: x, operands, operands of the epilogue, y, workspace if it has one."""
        ...

    def seconds(self, contestants: Sequence[Callable[[], Tensor]], labels: Sequence[str]) -> list[float]:
        """The fastest run of each; they take turns, and each finds the caches full of something else. inf for one that
        fails, or whose result is not that of the first."""
        ...

    def finish(self) -> None:
        """Wait until all work is done."""
        ...


class CudaDevice:
    """PyTorch's current CUDA device. Kernels run on PyTorch's current stream, without allocating: they can be recorded
    in a CUDA graph."""

    kind = "cuda"

    def __init__(self, arch: str = "") -> None:
        found: Any = torch.cuda.get_device_properties(torch.cuda.current_device())
        self.gpu = Gpu(
            arch or f"sm_{found.major}{found.minor}",
            found.multi_processor_count,
            getattr(found, "shared_memory_per_block_optin", found.shared_memory_per_block),
            found.name,
        )
        self._flush: Tensor | None = None
        # TVM compiles CUDA source where it is loaded: by nvcc, or by NVRTC where there is none.
        os.environ.setdefault("TVM_CUDA_COMPILE_MODE", "nvcc" if shutil.which("nvcc") else "nvrtc")
        os.environ.setdefault("TVM_CUDA_NVCC_NO_FAST_MATH", "1")

    def load(self, kernel: Runnable) -> Callable[..., object]:
        from sparsecomp.codegen.cuda.pipeline import compile_for_gpu
        from sparsecomp.codegen.cuda.semi_structured import SemiStructured

        if isinstance(kernel, SemiStructured):
            return kernel.run
        ours: Any = kernel
        run: Callable[..., object] = compile_for_gpu(ours, self.gpu.arch)["main"]
        return run

    def seconds(self, contestants: Sequence[Callable[[], Tensor]], labels: Sequence[str]) -> list[float]:
        expected = contestants[0]()
        right = [
            number == 0 or self._is_right(run, label, expected)
            for number, (run, label) in enumerate(zip(contestants, labels, strict=True))
        ]
        best = [math.inf] * len(contestants)
        for _ in range(ROUNDS):
            for number, run in enumerate(contestants):
                if right[number]:
                    best[number] = min(best[number], self._one(run))
        return best

    def _is_right(self, run: Callable[[], Tensor], label: str, expected: Tensor) -> bool:
        try:
            error = relative_error(run(), expected)
        except Exception:
            LOG.warning("kernel %s could not be run", label, exc_info=True)
            return False
        if error > tolerance([expected.dtype]):
            LOG.warning("kernel %s gives other numbers than PyTorch: they differ by %.1e", label, error)
            return False
        return True

    def _one(self, run: Callable[[], Tensor]) -> float:
        """By CUDA events, while the GPU is still busy with filling its cache: what the CPU needs to start it does not
        count."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        if self._flush is None:
            self._flush = torch.empty(1 << 28, dtype=torch.uint8, device="cuda")
        self._flush.zero_()
        start.record()
        run()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) * 1e-3

    def finish(self) -> None:
        torch.cuda.synchronize()


def check_device(target: Target) -> None:
    """Raise InputError where code for the target cannot run on this machine."""
    name = f"target {str(target)!r}"
    if not torch.cuda.is_available():
        raise InputError(
            f"{name}: PyTorch {torch.__version__} sees no CUDA device on this machine. compile_sparse measures where it "
            "runs: call it on a machine with an NVIDIA GPU and a CUDA build of PyTorch, or use target='cpu'."
        )
    major, minor = torch.cuda.get_device_capability()
    if (major, minor) < (8, 0):
        raise InputError(f"{name}: kernels need compute capability 8.0, this device has {major}.{minor}.")
    if target.arch != "native" and target.arch.removesuffix("a") != f"sm_{major}{minor}":
        raise InputError(
            f"code for {name} cannot run on this device, which is sm_{major}{minor}: use target='cuda'."
        )


@cache
def device_for(target: Target) -> Device:
    """Raises InputError where it is not here."""
    check_device(target)
    return CudaDevice("" if target.arch == "native" else target.arch)


def gpu_of(target: Target) -> Gpu:
    """What is known of the target's GPU, which need not be here.

    Raises:
        InputError: nothing is known of it.
    """
    if target.arch == "native":
        return device_for(target).gpu
    found: Any = KNOWN.get(target.arch.removesuffix("a"))
    if found is None:
        known = ", ".join(f"cuda:{arch}" for arch in KNOWN)
        raise InputError(
            f"target {str(target)!r}: no such GPU is known. Use cuda for this machine's, or {known}."
        )
    return Gpu(target.arch, found.multiprocessors, found.shared_bytes)


def fingerprint(target: Target) -> str:
    """Names the device in the database of measured times."""
    gpu = gpu_of(target)
    return f"{gpu.name or 'GPU'}: {gpu.arch} {gpu.multiprocessors} multiprocessors"
