"""The pointers that a region's function is called with, and where in memory one item is computed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from tvm.script.ir_builder import tirx as T

from sparsecomp.codegen.arena import Arena
from sparsecomp.codegen.cpu.emit import Expr
from sparsecomp.geometry import FLOAT, ROW_BLOCK, Planes, TokenRows, Tokens, round_up
from sparsecomp.region import Border, Region, Value

PARTS = 4
"""Tensors of a stream."""


@dataclass(frozen=True)
class Table:
    """The pointers a region's function is called with, as positions in one int64 table.

    list of calls | inputs | outputs | (index, stream, balance, order) of each weight | vectors | masks | arena
    """

    region: Region
    masks: tuple[Planes, ...]
    calls: ClassVar[int] = 0
    inputs: ClassVar[int] = 1

    @staticmethod
    def of(region: Region) -> Table:
        masks = {v.geometry: None for _, v in region.values if v.zero_pads and isinstance(v.geometry, Planes)}
        return Table(region, tuple(masks))

    @property
    def outputs(self) -> int:
        return self.inputs + len(self.region.inputs)

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
class Address:
    """Where a kernel finds something: what the table says, and so many bytes further on; more for each copy of the
    arena, each item and each tile of it."""

    slot: int
    start: int = 0
    copy: int = 0
    item: int = 0
    tile: int = 0

    @property
    def numbers(self) -> tuple[int, ...]:
        return (self.slot, self.start, self.copy, self.item, self.tile)

    def after(self, floats: int) -> Address:
        return replace(self, start=self.start + floats * FLOAT)


@dataclass(frozen=True)
class Frame:
    """Where things lie while an item is computed."""

    region: Region
    table: Table
    arena: Arena

    def position(self, name: str) -> Address:
        """A value's position (0, 0)."""
        value = self.region.value[name]
        start = self.arena.offsets[name] + value.geometry.origin
        step = tile_step(value) if isinstance(value.geometry, Tokens) else 0
        return Address(self.table.arena, start * FLOAT, self.arena.size * FLOAT, tile=step * FLOAT)

    def input(self, index: int) -> Address:
        return self._border(self.table.inputs + index, self.region.inputs[index])

    def output(self, index: int) -> Address:
        return self._border(self.table.outputs + index, self.region.outputs[index])

    def weight(self, number: int) -> list[Address]:
        """The tensors of its stream."""
        return [Address(self.table.weights + PARTS * number + i) for i in range(PARTS)]

    def vector(self, number: int) -> Address:
        return Address(self.table.vectors + number)

    @property
    def nothing(self) -> Address:
        """Of what a kernel takes but does not read."""
        return Address(self.table.calls)

    def mask(self, name: str) -> Address:
        """That of the value's grid, if its padding must be zero."""
        value = self.region.value[name]
        if value.zero_pads and isinstance(value.geometry, Planes):
            return Address(self.table.mask_start + self.table.masks.index(value.geometry))
        return self.nothing

    def _border(self, slot: int, border: Border) -> Address:
        tokens = self.region.tokens
        size = border.channels * max(1, border.height * border.width)
        if border.shared:
            return Address(slot)
        if tokens is None or border.height:
            items = 1 if tokens is None or tokens.length else tokens.tile
            return Address(slot, item=items * size * FLOAT)
        return Address(
            slot, item=(tokens.length or tokens.tile) * size * FLOAT, tile=tokens.tile * size * FLOAT
        )


def tokens_in(tokens: Tokens | TokenRows, extent: Expr, item: Expr, tile: Expr | None) -> Expr:
    """How many tokens there are in a tile."""
    if not tokens.length:
        return T.bind(T.min(extent - item * tokens.tile, T.int32(tokens.tile)))
    if tile is None:
        return T.int32(tokens.length)
    return T.bind(T.min(T.int32(tokens.length) - tile * tokens.tile, T.int32(tokens.tile)))
