"""The machine and the software a number was measured with."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.ceiling import NoCompilerError, fma_peak
from sparsecomp.codegen.machine import cpu_model
from sparsecomp.host import usable_cores, versions_of

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
        return Machine(cpu_model(), usable_cores(), _peak(), versions_of(PACKAGES))

    def __str__(self) -> str:
        peak = f"{self.fma_peak:.0f} GFLOP/s a core" if self.fma_peak else "unknown (no C compiler)"
        return f"{self.cpu}, {self.cores} core{'s' * (self.cores > 1)}, fp32 FMA peak {peak}"


def _peak() -> float | None:
    try:
        return fma_peak()
    except NoCompilerError:
        return None
