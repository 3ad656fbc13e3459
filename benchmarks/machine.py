"""The machine and the software a number was measured with."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from benchmarks.ceiling import NoCompilerError, fma_peak
from sparsecomp.codegen.machine import cpu_model

PACKAGES = ("sparsecomp", "torch", "transformers", "apache-tvm", "onnxruntime", "openvino", "scikit-learn")


@dataclass(frozen=True)
class Machine:
    cpu: str
    cores: int
    fma_peak: float | None
    """GFLOP/s of one core in fp32, measured beside the numbers: the clock moves within an hour. None
    where there is no C compiler to build the probe."""
    versions: dict[str, str]

    @staticmethod
    def here() -> Machine:
        return Machine(cpu_model(), usable_cores(), _peak(), _versions())

    def __str__(self) -> str:
        peak = f"{self.fma_peak:.0f} GFLOP/s a core" if self.fma_peak else "unknown (no C compiler)"
        return f"{self.cpu}, {self.cores} core{'s' * (self.cores > 1)}, fp32 FMA peak {peak}"


def usable_cores() -> int:
    """Cores this process may use: fewer than the machine has under `taskset` or in a container."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _peak() -> float | None:
    try:
        return fma_peak()
    except NoCompilerError:
        return None


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
