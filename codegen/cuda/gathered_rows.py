"""Gathered-row SpMM on CUDA cores: unstructured sparsity, linear layers and convolutions, sums in float32.

    Y[m, n] = epilogue( sum_i value[i] * X[offset[i] + place[n]] )        for the i that belong to row m

A block has a tile of outputs n and `warps * rows` rows m. In each pass the tile's inputs of some columns are put in
shared memory, transposed or padded with zeros (`tiles.py`); then each warp walks the lists of its rows, whose entries
all its threads read together, and each thread multiplies its own outputs (Gale et al., Sputnik, 2020, with
the subwarp tiles; Chen, Escoin, 2018, for the convolution without im2col).

Bound: a multiply-add reads 4 bytes of shared memory, of which a multiprocessor has 128 a cycle, against 128
multiply-adds a cycle: a quarter of the peak at best, and 8 / 9 of that with 8 outputs a thread, since the entry is read
as well. So it can gain where a weight has more than some three quarters of zeros.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import tvm
from torch import Tensor
from tvm.script.ir_builder import tirx as T

from sparsecomp.codegen.cuda.emitter import WARP, Array, Emitter, Expr, Parameter, Registers
from sparsecomp.codegen.cuda.epilogues import finish, operand_parameters
from sparsecomp.codegen.cuda.tiles import Tiling

AT_ONCE = 4
"""Entries of a list whose loads are under way together."""


@dataclass(frozen=True)
class GatheredRows:
    """Operands: starts, int32, of the list of each (pass, row) in entries; entries, int64, the bits of a float32 value
    below those of the int32 offset. Rows are filled up to whole blocks, with empty lists."""

    rows: int
    dtype: str
    tiling: Tiling
    warps: int
    warp_rows: int
    """Rows that a warp has in registers."""
    epilogue: str = ""

    @property
    def label(self) -> str:
        tile = f"{self.warps * self.warp_rows}x{self.tiling.width}"
        return f"gathered rows {tile} K{self.tiling.pass_columns}"

    @property
    def block_rows(self) -> int:
        return self.warps * self.warp_rows

    @property
    def blocks(self) -> int:
        """Of rows."""
        return -(-self.rows // self.block_rows)

    @property
    def passes(self) -> int:
        return max(1, -(-self.tiling.columns // self.tiling.pass_columns))

    @property
    def vectors(self) -> int:
        """Outputs of a thread for each of its rows."""
        return self.tiling.width // WARP

    def workspace(self, tokens: int) -> int:
        return 0

    # Format ---------------------------------------------------------------------------------------------------

    def pack(self, matrix: Tensor) -> tuple[Tensor, ...]:
        """4 bytes for each (pass, row), 8 for each element that is not zero."""
        row, column = matrix.nonzero(as_tuple=True)
        width, every = self.tiling.pass_columns, self.blocks * self.block_rows
        slot = column // width * every + row
        slot, order = slot.sort(stable=True)
        starts = torch.zeros(self.passes * every + 1, dtype=torch.int32, device=matrix.device)
        starts[1:] = torch.bincount(slot, minlength=self.passes * every).cumsum(0)
        values = matrix[row, column][order].float().contiguous().view(torch.int32)
        offsets = self._offsets(matrix.device)[column[order] % width].int()
        entries = torch.stack([values, offsets], dim=1)  # little-endian: the first is the lower half
        return starts, entries.contiguous().view(torch.int64).flatten()

    def _offsets(self, device: torch.device) -> Tensor:
        """In steps of `lanes`, so that what is read there is seen to be aligned."""
        return torch.div(self.tiling.offsets(), self.tiling.lanes, rounding_mode="floor").to(device)

    def unpack(self, operands: Sequence[Tensor]) -> Tensor:
        starts, entries = operands
        width, every = self.tiling.pass_columns, self.blocks * self.block_rows
        numbers = torch.arange(len(starts) - 1, device=starts.device)
        slot = torch.repeat_interleave(numbers, starts.diff().long())
        halves = entries.view(torch.int32).reshape(-1, 2)
        table, order = self._offsets(starts.device).sort()
        column = slot // every * width + order[torch.searchsorted(table, halves[:, 1].long().contiguous())]
        matrix = torch.zeros(self.rows, self.tiling.columns, device=starts.device)
        matrix[slot % every, column] = halves[:, 0].contiguous().view(torch.float32)
        return matrix.to(getattr(torch, self.dtype))

    # Code -----------------------------------------------------------------------------------------------------

    def function(self, emit: Emitter) -> tvm.tirx.PrimFunc:
        y_shape = self.tiling.output_shape(self.rows)
        starts = self.passes * self.blocks * self.block_rows + 1
        parameters = [
            Parameter("x", self.dtype, self.tiling.input_shape()),
            Parameter("starts", "int32", (starts,)),
            Parameter("entries", "int64", ("stored",)),
            *operand_parameters(self.epilogue, self.dtype, self.rows, y_shape),
            Parameter("y", self.dtype, y_shape),
        ]

        def body(x: Array, starts: Array, entries: Array, *rest: Array) -> None:
            *operands, y = rest
            _Writer(self, emit, x, starts, entries, operands, y).write()

        return emit.function(parameters, body)


@dataclass
class _Writer:
    spec: GatheredRows
    emit: Emitter
    x: Array
    starts: Array
    entries: Array
    operands: Sequence[Array]
    y: Array

    def write(self) -> None:
        spec, emit = self.spec, self.emit
        threads = spec.warps * WARP
        with emit.grid((spec.tiling.tiles(emit) * spec.blocks,), threads) as (block,):
            # Blocks that run at the same time have the same inputs, and different rows.
            tile = T.bind(T.truncdiv(block, T.int32(spec.blocks)))
            first = T.bind(block % spec.blocks * spec.block_rows)
            shared = emit.shared(spec.tiling.floats, "float32")
            sums = emit.registers(spec.warp_rows * spec.vectors, "float32")
            places = emit.registers(spec.vectors, "int32")
            with emit.threads() as thread:
                for i in range(spec.warp_rows * spec.vectors):
                    sums[i] = T.float32(0.0)
                for i in range(spec.vectors):
                    place = spec.tiling.place(tile, self.number(thread, i))
                    places[i] = T.truncdiv(place, T.int32(spec.tiling.lanes))
            with T.serial(spec.passes) as step:
                with emit.threads() as thread:
                    spec.tiling.fill(emit, self.x, shared, tile, step, thread, threads)
                emit.barrier()
                with emit.threads() as thread:
                    row = T.bind(first + T.truncdiv(thread, T.int32(WARP)) * spec.warp_rows)
                    for r in range(spec.warp_rows):
                        slot = T.bind(step * (spec.blocks * spec.block_rows) + row + r)
                        self.row(slot, r * spec.vectors, shared, sums, places)
                emit.barrier()
            with emit.threads() as thread:
                row = T.bind(first + T.truncdiv(thread, T.int32(WARP)) * spec.warp_rows)
                for i in range(spec.vectors):
                    self.store(row, tile, T.bind(self.number(thread, i)), sums, i)

    def number(self, thread: Expr, i: int) -> Expr:
        """Of output i of the thread, in the tile: a warp's threads have neighbours, `lanes` of them each."""
        lanes = self.spec.tiling.lanes
        return i // lanes * lanes * WARP + thread % WARP * lanes + i % lanes

    def row(self, slot: Expr, at: int, shared: Array, sums: Registers, places: Registers) -> None:
        """Add the products of one row's list, whose sums are from `at` on."""
        begin = T.bind(self.starts[slot])
        length = T.bind(self.starts[slot + 1] - begin)
        with T.serial(T.truncdiv(length, T.int32(AT_ONCE))) as several:
            self.entries_at(T.bind(begin + several * AT_ONCE), AT_ONCE, at, shared, sums, places)
        whole = T.bind(T.truncdiv(length, T.int32(AT_ONCE)) * AT_ONCE)
        with T.serial(length - whole) as one:
            self.entries_at(begin + whole + one, 1, at, shared, sums, places)

    def entries_at(
        self, first: Expr, count: int, at: int, shared: Array, sums: Registers, places: Registers
    ) -> None:
        lanes = self.spec.tiling.lanes
        found = [T.bind(self.entries[first + i]) for i in range(count)]
        for entry in found:
            value = T.bind(T.reinterpret("float32", T.cast(entry, "int32")))
            offset = T.bind(T.cast(entry >> T.int64(32), "int32"))
            for i in range(0, self.spec.vectors, lanes):
                x = shared.load((offset + places[i]) * lanes, lanes)
                weight = T.Broadcast(value, lanes) if lanes > 1 else value
                sums.store(at + i, sums.load(at + i, lanes) + weight * x, lanes)

    def store(self, row: Expr, tile: Expr, number: Expr, sums: Registers, i: int) -> None:
        """One output of each of the thread's rows."""
        spec = self.spec
        with T.If(spec.tiling.exists(self.emit, tile, number)), T.Then():
            for r in range(spec.warp_rows):
                with T.If(row + r < spec.rows), T.Then():
                    place = T.bind(spec.tiling.output(spec.rows, row + r, tile, number))
                    sum_ = sums[r * spec.vectors + i]
                    value = finish(self.emit, sum_, spec.epilogue, self.operands, row + r, place)
                    self.emit.store(self.y, place, value)
