"""Where an element of one item lies in memory, features first.

An *item* is what one pass over a region's calls computes: a tile of tokens, or one image. A value of an item
is a stack of *planes*, one per feature or channel, each a row of *columns* (tokens, or the pixels of an image
row after row). A gathered-row kernel walks the columns of its input and output in step, so both lie on the
same grid; only the plane differs by which channel is read.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from sparsecomp.layer import Layer

FLOAT = 4
"""Bytes."""
LINE = 16
"""Floats in a cache line: planes and positions (0, 0) are aligned to it."""
TILE = 64
"""Tokens in an item: four vectors of 16 lanes, and a feature row of 256 bytes."""
ROW_BLOCK = 8
"""Stored channels are a multiple of this, so that no kernel has a remainder of rows."""


def round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


@dataclass(frozen=True)
class Tokens:
    """Tiles of tokens: feature k of token t of a tile lies at `k * tile + t`.

    Without a `length` an item is one tile, and tokens of all sequences follow one another; the last tile may be
    partly filled. With it an item is one sequence of `length` tokens, which begins a tile of its own.
    """

    tile: int = TILE
    length: int = 0

    @property
    def tiles(self) -> int:
        """In an item."""
        return -(-self.length // self.tile) if self.length else 1

    @property
    def tiling(self) -> Tokens:
        """All that a weight stream depends on."""
        return Tokens(self.tile)

    @property
    def plane(self) -> int:
        return self.tile

    @property
    def origin(self) -> int:
        return 0

    @property
    def columns(self) -> int:
        return self.tile

    def __str__(self) -> str:
        return f"tokens[{self.tile}]" + (f" of {self.length}" if self.length else "")


MANY_TOKENS = 64
"""Tokens in an item of `TokenRows`: the weights are read once for all of them."""


@dataclass(frozen=True)
class TokenRows:
    """Tokens first, as PyTorch has them: feature k of token t lies at `t * channels + k`. For few tokens."""

    tile: int = MANY_TOKENS
    length = 0
    tiles = 1
    plane = 1
    origin = 0

    @property
    def tiling(self) -> TokenRows:
        return self

    @property
    def columns(self) -> int:
        return self.tile

    def __str__(self) -> str:
        return f"token rows[{self.tile}]"


@dataclass(frozen=True)
class Planes:
    """An image: pixel (h, w) of channel c lies at `c * plane + origin + h * row + w`.

    `row` exceeds `width` by the padding columns, which the end of one image row and the start of the next
    share; rows of padding lie before `origin` and after the last row. `height` and `width` are those of the
    pixels that mean something: several values of one grid may differ in them.
    """

    height: int
    width: int
    row: int
    plane: int
    origin: int

    @property
    def columns(self) -> int:
        """From the first pixel to the last, padding columns between image rows included."""
        return (self.height - 1) * self.row + self.width

    @cached_property
    def mask(self) -> npt.NDArray[np.float32]:
        """1 where a column is a pixel, 0 where it is padding; a whole number of cache lines."""
        columns = np.arange(round_up(self.columns, LINE))
        return ((columns % self.row < self.width) & (columns < self.columns)).astype(np.float32)

    def __str__(self) -> str:
        return f"planes[{self.height}x{self.width} row {self.row} plane {self.plane}]"


Geometry = Tokens | TokenRows | Planes


@dataclass(frozen=True)
class Margin:
    """Zero padding that the readers of a value reach into, in rows and columns of its grid."""

    up: int = 0
    down: int = 0
    left: int = 0
    right: int = 0

    def __or__(self, other: Margin) -> Margin:
        return Margin(
            max(self.up, other.up),
            max(self.down, other.down),
            max(self.left, other.left),
            max(self.right, other.right),
        )

    def __bool__(self) -> bool:
        return bool(self.up or self.down or self.left or self.right)


def grid(sizes: list[tuple[int, int]], margin: Margin, span: int) -> Planes:
    """The grid that values of these heights and widths share; `span` is the widest kernel in columns.

    A row at least as long as the widest kernel keeps the offsets of its taps distinct. The distance between
    planes is an odd number of cache lines, so that channels do not fall on the same cache sets.
    """
    height, width = (max(extents) for extents in zip(*sizes, strict=True))
    row = max(width + max(margin.left, margin.right), span)
    origin = round_up(margin.up * row + margin.left, LINE)
    plane = round_up(origin + (height + margin.down) * row + margin.right, LINE) + LINE
    if plane // LINE % 2 == 0:
        plane += LINE
    return Planes(height, width, row, plane, origin)


@dataclass(frozen=True)
class Taps:
    """How a convolution reads its input: strided axes are split into phases, each a plane of its own.

    Pixel (h * stride + phase) of the image is pixel h of plane `phase`, so that a kernel walks every plane
    with step one. `rows[r]` and `columns[s]` are the (phase, shift) of kernel position r, s.
    """

    rows: tuple[tuple[int, int], ...]
    columns: tuple[tuple[int, int], ...]

    @staticmethod
    def of(layer: Layer) -> Taps:
        height, width = layer.weight_shape[2:]

        def axis(extent: int, stride: int, padding: int, dilation: int) -> tuple[tuple[int, int], ...]:
            starts = (position * dilation - padding for position in range(extent))
            return tuple((start % stride, start // stride) for start in starts)

        return Taps(
            axis(height, layer.stride[0], layer.padding[0], layer.dilation[0]),
            axis(width, layer.stride[1], layer.padding[2], layer.dilation[1]),
        )

    @cached_property
    def phases(self) -> tuple[tuple[int, int], ...]:
        """The (row, column) phases that the kernel reads, in the order of their planes."""
        return tuple(sorted({(r[0], s[0]) for r in self.rows for s in self.columns}))

    @property
    def span(self) -> int:
        shifts = [shift for _, shift in self.columns]
        return max(shifts) - min(shifts) + 1

    def margin(self, layer: Layer, height: int, width: int) -> Margin:
        """Padding needed around a phase plane of this size to compute every output."""
        out_height, out_width = layer.output_size
        row_shifts, column_shifts = [r[1] for r in self.rows], [s[1] for s in self.columns]
        return Margin(
            up=max(0, -min(row_shifts)),
            down=max(0, out_height + max(row_shifts) - height),
            left=max(0, -min(column_shifts)),
            right=max(0, out_width + max(column_shifts) - width),
        )


def phase_size(layer: Layer) -> tuple[int, int]:
    """Height and width of a phase plane of the layer's input."""
    return math.ceil(layer.input_shape[2] / layer.stride[0]), math.ceil(
        layer.input_shape[3] / layer.stride[1]
    )


def offsets(layer: Layer, geometry: Geometry) -> npt.NDArray[np.int64]:
    """Offset of each column of the weight matrix from the input's position (0, 0): groups x columns.

    linear: k * plane. Convolution: channel * plane + row shift * row + column shift, where "channel" counts
    the phase planes of a strided input; group g reads channels from `g * input channels / groups` on.
    """
    if not isinstance(geometry, Planes):
        return (np.arange(layer.columns, dtype=np.int64) * geometry.plane)[None]
    taps = Taps.of(layer)
    index = {phase: position for position, phase in enumerate(taps.phases)}
    spatial = np.array(
        [
            [index[r[0], s[0]] * geometry.plane + r[1] * geometry.row + s[1] for s in taps.columns]
            for r in taps.rows
        ],
        dtype=np.int64,
    ).reshape(-1)
    channels = np.arange(layer.groups * layer.weight_shape[1], dtype=np.int64) * len(taps.phases)
    table = channels[:, None] * geometry.plane + spatial[None, :]
    return table.reshape(layer.groups, layer.columns)
