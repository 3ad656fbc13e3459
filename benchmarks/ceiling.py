"""What a hand-written kernel reaches on this machine: `python -m benchmarks.ceiling`.

`ceiling.c` is compiled for the machine at hand into a temporary folder and called through ctypes.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.layers import LAYERS, SAMPLES, useful_flops
from sparsecomp.layer import Layer

SOURCE = Path(__file__).with_name("ceiling.c")
COLUMNS_PER_PASS = (32, 64, 96, 128, 256, 512)
Timer = Callable[[Callable[[int], float]], float]
"""Takes a function that runs a kernel so many times and gives the mean; says how long one run takes."""


class NoCompilerError(RuntimeError):
    """There is no C compiler to build the hand-written kernels with."""


class _Problem(ctypes.Structure):
    """`Problem` of ceiling.c, field by field."""

    _fields_ = (
        ("stream", ctypes.c_void_p),
        ("counts", ctypes.c_void_p),
        ("x", ctypes.c_void_p),
        ("y", ctypes.c_void_p),
        ("y_stride", ctypes.c_int64),
        ("blocks", ctypes.c_int32),
        ("passes", ctypes.c_int32),
        ("columns", ctypes.c_int32),
    )


@functools.cache
def library() -> ctypes.CDLL:
    """`ceiling.c`, compiled and loaded once a process."""
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise NoCompilerError(
            "no C compiler found: install gcc or clang, or set CC, to measure the FMA peak "
            "and the hand-written kernels"
        )
    with tempfile.TemporaryDirectory() as folder:
        binary = Path(folder) / "ceiling.so"
        command = [compiler, "-O3", "-march=native", "-shared", "-fPIC", "-o", str(binary), str(SOURCE)]
        built = subprocess.run(command, capture_output=True, text=True, check=False)
        if built.returncode:
            raise NoCompilerError(f"{' '.join(command)} failed:\n{built.stderr}")
        loaded = ctypes.CDLL(str(binary))
    loaded.fma_peak.restype = ctypes.c_double
    loaded.run.restype = ctypes.c_double
    loaded.run.argtypes = (ctypes.c_int, ctypes.POINTER(_Problem), ctypes.c_int)
    return loaded


def fma_peak() -> float:
    """The best fp32 multiply-add rate of one core, in GFLOP/s."""
    return float(library().fma_peak())


@dataclass(frozen=True)
class Variant:
    """One way to run a layer: a kernel of ceiling.c and how many columns of the weight a pass covers."""

    index: int
    rows: int
    """That share one list of offsets."""
    vectors: int
    """Of one row of Y that are kept in registers."""
    columns_per_pass: int

    def __str__(self) -> str:
        return f"R={self.rows} V={self.vectors} kb={self.columns_per_pass}"


def variants(rows: int, columns: int) -> Iterator[Variant]:
    """All ways to run a weight of `columns` whose blocks have `rows` rows."""
    height, vectors = ctypes.c_int(), ctypes.c_int()
    for index in range(library().variant_count()):
        library().variant(index, ctypes.byref(height), ctypes.byref(vectors))
        if height.value == rows:
            for covered in (*(size for size in COLUMNS_PER_PASS if size < columns), columns):
                yield Variant(index, rows, vectors.value, covered)


@dataclass(frozen=True)
class Planes:
    """How a layer's activations lie: features or channels first, each on a plane padded with zeros."""

    channels: int
    height: int
    width: int
    padding: tuple[int, int, int, int]
    """Top, bottom, left, right."""
    kernel: tuple[int, int]

    @staticmethod
    def of(layer: Layer) -> Planes:
        if layer.op == "linear":
            return Planes(layer.columns, 1, layer.output_size[1], (0, 0, 0, 0), (1, 1))
        if (layer.stride, layer.dilation, layer.groups) != ((1, 1), (1, 1), 1) or layer.input_shape[0] != 1:
            raise ValueError(
                f"{layer.name}: the hand-written kernel has stride, dilation, groups and batch 1"
            )
        _, channels, height, width = layer.input_shape
        kernel = (layer.weight_shape[2], layer.weight_shape[3])
        assert min(layer.padding[2:]) < kernel[1], "an output row must fit into a padded input row"
        return Planes(channels, height, width, layer.padding, kernel)

    @property
    def row(self) -> int:
        """Floats from one row of pixels to the next; the right pad of a row is the left pad of the next."""
        return self.width + max(self.padding[2:])

    @property
    def size(self) -> int:
        """Floats from one plane to the next: an odd number of cache lines, so that the same pixel of many
        planes does not fall into the same set of the cache."""
        top, bottom, _, right = self.padding
        floats = (self.height + top + bottom) * self.row + right
        return (-(-floats // 16) | 1) * 16

    @property
    def columns(self) -> int:
        """Of Y, from the first wanted pixel to the last; those in the pad column between are waste."""
        height, width = self.output
        return (height - 1) * self.row + width

    @property
    def output(self) -> tuple[int, int]:
        """Height and width of the result."""
        top, bottom, left, right = self.padding
        return self.height + top + bottom - self.kernel[0] + 1, self.width + left + right - self.kernel[1] + 1

    def offsets(self) -> Tensor:
        """Where the input of each column of the weight lies, in floats."""
        channel = torch.arange(self.channels)[:, None, None] * self.size
        down = torch.arange(self.kernel[0])[:, None] * self.row
        return (channel + down + torch.arange(self.kernel[1])).flatten().to(torch.int32)

    def lay_out(self, x: Tensor) -> Tensor:
        """The activations as PyTorch has them -> the padded planes in one piece of memory."""
        image = x.reshape(-1, self.channels).t() if x.dim() < 4 else x[0]
        image = image.reshape(self.channels, self.height, self.width)
        top, bottom, left, _ = self.padding
        rows = F.pad(image, (left, self.row - self.width - left, top, bottom)).flatten(1)
        overrun = 16 * 16  # the whole of a last tile
        return F.pad(F.pad(rows, (0, self.size - rows.shape[1])).flatten(), (0, overrun + self.size))


class HandWritten:
    """One layer, packed for one variant and ready to run; the bias and the activation are left out."""

    def __init__(self, layer: Layer, matrix: Tensor, x: Tensor, variant: Variant) -> None:
        self.layer = layer
        self.variant = variant
        self._planes = Planes.of(layer)
        self._stream, self._counts = _pack(matrix, self._planes.offsets(), variant)
        self._x = self._planes.lay_out(x)
        stride = (-(-(self._planes.columns + 16 * 16) // 16) | 1) * 16
        self._y = torch.zeros(layer.rows, stride)
        self._problem = _Problem(
            self._stream.data_ptr(),
            self._counts.data_ptr(),
            self._x.data_ptr(),
            self._y.data_ptr(),
            stride,
            self._counts.shape[1],
            self._counts.shape[0],
            self._planes.columns,
        )

    def seconds(self, repeats: int) -> float:
        """Of one call on one thread: the mean of `repeats`."""
        return float(library().run(self.variant.index, ctypes.byref(self._problem), repeats))

    def output(self) -> Tensor:
        """The result of the last call, as rows x height x width."""
        height, width = self._planes.output
        rows = self._y[:, : height * self._planes.row].reshape(self.layer.rows, height, self._planes.row)
        return rows[:, :, :width]


def _pack(matrix: Tensor, offsets: Tensor, variant: Variant) -> tuple[Tensor, Tensor]:
    """A weight rows x columns -> its stream of entries, and the entries per pass and block of rows."""
    blocks = matrix.reshape(-1, variant.rows, matrix.shape[1])
    block, column = (blocks != 0).any(1).nonzero(as_tuple=True)
    in_pass = column // variant.columns_per_pass
    order = in_pass.argsort(stable=True)
    block, column, in_pass = block[order], column[order], in_pass[order]
    values = blocks[block, :, column].float()
    stream = torch.cat((values, offsets[column].view(torch.float32)[:, None]), 1).contiguous()
    passes = -(-matrix.shape[1] // variant.columns_per_pass)
    counts = torch.bincount(in_pass * len(blocks) + block, minlength=passes * len(blocks))
    return stream, counts.to(torch.int32).reshape(passes, len(blocks))


def best_hand_written(layer: Layer, matrix: Tensor, rows: Iterable[int], timer: Timer) -> tuple[str, float]:
    """The fastest variant among those whose blocks have so many rows: its description and seconds."""
    x = layer.example(torch.Generator().manual_seed(0))
    found = [
        (timer(HandWritten(layer, matrix, x, variant).seconds), str(variant))
        for height in rows
        for variant in variants(height, layer.columns)
    ]
    if not found:
        raise ValueError(f"ceiling.c has no kernel whose blocks have {rows} rows")
    seconds, variant = min(found)
    return variant, seconds


def hot_seconds(run: Callable[[int], float], budget: float = 0.02) -> float:
    """The best of a few series of runs in a row, about `budget` seconds in all."""
    repeats = max(1, int(budget / 4 / run(1)))
    return min(run(repeats) for _ in range(3))


def main() -> None:
    """Print what the hand-written kernels reach, layer by layer."""
    peak = fma_peak()
    print(f"fp32 FMA peak of one core: {peak:.0f} GFLOP/s; weights and activations are warm in the caches")
    for layer, sample in itertools.product(LAYERS, SAMPLES):
        matrix = sample.matrix(layer)
        variant, seconds = best_hand_written(layer, matrix, sample.hand_rows, hot_seconds)
        rate = useful_flops(layer, matrix) / seconds / 1e9
        print(
            f"{layer.name:30} {sample!s:18} {seconds * 1e6:8.1f} us {rate:6.1f} GFLOP/s "
            f"{rate / peak:4.0%} of peak   {variant}"
        )


if __name__ == "__main__":
    main()
