"""Which gathered-row kernels are tried for a layer."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import product

import torch

from sparsecomp.codegen.cuda.emitter import WARP
from sparsecomp.codegen.cuda.gathered_rows import GatheredRows
from sparsecomp.codegen.cuda.kernel import Case
from sparsecomp.codegen.cuda.runnable import Runnable
from sparsecomp.codegen.cuda.tiles import PixelTiles, Tiling, TokenTiles

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
MOST_KEPT = 0.6
"""Of the weight: shared memory feeds a quarter of the multiply-adds, so that a full weight has no chance."""
FEWEST_OUTPUTS = 16
"""Tokens or pixels: a warp has 32 threads, one for each."""
REGISTERS = 128
"""Sums that a thread may hold."""
WARPS = (8, 16, 4)
WARP_ROWS = (16, 8, 4)
PASSES = (128, 64, 32)
"""Columns of the weight whose inputs are in shared memory."""


class RowsFamily:
    name = "gathered rows"

    def refused(self, case: Case) -> str | None:
        """See `Family`."""
        if case.dtype not in DTYPES:
            return f"no kernel for {case.dtype_name}"
        if case.dtype != torch.float32 and case.layer.op == "linear":
            return "in half precision tensor cores are faster than it can be"
        if case.layer.groups > 1:
            return f"the {case.layer.groups} groups of the convolution read different channels"
        outputs = math.prod(case.layer.output_size)
        if outputs < FEWEST_OUTPUTS:
            return f"{outputs} outputs of a row leave most threads of a warp idle"
        kept = case.kept
        if kept > MOST_KEPT:
            return f"{kept:.0%} of the weight are not zero, and more than {MOST_KEPT:.0%} cannot be faster than dense"
        if not any(True for _ in self._all(case)):
            return "its inputs do not fit into shared memory"
        return None

    def kernels(self, case: Case) -> Sequence[Runnable]:
        """See `Family`."""
        return list(dict.fromkeys(self._all(case)))  # narrow layers have several passes alike

    def _all(self, case: Case) -> Iterator[GatheredRows]:
        for columns, warps, rows in product(PASSES, WARPS, WARP_ROWS):
            if warps * rows > 2 * case.rows and (warps, rows) != (4, 4):
                continue
            for tiling in tilings(case, columns):
                fits = 4 * tiling.floats <= case.gpu.shared_bytes
                if fits and rows * (tiling.width // WARP) <= REGISTERS:
                    yield GatheredRows(case.rows, case.dtype_name, tiling, warps, rows)


def tilings(case: Case, columns: int) -> Iterator[Tiling]:
    """Of about so many columns of the weight a pass."""
    layer = case.layer
    if layer.op == "linear":
        for width in (128, 256):
            if width == 128 or case.tokens >= width:
                yield TokenTiles(case.columns, width, min(columns, max(8, case.columns)))
        return
    taps = math.prod(layer.weight_shape[2:])
    pixels = math.prod(layer.output_size)
    for width in (128, 64, 32):
        if width == 32 or pixels > width // 2:
            yield PixelTiles(
                layer.weight_shape[1],
                layer.input_shape[2],
                layer.input_shape[3],
                (layer.weight_shape[2], layer.weight_shape[3]),
                layer.stride,
                layer.padding,
                layer.dilation,
                width,
                max(1, min(layer.weight_shape[1], 2 * columns // taps)),
            )
