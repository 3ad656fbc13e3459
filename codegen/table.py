"""The pointers that a region's function is called with, and where in memory one item is computed."""

from __future__ import annotations

from dataclasses import dataclass

from tvm.script.ir_builder import tirx as T

from sparsecomp.codegen.arena import Arena
from sparsecomp.codegen.cpu.emit import Expr, i64
from sparsecomp.geometry import FLOAT, ROW_BLOCK, Planes, TokenRows, Tokens, round_up
from sparsecomp.region import Border, Region, Value

PARTS = 4
"""Tensors of a stream."""


@dataclass(frozen=True)
class Table:
    """The pointers a region's function is called with, as positions in one int64 table.

    inputs | outputs | (index, stream, balance, order) of each weight | vectors | masks | arena
    """

    region: Region
    masks: tuple[Planes, ...]

    @staticmethod
    def of(region: Region) -> Table:
        masks = {v.geometry: None for _, v in region.values if v.zero_pads and isinstance(v.geometry, Planes)}
        return Table(region, tuple(masks))

    @property
    def outputs(self) -> int:
        return len(self.region.inputs)

    @property
    def weights(self) -> int:
        return self.outputs + len(self.region.outputs)

    @property
    def vectors(self) -> int:
        return self.weights + PARTS * len(self.region.rows_calls)

    @property
    def mask_start(self) -> int:
        return self.vectors + self.region.vectors

    @property
    def arena(self) -> int:
        return self.mask_start + len(self.masks)


def tile_step(value: Value) -> int:
    """Floats from one tile of a sequence to the next."""
    return round_up(value.channels, ROW_BLOCK) * value.geometry.plane


@dataclass(frozen=True)
class Frame:
    """Where things lie while one item is computed: addresses, as int64 expressions."""

    region: Region
    table: Table
    arena: Arena
    pointers: Expr
    """The table."""
    item: Expr
    base: Expr
    """Address of the arena."""
    tile: Expr | None = None
    """Which tile of the item, where a sequence has several."""

    def position(self, name: str) -> Expr:
        """Address of a value's position (0, 0)."""
        value = self.region.value[name]
        start = self.base + (self.arena.offsets[name] + value.geometry.origin) * FLOAT
        return start if self.tile is None else start + i64(self.tile) * (tile_step(value) * FLOAT)

    def input(self, index: int) -> Expr:
        return self._border(index, self.region.inputs[index])

    def output(self, index: int) -> Expr:
        return self._border(self.table.outputs + index, self.region.outputs[index])

    def weight(self, number: int) -> list[Expr]:
        """The tensors of its stream."""
        return [self.pointers[self.table.weights + PARTS * number + i] for i in range(PARTS)]

    def vector(self, number: int) -> Expr:
        return self.pointers[self.table.vectors + number]

    def mask(self, name: str) -> Expr:
        """That of the value's grid, if its padding must be zero; else any address."""
        value = self.region.value[name]
        if value.zero_pads and isinstance(value.geometry, Planes):
            return self.pointers[self.table.mask_start + self.table.masks.index(value.geometry)]
        return self.pointers[0]

    def _border(self, position: int, border: Border) -> Expr:
        tokens = self.region.tokens
        size = border.channels * max(1, border.height * border.width)
        if border.shared:
            return self.pointers[position]
        if tokens is None or border.height:
            items = 1 if tokens is None or tokens.length else tokens.tile
            return self.pointers[position] + i64(self.item) * (items * size * FLOAT)
        size *= tokens.length or tokens.tile
        start = self.pointers[position] + i64(self.item) * (size * FLOAT)
        if self.tile is None:
            return start
        return start + i64(self.tile) * (border.channels * tokens.tile * FLOAT)


def tokens_in(tokens: Tokens | TokenRows, extent: Expr, item: Expr, tile: Expr | None) -> Expr:
    """How many tokens there are in a tile."""
    if not tokens.length:
        return T.bind(T.min(extent - item * tokens.tile, T.int32(tokens.tile)))
    if tile is None:
        return T.int32(tokens.length)
    return T.bind(T.min(T.int32(tokens.length) - tile * tokens.tile, T.int32(tokens.tile)))
