"""The pointers of a region's function, and where a value lies while an item is computed."""

from __future__ import annotations

from typing import Any

import pytest
from tvm.script.ir_builder import tirx as T

from sparsecomp.codegen.arena import plan_arena
from sparsecomp.codegen.table import Frame, Table, tile_step, tokens_in
from sparsecomp.geometry import FLOAT, TILE, Planes, Tokens
from sparsecomp.pattern import RowBlocks
from sparsecomp.region import Apply, Border, Enter, Exit, Region, Rows, Schedule, Value
from sparsecomp.work import Attention, Norm

BASE, TABLE = 1 << 20, 1 << 30
"""Address of the arena; position i of the table holds TABLE * (i + 1)."""
SCHEDULE = Schedule(4, 8)


class Pointers:
    """A table whose entries are known."""

    def __getitem__(self, position: int) -> Any:
        return T.int64(TABLE * (position + 1))


def sequences(length: int) -> Region:
    """Two inputs, one of them a mask for each item; a layer, attention and a norm; two outputs."""
    geometry = Tokens(length=length)
    attention = Attention(2, 2, 4, 4, 0.5, masked=True)
    channels = {"v0": 12, "v1": 24, "v2": 8, "v3": 8}
    return Region(
        inputs=(Border(12), Border(2, length, 16)),
        outputs=(Border(24), Border(8)),
        values=tuple((name, Value(count, geometry)) for name, count in channels.items()),
        calls=(
            Enter(0, "v0"),
            Rows("v0", "v1", 0, (24, 12), 0, RowBlocks(1), SCHEDULE, "bias", (0,)),
            Exit("v1", 0),
            Apply(attention, ("v1", "v1", "v1"), "v2", plain=(1,)),
            Apply(Norm("layer", 8, 1e-5, True, True), ("v2",), "v3", vectors=(1, 2)),
            Exit("v3", 1),
        ),
    )


def images() -> Region:
    padded, plain = Planes(4, 4, 5, 48, 16), Planes(4, 4, 4, 80, 0)
    values = (("v0", Value(3, padded, zero_pads=True)), ("v1", Value(3, padded)), ("v2", Value(3, plain)))
    call = Apply(Norm("rms", 3, 1e-6, False, False), ("v0",), "v1")
    return Region((Border(3, 4, 4),), (Border(3, 4, 4),), values, (Enter(0, "v0"), call, Exit("v1", 0)))


def number(expression: Any) -> int:
    """Expressions of constants are constants."""
    return int(expression.value)


def frame(region: Region, item: int, tile: int | None = None) -> Frame:
    arena = plan_arena(region)
    where = None if tile is None else T.int32(tile)
    pointers: Any = Pointers()
    return Frame(region, Table.of(region), arena, pointers, T.int32(item), T.int64(BASE), where)


def test_the_parts_of_a_table_follow_one_another() -> None:
    table = Table.of(sequences(5))
    assert (table.outputs, table.weights, table.vectors) == (2, 4, 8)
    assert (table.mask_start, table.arena) == (11, 11)


def test_grids_with_zero_padding_have_a_mask() -> None:
    table = Table.of(images())
    assert table.masks == (Planes(4, 4, 5, 48, 16),)
    assert table.arena == table.mask_start + 1
    at = frame(images(), 0)
    assert number(at.mask("v0")) == TABLE * (table.mask_start + 1)
    assert number(at.mask("v1")) == TABLE


def test_weights_and_vectors_are_numbered() -> None:
    at = frame(sequences(5), 0)
    assert [number(address) for address in at.weight(0)] == [TABLE * i for i in (5, 6, 7, 8)]
    assert number(at.vector(2)) == TABLE * 11


def test_images_lie_one_after_the_other() -> None:
    at, offsets = frame(images(), 3), plan_arena(images()).offsets
    assert number(at.input(0)) == TABLE + 3 * 48 * FLOAT
    assert number(at.position("v0")) == BASE + (offsets["v0"] + 16) * FLOAT


@pytest.mark.parametrize("tile", [None, 0, 2])
def test_tiles_of_a_sequence_follow_one_another(tile: int | None) -> None:
    region = sequences(300)
    at, offsets, along = frame(region, 3, tile), plan_arena(region).offsets, tile or 0
    assert number(at.input(0)) == TABLE + (3 * 300 + along * TILE) * 12 * FLOAT
    assert number(at.output(0)) == 3 * TABLE + (3 * 300 + along * TILE) * 24 * FLOAT
    assert number(at.output(1)) == 4 * TABLE + (3 * 300 + along * TILE) * 8 * FLOAT
    assert number(at.position("v0")) == BASE + (offsets["v0"] + along * 16 * TILE) * FLOAT
    assert number(at.position("v1")) == BASE + (offsets["v1"] + along * 24 * TILE) * FLOAT


def test_a_score_mask_is_that_of_the_item_unless_all_share_it() -> None:
    region = sequences(5)
    assert number(frame(region, 3).input(1)) == 2 * TABLE + 3 * (2 * 5 * 16) * FLOAT
    shared = Region(
        (*region.inputs[:1], Border(2, 5, 16, shared=True)), region.outputs, region.values, region.calls
    )
    assert number(frame(shared, 3).input(1)) == 2 * TABLE


def test_tokens_that_stand_alone_are_cut_into_tiles() -> None:
    region = sequences(0)
    assert number(frame(region, 2).input(0)) == TABLE + 2 * TILE * 12 * FLOAT


def test_stored_channels_fill_the_last_block() -> None:
    assert tile_step(Value(12, Tokens(length=300))) == 16 * TILE
    assert tile_step(Value(16, Tokens(length=300))) == 16 * TILE


@pytest.mark.parametrize(
    ("tokens", "extent", "item", "tile", "expected"),
    [
        (Tokens(), 300, 0, None, TILE),
        (Tokens(), 300, 4, None, 44),
        (Tokens(length=7), 3, 1, None, 7),
        (Tokens(length=300), 3, 1, 0, TILE),
        (Tokens(length=300), 3, 1, 4, 44),
        (Tokens(length=256), 3, 1, 3, TILE),
    ],
)
def test_the_last_tile_may_be_partly_filled(
    tokens: Tokens,
    extent: int,
    item: int,
    tile: int | None,
    expected: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(T, "bind", lambda expression: expression)
    where = None if tile is None else T.int32(tile)
    assert number(tokens_in(tokens, T.int32(extent), T.int32(item), where)) == expected
