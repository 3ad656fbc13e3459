"""A layer on a GPU, with its weight: what stands in the graph between operators of PyTorch."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sparsecomp.codegen.cuda.device import Device
from sparsecomp.codegen.cuda.families import with_epilogue
from sparsecomp.codegen.cuda.weights import GpuStore, GpuWeights, grid_of
from sparsecomp.epilogue import STEPS, split_steps
from sparsecomp.errors import LoweringError
from sparsecomp.program import Body
from sparsecomp.section import SectionOp

ALIGNMENT = 16
"""Of x, in bytes: kernels read so many at once."""


class CudaRegion:
    """Runs one layer on PyTorch's current stream; nothing is waited for, and memory is PyTorch's own."""

    def __init__(self, body: Body, store: GpuStore, device: Device) -> None:
        (op,) = body.section.ops
        assert isinstance(op, SectionOp)
        grid: Any = grid_of(op.layer)
        weights: Any = store.get(op.layer, grid, body.how[op.site], body.packed.get(op.site))
        assert isinstance(weights, GpuWeights)
        self.op, self.weights, self.device = op, weights, device
        self.kernel = with_epilogue(weights.kernel, op.epilogue)
        self._names = body.section.inputs
        self.dtype = weights.dtype
        self._vectors = [vector.to(self.dtype).contiguous() for vector in body.vectors[op.site]]
        self._launch = device.load(self.kernel)

    @property
    def streams(self) -> Sequence[GpuWeights]:
        return (self.weights,)

    @property
    def labels(self) -> Sequence[tuple[str, str]]:
        return [(self.op.layer.name, self.kernel.label)]

    def run(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        values = dict(zip(self._names, inputs, strict=True))
        x = self._checked(values[self.op.source])
        y = x.new_empty(self._shape(values[self.op.source]))
        if y.numel():
            tensors = [values[name].contiguous() for name in self.op.tensors]
            self._launch(x, *self.weights.parts, *self._operands(x, tensors), *self._results(x, y))
        return [y]

    def _checked(self, x: Tensor) -> Tensor:
        """As kernels take it: linear layers tokens x columns, contiguous, aligned."""
        layer = self.op.layer
        if x.dtype != self.dtype:
            raise LoweringError(f"layer {layer.name!r} takes {self.dtype}, not {x.dtype}")
        if layer.op == "linear":
            x = x.reshape(-1, layer.columns)
        elif x.shape[1:] != torch.Size(layer.input_shape[1:]):
            raise LoweringError(
                f"layer {layer.name!r} takes images of {layer.input_shape[1:]}, not {x.shape}"
            )
        x = x.contiguous()
        return x.clone() if x.data_ptr() % ALIGNMENT else x

    def _operands(self, x: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Of the epilogue's steps, in order; tensors have y's shape, as x has its own: tokens as one dimension."""
        vectors, rest = iter(self._vectors), iter(tensors)
        found = []
        for step in split_steps(self.op.epilogue):
            if STEPS[step] == "vector":
                found.append(next(vectors))
            elif STEPS[step] == "tensor":
                tensor = next(rest)
                found.append(tensor.reshape(-1, tensor.shape[-1]) if x.dim() == 2 else tensor)
        return found

    def _results(self, x: Tensor, y: Tensor) -> list[Tensor]:
        """What is written: y, and the workspace that the kernel asks for."""
        floats = self.kernel.workspace(x.shape[0])
        results = [y.reshape(-1, y.shape[-1]) if x.dim() == 2 else y]
        if floats:
            results.append(x.new_empty(floats, dtype=torch.float32))
        return results

    def _shape(self, x: Tensor) -> tuple[int, ...]:
        layer = self.op.layer
        if layer.op == "linear":
            return (*x.shape[:-1], layer.rows)
        return replace(layer, input_shape=tuple(x.shape)).output_shape

    def call_seconds(self, inputs: Sequence[Tensor]) -> list[float]:
        self.device.finish()
        start = time.perf_counter()
        self.run(inputs)
        self.device.finish()
        return [time.perf_counter() - start]

    def shapes(self, inputs: Sequence[Tensor]) -> list[tuple[int, ...]]:
        values = dict(zip(self._names, inputs, strict=True))
        return [self._shape(values[self.op.source])]
