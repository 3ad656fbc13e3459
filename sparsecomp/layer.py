"""A layer: one place in the graph where a constant weight multiplies activations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Op = Literal["linear", "conv1d", "conv2d"]


@dataclass(frozen=True)
class Layer:
    """What is known of a layer without looking at the values of its weight.

    A convolution of one dimension is kept as one of two with height 1, so `weight_shape` has two
    entries (linear: out x in) or four (convolution: out x in/groups x height x width).
    """

    name: str
    """The module path the user knows, `encoder.layer.0.attention.self.query`."""
    op: Op
    weight: str
    """Name of the parameter in the captured graph."""
    weight_shape: tuple[int, ...]
    input_shape: tuple[int, ...]
    """Of the example inputs; convolution: N x C x H x W."""
    transposed: bool = False
    """True where the model stores the weight in x out (`addmm`, `matmul` by a constant)."""
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    """Zeros around the input: top, bottom, left, right."""
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    held_by: str = ""
    """Another operator that reads the parameter and needs it dense, where there is one."""
    source: str = ""
    """The user's source line that calls the layer, as `file:line`, where it is known."""

    @property
    def rows(self) -> int:
        """Output features or channels: rows of the weight as a matrix."""
        return self.weight_shape[0]

    @property
    def columns(self) -> int:
        """Inputs of one output: columns of the weight as a matrix."""
        return math.prod(self.weight_shape[1:])

    @property
    def reading(self) -> Layer:
        """How the parameter is read: the same for all layers that can share a choice. Padding is left out,
        which may differ with the size of the image."""
        return replace(self, name="", source="", input_shape=(), padding=(0, 0, 0, 0))

    @property
    def output_size(self) -> tuple[int, int]:
        """Height and width of a convolution's output; (1, tokens) for a linear layer."""
        if self.op == "linear":
            return 1, math.prod(self.input_shape[:-1])
        top, bottom, left, right = self.padding
        height, width = (
            (size + pad - dilation * (kernel - 1) - 1) // stride + 1
            for size, pad, dilation, kernel, stride in zip(
                self.input_shape[2:],
                (top + bottom, left + right),
                self.dilation,
                self.weight_shape[2:],
                self.stride,
                strict=True,
            )
        )
        return height, width

    @property
    def output_shape(self) -> tuple[int, ...]:
        """On the example inputs."""
        if self.op == "linear":
            return (*self.input_shape[:-1], self.rows)
        return (self.input_shape[0], self.rows, *self.output_size)

    @property
    def dense_flops(self) -> int:
        """Two per multiply-add, on the example inputs."""
        items = 1 if self.op == "linear" else self.input_shape[0]
        return 2 * self.rows * self.columns * items * math.prod(self.output_size)

    def matrix(self, weight: Tensor) -> Tensor:
        """The parameter as the model stores it -> the matrix rows x columns that multiplies activations."""
        matrix = weight.t() if self.transposed else weight.reshape(self.rows, self.columns)
        assert matrix.shape == (self.rows, self.columns)
        return matrix

    def stored(self, matrix: Tensor) -> Tensor:
        """Inverse of `matrix`, up to the extra dimension of a conv1d: rows x columns -> the parameter."""
        if self.transposed:
            return matrix.t().contiguous()
        shape = list(self.weight_shape)
        if self.op == "conv1d":
            del shape[2]
        return matrix.reshape(shape)

    def dense(self, x: Tensor, matrix: Tensor, bias: Tensor | None = None) -> Tensor:
        """The layer in plain PyTorch, its weight given as a matrix: the meaning every kernel must have."""
        if self.op == "linear":
            return F.linear(x, matrix, bias)
        weight = matrix.reshape(self.weight_shape)
        return padded_conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)

    def example(self, generator: torch.Generator | None = None) -> Tensor:
        """Random activations of the example's shape, float32."""
        return torch.randn(self.input_shape, generator=generator, dtype=torch.float32)


def padded_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """conv2d with `padding` given for each side: top, bottom, left, right."""
    top, bottom, left, right = padding
    if top == bottom and left == right:
        return F.conv2d(x, weight, bias, list(stride), [top, left], list(dilation), groups)
    return F.conv2d(
        F.pad(x, (left, right, top, bottom)), weight, bias, list(stride), 0, list(dilation), groups
    )
