"""Named layers and the weights they are tried with: what `kernels.py` and `ceiling.py` measure."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.prune import mask
from sparsecomp.layer import Layer


def _linear(inputs: int, outputs: int, tokens: int) -> Layer:
    name = f"linear {inputs}->{outputs}, {tokens} tokens"
    return Layer(name, "linear", "weight", (outputs, inputs), (tokens, inputs))


def _conv(inputs: int, outputs: int, kernel: int, size: int) -> Layer:
    name = f"conv {kernel}x{kernel} {inputs}->{outputs}, {size}x{size}"
    weight = (outputs, inputs, kernel, kernel)
    return Layer(name, "conv2d", "weight", weight, (1, inputs, size, size), padding=(kernel // 2,) * 4)


LAYERS = (
    _linear(768, 768, 128),
    _linear(768, 3072, 128),
    _conv(64, 64, 3, 56),
    _conv(256, 256, 3, 14),
    _conv(512, 128, 1, 28),
    _conv(256, 1024, 1, 14),
)


@dataclass(frozen=True)
class Sample:
    """A kind of weight: which pattern its zeros have and how many there are."""

    pattern: str
    sparsity: float
    rows_per_block: int
    """Consecutive rows that share one list of columns; 0: all rows share all columns."""

    @property
    def hand_rows(self) -> tuple[int, ...]:
        """The block heights the hand-written kernels may use: a dense weight allows any."""
        return (self.rows_per_block,) if self.rows_per_block else (4, 8)

    def matrix(self, layer: Layer) -> Tensor:
        """A random weight of this kind for `layer`, rows x columns."""
        matrix = torch.randn(layer.rows, layer.columns, generator=torch.Generator().manual_seed(0))
        return matrix * mask(matrix, self.pattern, self.sparsity)

    def __str__(self) -> str:
        return "dense" if self.pattern == "none" else f"{self.pattern} {self.sparsity:.0%}"


SAMPLES = (
    Sample("unstructured", 0.9, 1),
    Sample("unstructured", 0.7, 1),
    Sample("unstructured", 0.5, 1),
    Sample("4x1", 0.9, 4),
    Sample("none", 0.0, 0),
)


def useful_flops(layer: Layer, matrix: Tensor) -> int:
    """Of one call: two per weight that is kept and output that is wanted."""
    return 2 * int(matrix.count_nonzero()) * math.prod(layer.output_size)
