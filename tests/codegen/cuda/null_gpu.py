"""A GPU that is not there: kernels run as loops on the CPU, and take what time a test says."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import pytest

from sparsecomp.codegen.cuda import device
from sparsecomp.codegen.cuda.kernel import Gpu
from sparsecomp.codegen.cuda.pipeline import compile_for_cpu
from sparsecomp.codegen.cuda.runnable import Runnable

GPU = Gpu("sm_90", 132, 227 * 1024, "null GPU")


class NullGpu:
    """`times`: how long contestants take whose names begin so, in seconds; the others take 1."""

    gpu = GPU
    kind = "cpu"

    def __init__(self, times: Mapping[str, float] | None = None) -> None:
        self.times = dict(times or {})
        self.raced: list[list[str]] = []
        self.loaded: list[Runnable] = []
        self.launches = 0
        self.finished = 0

    def load(self, kernel: Runnable) -> Callable[..., object]:
        self.loaded.append(kernel)

        def launch(*tensors: object) -> None:
            self.launches += 1
            compile_for_cpu(kernel)(*tensors)

        return launch

    def seconds(self, contestants: Sequence[Callable[[], object]], labels: Sequence[str]) -> list[float]:
        self.raced.append(list(labels))
        return [self._of(label) for label in labels]

    def _of(self, label: str) -> float:
        found = [seconds for name, seconds in self.times.items() if label.startswith(name)]
        return found[0] if found else 1.0

    def finish(self) -> None:
        self.finished += 1


@contextmanager
def null_gpu(times: Mapping[str, float] | None = None) -> Iterator[NullGpu]:
    """It stands for PyTorch's current device."""
    gpu = NullGpu(times)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device, "device_for", lambda target: gpu)
        yield gpu
