"""How the input of a layer lies in shared memory, a tile at a time: what the gathered-row kernel reads.

An output of a tile is found at a place in it, a weight of a pass at an offset: their sum is where the input lies that
the two multiply. So a linear layer and a convolution are one kernel, and a convolution needs no im2col.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from tvm.script.ir_builder import tirx as T

from sparsecomp.codegen.cuda.emitter import Array, Emitter, Expr, i64

VECTOR = 4
"""float32 that one instruction reads from shared memory."""


def ceil_div(value: Expr, size: int) -> Expr:
    return -(-value // size) if isinstance(value, int) else T.truncdiv(value + (size - 1), T.int32(size))


class Tiling(Protocol):
    """Frozen. Outputs are counted along what lies together in y: tokens, or the pixels of an image."""

    @property
    def width(self) -> int:
        """Outputs of a tile, for each row of the weight."""
        ...

    @property
    def lanes(self) -> int:
        """Outputs of a thread that lie together in shared memory, aligned to their size."""
        ...

    @property
    def columns(self) -> int:
        """Of the weight."""
        ...

    @property
    def pass_columns(self) -> int:
        """Of the weight, whose inputs are in shared memory at a time."""
        ...

    @property
    def floats(self) -> int:
        """Shared memory of a tile."""
        ...

    def offsets(self) -> Tensor:
        """int64: of each column of a pass, in the tile."""
        ...

    def input_shape(self) -> tuple[int | str, ...]: ...

    def output_shape(self, rows: int) -> tuple[int | str, ...]: ...

    def tiles(self, emit: Emitter) -> Expr:
        """In all."""
        ...

    def fill(
        self, emit: Emitter, x: Array, shared: Array, tile: Expr, step: Expr, thread: Expr, threads: int
    ) -> None:
        """One thread's part of the tile's inputs for a pass; zeros for what there is none of."""
        ...

    def place(self, tile: Expr, number: Expr) -> Expr:
        """Of output `number` of the tile, in it."""
        ...

    def exists(self, emit: Emitter, tile: Expr, number: Expr) -> Expr: ...

    def output(self, rows: int, row: Expr, tile: Expr, number: Expr) -> Expr:
        """Where y has it."""
        ...


@dataclass(frozen=True)
class TokenTiles:
    """Of a linear layer: the tile is transposed, so that the threads of a warp read neighbours."""

    columns: int
    width: int
    """Tokens of a tile, a multiple of 4."""
    pass_columns: int

    @property
    def lanes(self) -> int:
        return VECTOR

    @property
    def pitch(self) -> int:
        """Floats from one column to the next: threads that fill 8 columns of 4 tokens meet 32 banks."""
        return self.width + VECTOR

    @property
    def floats(self) -> int:
        return self.pass_columns * self.pitch

    def offsets(self) -> Tensor:
        return torch.arange(self.pass_columns) * self.pitch

    def input_shape(self) -> tuple[int | str, ...]:
        return ("tokens", self.columns)

    def output_shape(self, rows: int) -> tuple[int | str, ...]:
        return ("tokens", rows)

    def tiles(self, emit: Emitter) -> Expr:
        return ceil_div(emit.sizes["tokens"], self.width)

    def fill(
        self, emit: Emitter, x: Array, shared: Array, tile: Expr, step: Expr, thread: Expr, threads: int
    ) -> None:
        group = 8 * VECTOR
        across = ceil_div(self.pass_columns, 8)
        groups = across * (self.width // VECTOR)
        first, inside = T.bind(T.truncdiv(thread, T.int32(group))), T.bind(thread % group)
        with T.serial(ceil_div(groups, threads // group)) as turn:
            number = T.bind(turn * (threads // group) + first)
            column = T.bind(number % across * 8 + inside // VECTOR)
            token = T.bind(T.truncdiv(number, T.int32(across)) * VECTOR + inside % VECTOR)
            with T.If(T.And(column < self.pass_columns, token < self.width)), T.Then():
                source = T.bind(step * self.pass_columns + column)
                row = T.bind(tile * self.width + token)
                is_there = T.And(row < emit.sizes["tokens"], source < self.columns)
                value = emit.load(x, i64(row) * self.columns + source)
                shared[column * self.pitch + token] = T.if_then_else(is_there, value, T.float32(0.0))

    def place(self, tile: Expr, number: Expr) -> Expr:
        return number

    def exists(self, emit: Emitter, tile: Expr, number: Expr) -> Expr:
        return tile * self.width + number < emit.sizes["tokens"]

    def output(self, rows: int, row: Expr, tile: Expr, number: Expr) -> Expr:
        return i64(tile * self.width + number) * rows + row


@dataclass(frozen=True)
class PixelTiles:
    """Of a convolution: the rows of the padded input that so many pixels of the output reach."""

    channels: int
    height: int
    """Of the input; `width` is that of a tile."""
    breadth: int
    """Of the input's rows."""
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int, int, int]
    dilation: tuple[int, int]
    width: int
    """Pixels of a tile."""
    pass_channels: int

    @property
    def lanes(self) -> int:
        return 1

    @property
    def taps(self) -> int:
        return math.prod(self.kernel)

    @property
    def columns(self) -> int:
        return self.channels * self.taps

    @property
    def pass_columns(self) -> int:
        return self.pass_channels * self.taps

    @property
    def out(self) -> tuple[int, int]:
        """Height and width of the output."""
        top, bottom, left, right = self.padding
        sizes = ((self.height + top + bottom), (self.breadth + left + right))
        return tuple(  # type: ignore[return-value]
            (size - dilation * (kernel - 1) - 1) // stride + 1
            for size, dilation, kernel, stride in zip(
                sizes, self.dilation, self.kernel, self.stride, strict=True
            )
        )

    @property
    def per_image(self) -> int:
        """Tiles."""
        return ceil_div(math.prod(self.out), self.width)  # type: ignore[no-any-return]

    @property
    def pitch(self) -> int:
        """Of a row of the padded input, as far as it is read."""
        return (self.out[1] - 1) * self.stride[1] + (self.kernel[1] - 1) * self.dilation[1] + 1

    @property
    def tile_rows(self) -> int:
        """Of the padded input."""
        reached = min((self.width - 2) // self.out[1] + 2, self.out[0])
        return (reached - 1) * self.stride[0] + (self.kernel[0] - 1) * self.dilation[0] + 1

    @property
    def floats(self) -> int:
        return self.pass_channels * self.tile_rows * self.pitch

    def offsets(self) -> Tensor:
        channel = torch.arange(self.pass_channels)[:, None, None] * (self.tile_rows * self.pitch)
        down = torch.arange(self.kernel[0])[:, None] * (self.dilation[0] * self.pitch)
        along = torch.arange(self.kernel[1]) * self.dilation[1]
        return (channel + down + along).flatten()

    def input_shape(self) -> tuple[int | str, ...]:
        return ("images", self.channels, self.height, self.breadth)

    def output_shape(self, rows: int) -> tuple[int | str, ...]:
        return ("images", rows, *self.out)

    def tiles(self, emit: Emitter) -> Expr:
        return emit.sizes["images"] * self.per_image

    def _first_row(self, tile: Expr) -> Expr:
        """Of the padded input, that the tile's first pixel reaches."""
        return tile % self.per_image * self.width // self.out[1] * self.stride[0]

    def fill(
        self, emit: Emitter, x: Array, shared: Array, tile: Expr, step: Expr, thread: Expr, threads: int
    ) -> None:
        image, first = T.bind(T.truncdiv(tile, T.int32(self.per_image))), T.bind(self._first_row(tile))
        plane = self.tile_rows * self.pitch
        with T.serial(ceil_div(self.floats, threads)) as turn:
            number = T.bind(turn * threads + thread)
            with T.If(number < self.floats), T.Then():
                channel = T.bind(step * self.pass_channels + number // plane)
                row = T.bind(first + number % plane // self.pitch - self.padding[0])
                column = T.bind(number % self.pitch - self.padding[2])
                inside = [channel < self.channels, row >= 0, row < self.height]
                inside += [column >= 0, column < self.breadth]
                is_there = inside[0]
                for condition in inside[1:]:
                    is_there = T.And(is_there, condition)
                source = ((i64(image) * self.channels + channel) * self.height + row) * self.breadth + column
                value = emit.load(x, source)
                shared[number] = T.if_then_else(is_there, value, T.float32(0.0))

    def place(self, tile: Expr, number: Expr) -> Expr:
        """Those past the last pixel have the last one's, and are not stored."""
        last = math.prod(self.out) - 1
        pixel = T.bind(T.min(tile % self.per_image * self.width + number, T.int32(last)))
        down = pixel // self.out[1] * self.stride[0] - self._first_row(tile)
        return down * self.pitch + pixel % self.out[1] * self.stride[1]

    def exists(self, emit: Emitter, tile: Expr, number: Expr) -> Expr:
        return tile % self.per_image * self.width + number < math.prod(self.out)

    def output(self, rows: int, row: Expr, tile: Expr, number: Expr) -> Expr:
        image, pixel = T.truncdiv(tile, T.int32(self.per_image)), tile % self.per_image * self.width + number
        return (i64(image) * rows + row) * math.prod(self.out) + pixel
