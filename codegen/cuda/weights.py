"""Packed weights of a model on a GPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sparsecomp.codegen.cuda.families import kernel_for
from sparsecomp.codegen.cuda.kernel import Case, Gpu
from sparsecomp.codegen.cuda.runnable import Runnable
from sparsecomp.codegen.stream import StreamStore
from sparsecomp.layer import Layer
from sparsecomp.pattern import PackedRows, RowBlocks, unpack
from sparsecomp.region import OnGpu, RowsKernelChoice


@dataclass(frozen=True, eq=False)
class GpuWeights:
    """A layer's weight as its kernel reads it. It takes the place of a `Stream`."""

    layer: Layer
    geometry: tuple[int, ...]
    """Height and width of a convolution's input; () of a linear layer."""
    pattern: RowBlocks
    schedule: OnGpu
    kernel: Runnable
    """Without epilogue."""
    parts: tuple[Tensor, ...]
    dtype: torch.dtype

    in_place = False

    @property
    def nbytes(self) -> int:
        return sum(part.numel() * part.element_size() for part in self.parts)


def grid_of(layer: Layer) -> tuple[int, ...]:
    """What a kernel is made for beyond what the weight says."""
    return () if layer.op == "linear" else tuple(layer.input_shape[2:])


class GpuStore(StreamStore):
    """Equal requests share one packed weight, at every number of tokens and images."""

    def __init__(self, gpu: Gpu) -> None:
        super().__init__()
        self.gpu = gpu

    def _make(self, packed: PackedRows, layer: Layer, geometry: Any, how: RowsKernelChoice) -> Any:
        assert isinstance(how.schedule, OnGpu)
        matrix = unpack(packed)
        kernel = kernel_for(how.schedule, Case(layer, matrix, self.gpu))
        return GpuWeights(
            layer, geometry, how.pattern, how.schedule, kernel, kernel.pack(matrix), matrix.dtype
        )

    def _read(self, stream: Any) -> Tensor:
        matrix: Tensor = stream.kernel.unpack(stream.parts)
        return matrix
