"""What a CUDA kernel is, and a family of them: the interface between kernels and the target that runs them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import tvm
from torch import Tensor

from sparsecomp.codegen.cuda.emitter import Emitter
from sparsecomp.codegen.cuda.runnable import Family
from sparsecomp.layer import Layer


@dataclass(frozen=True)
class Gpu:
    """What a kernel must know of the GPU it is for."""

    arch: str
    """The compiler's name of it, `sm_90`."""
    multiprocessors: int
    shared_bytes: int
    """Shared memory that one block may ask for."""
    name: str = ""
    """As PyTorch names the device; "" of one that is not here."""


@dataclass(frozen=True, eq=False)
class Case:
    """What kernels are asked for: a layer with its weight, on the shapes of its example."""

    layer: Layer
    matrix: Tensor
    """rows x columns, of the layer's dtype, on any device."""
    gpu: Gpu
    epilogue: str = ""

    @property
    def dtype(self) -> torch.dtype:
        """Of weight, input and output."""
        return self.matrix.dtype

    @property
    def dtype_name(self) -> str:
        """As TVM has it: "bfloat16"."""
        return str(self.dtype).removeprefix("torch.")

    @property
    def rows(self) -> int:
        return self.matrix.shape[0]

    @property
    def columns(self) -> int:
        return self.matrix.shape[1]

    @property
    def kept(self) -> float:
        """The share of the weight that is not zero."""
        return float((self.matrix != 0).float().mean())

    @property
    def tokens(self) -> int:
        """Of a linear layer's example, its leading dimensions as one."""
        return self.layer.output_size[1]


class CudaKernel(Protocol):
    """A frozen dataclass of sizes, dtype and schedule, hashable: kernels that are equal share their code.

    x is the layer's input as PyTorch has it, contiguous and aligned to 16 bytes: tokens x columns, or
    images x channels x height x width. So is y. Sums are float32; the epilogue (`sparsecomp/epilogue.py`) is
    applied to them before they are rounded to the dtype.
    """

    def __hash__(self) -> int: ...

    @property
    def epilogue(self) -> str: ...

    @property
    def label(self) -> str:
        """What it is, in a report: "bitmap 64x64", "blocks 32x32 on tensor cores"."""
        ...

    def pack(self, matrix: Tensor) -> tuple[Tensor, ...]:
        """rows x columns -> the operands that the kernel reads, on the matrix's device. Exact."""
        ...

    def unpack(self, operands: Sequence[Tensor]) -> Tensor:
        """Inverse of `pack`, bit for bit; but for the sign of zeros that are not stored."""
        ...

    def workspace(self, tokens: int) -> int:
        """Float32 that the caller lends for a call of so many tokens (images of a convolution); 0 for none."""
        ...

    def function(self, emit: Emitter) -> tvm.tirx.PrimFunc:
        """Parameters in order: x, the operands of `pack`, the operands of the epilogue's steps, y, and where
        `workspace` is not 0 for some number of tokens, a vector of float32. Its name is "main"."""
        ...


__all__ = ["Case", "CudaKernel", "Family", "Gpu"]
