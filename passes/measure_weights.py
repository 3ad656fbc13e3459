"""Measure the zeros of a weight: how many there are, and which pattern they follow."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sparsecomp.facts import Block, Facts
from sparsecomp.picture import picture_of
from sparsecomp.program import Program

_LARGEST = 16
"""Longest side of a block, and longest group of an N:M pattern."""

BLOCKS: tuple[Block, ...] = tuple(
    block for side in (2, 4, 8, _LARGEST) for block in ((side, 1), (1, side), (side, side))
)
"""Block shapes tried, each after the shape half its size."""

GROUPS = (2, 4, 8, _LARGEST)
"""The m of the N:M patterns tried."""

NEARLY_FULL = 0.95
"""Share of non-zeros among the elements a pattern stores from which the weight follows that pattern."""

MOST = 0.5
"""Share of the zeros a pattern must skip. Fill alone would find every block in a weight with few zeros."""


def measure_weight(name: str, weight: Tensor) -> Facts:
    """The facts of one layer's weight, out x in or out x in/groups x height x width, of at least one element.

    Zeros are exact zeros, of either sign; the dtype does not matter.
    """
    shape = tuple(weight.shape)
    used = (weight != 0).cpu().reshape(shape[0], -1)
    rows, columns = used.shape
    counts = _count_blocks(used)
    row_lengths = counts[1, _LARGEST].sum(dim=1)[:rows]
    column_lengths = counts[_LARGEST, 1].sum(dim=0)[:columns]
    channels = column_lengths.reshape(shape[1], -1).any(dim=1)
    nonzeros = int(row_lengths.sum())
    live_rows, live_columns = int(row_lengths.count_nonzero()), int(column_lengths.count_nonzero())
    stored = {
        block: _stored(block, counts[block], rows, columns)
        for block in BLOCKS
        if block[0] <= rows and block[1] <= columns
    }
    facts = Facts(
        layer=name,
        shape=shape,
        nonzeros=nonzeros,
        zero_rows=rows - live_rows,
        zero_columns=columns - live_columns,
        zero_channels=shape[1] - int(channels.count_nonzero()),
        zero_kernels=_zero_kernels(used, shape),
        block_fill={block: nonzeros / size if size else 1.0 for block, size in stored.items()},
        best_block=_best_block(stored, nonzeros, live_rows * live_columns),
        n_of_m=_n_of_m(counts, row_lengths, columns),
        row_mean=nonzeros / rows,
        row_std=float(row_lengths.double().std(correction=0)),
        row_max=int(row_lengths.max()),
        structure="",
        picture=picture_of(used),
    )
    return replace(facts, structure=_structure(facts))


def _count_blocks(used: Tensor) -> dict[Block, Tensor]:
    """Non-zeros of every block of every shape, (1, 1) included, the matrix padded with zeros to whole blocks.

    A block is the sum of two (or four) blocks half its size, so that all shapes together cost about three
    passes over the matrix.
    """
    rows, columns = used.shape
    padding = (0, -columns % _LARGEST, 0, -rows % _LARGEST)
    # 16 bits: a block of 16 x 16 holds up to 256.
    counts: dict[Block, Tensor] = {(1, 1): F.pad(used.to(torch.int16).contiguous(), padding)}
    for height, width in BLOCKS:
        total = counts[max(height // 2, 1), max(width // 2, 1)]
        if height > 1:
            total = total[0::2] + total[1::2]
        if width > 1:
            total = total[:, 0::2] + total[:, 1::2]
        counts[height, width] = total
    return counts


def _stored(block: Block, counts: Tensor, rows: int, columns: int) -> int:
    """Elements of the blocks that are not all zero; of a block across the edge, those inside the matrix."""
    high, wide = block
    below, beside = -rows % high, -columns % wide  # what the last row and column of blocks lack
    used = counts[: -(-rows // high), : -(-columns // wide)].numpy()
    whole, last_row, last_column = (int(np.count_nonzero(part)) for part in (used, used[-1], used[:, -1]))
    lacking = below * wide * last_row + high * beside * last_column
    return high * wide * whole - lacking + below * beside * int(used[-1, -1] > 0)


def _follows(stored: int, nonzeros: int, live: int) -> bool:
    """Whether a pattern that keeps `stored` elements is nearly full and skips most zeros.

    Only zeros among the `live` elements are to be skipped, those where neither the row nor the column is all
    zero: the others are gone with their row or column, whatever the pattern.
    """
    zeros = live - nonzeros
    return zeros > 0 and nonzeros >= NEARLY_FULL * stored and live - stored >= MOST * zeros


def _best_block(stored: Mapping[Block, int], nonzeros: int, live: int) -> Block:
    """The largest block the weight follows; of two as large the fuller, then the taller."""
    found = [block for block, size in stored.items() if _follows(size, nonzeros, live)]
    return max(found, key=lambda block: (math.prod(block), -stored[block], block), default=(1, 1))


def _n_of_m(counts: Mapping[Block, Tensor], row_lengths: Tensor, columns: int) -> tuple[int, int] | None:
    """The tightest N:M pattern that rows with any weight nearly fill; of two as tight the finer."""
    nonzeros, live_rows = int(row_lengths.sum()), int(row_lengths.count_nonzero())
    found: list[tuple[int, int]] = []
    for m in GROUPS:
        groups = columns // m  # whole ones: a shorter last group may hold no more than n, but well fewer
        n = int(counts[1, m].max())
        kept = nonzeros - int(counts[1, m][:, groups:].sum())
        stored = n * groups * live_rows
        if 0 < n < m and groups and kept >= NEARLY_FULL * stored:
            found.append((n, m))
    return min(found, key=lambda pattern: (pattern[0] / pattern[1], pattern[1]), default=None)


def _zero_kernels(used: Tensor, shape: tuple[int, ...]) -> int:
    """(output, input channel) pairs of a convolution without any weight; 0 for a linear layer."""
    if len(shape) == 2:
        return 0
    kernels = used.reshape(shape[0] * shape[1], -1).any(dim=1)
    return kernels.numel() - int(kernels.count_nonzero())


def _structure(facts: Facts) -> str:
    """The name of the pattern that explains most of the zeros, of two such patterns the simpler to exploit.

    Removed rows and columns come first when what they leave is nearly full, then blocks and kernels (the larger
    of the two), then N:M. What follows none of these is named for its removed rows and columns when they hold
    most of the zeros, else unstructured.
    """
    rows, columns = facts.shape[0], math.prod(facts.shape[1:])
    live = (rows - facts.zero_rows) * (columns - facts.zero_columns)
    removed = _removed(facts)
    if not facts.nonzeros:
        return "empty"
    if facts.nonzeros >= NEARLY_FULL * live:
        return removed or "dense"

    kernel = math.prod(facts.shape[2:])
    block = math.prod(facts.best_block)
    kept_kernels = rows * facts.shape[1] - facts.zero_kernels
    if kernel > 1 and kernel >= block and _follows(kernel * kept_kernels, facts.nonzeros, live):
        return "kernels"
    if block > 1:
        return "blocks {}x{}".format(*facts.best_block)
    if facts.n_of_m:
        return "{}:{}".format(*facts.n_of_m)
    size = rows * columns
    return removed if size - live > MOST * (size - facts.nonzeros) else "unstructured"


def _removed(facts: Facts) -> str:
    """What is zero as a whole: "rows", "columns" (or "channels"), both, or nothing: ""."""
    kernel = math.prod(facts.shape[2:])
    whole_channels = kernel > 1 and facts.zero_columns == facts.zero_channels * kernel
    columns = "channels" if whole_channels else "columns"
    return " and ".join(
        name for name, zeros in (("rows", facts.zero_rows), (columns, facts.zero_columns)) if zeros
    )


@dataclass(frozen=True)
class MeasureWeights:
    """Records the `Facts` of every layer's weight. Layers that read the same weight share them."""

    name: ClassVar[str] = "measure-weights"

    def __call__(self, program: Program) -> Program:
        measured: dict[str, Facts] = {}
        facts: dict[str, Facts] = {}
        for site, layer in program.layers.items():
            if layer.weight not in measured:
                weight = program.weight(site).reshape(layer.weight_shape)
                measured[layer.weight] = measure_weight(layer.name, weight)
            facts[site] = measured[layer.weight]
        return replace(program, facts=facts)
