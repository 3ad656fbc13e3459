"""The pointers of a region's function, and where a value lies while an item is computed."""

from __future__ import annotations

import pytest
from tvm.script.ir_builder import tirx as T

from sparsecomp.codegen.arena import plan_arena
from sparsecomp.codegen.table import Address, Frame, Table, tile_step, tokens_in
from sparsecomp.geometry import FLOAT, TILE, Planes, Tokens
from sparsecomp.pattern import RowBlocks
from sparsecomp.region import Apply, Border, Enter, Exit, Region, Rows, Schedule, Value
from sparsecomp.work import Attention, Norm

TABLE = 1 << 30
"""Position i of the table holds TABLE * i."""
SCHEDULE = Schedule(4, 8)


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


def frame(region: Region) -> Frame:
    return Frame(region, Table.of(region), plan_arena(region))


def found(address: Address, item: int = 0, tile: int = 0) -> int:
    """In the second copy of the arena where it is of the arena; entry i of the table is TABLE * i."""
    return TABLE * address.slot + address.start + address.copy + item * address.item + tile * address.tile


def position(region: Region, name: str, item: int = 0, tile: int = 0) -> int:
    """Floats from the start of the second copy of the arena."""
    at = frame(region)
    start = TABLE * at.table.arena + at.arena.size * FLOAT
    return (found(at.position(name), item, tile) - start) // FLOAT


def test_the_parts_of_a_table_follow_one_another() -> None:
    table = Table.of(sequences(5))
    assert (table.calls, table.inputs, table.outputs, table.weights, table.vectors) == (0, 1, 3, 5, 9)
    assert (table.mask_start, table.arena) == (12, 12)


def test_grids_with_zero_padding_have_a_mask() -> None:
    table = Table.of(images())
    assert table.masks == (Planes(4, 4, 5, 48, 16),)
    assert table.arena == table.mask_start + 1
    at = frame(images())
    assert found(at.mask("v0")) == TABLE * table.mask_start
    assert at.mask("v1") == at.nothing


def test_weights_and_vectors_are_numbered() -> None:
    at = frame(sequences(5))
    assert [found(address) for address in at.weight(0)] == [TABLE * i for i in (5, 6, 7, 8)]
    assert found(at.vector(2)) == TABLE * 11


def test_images_lie_one_after_the_other() -> None:
    at = frame(images())
    assert found(at.input(0), item=3) == TABLE + 3 * 48 * FLOAT
    assert position(images(), "v0", item=3) == at.arena.offsets["v0"] + 16, "in the arena they take turns"


@pytest.mark.parametrize("tile", [0, 2])
def test_tiles_of_a_sequence_follow_one_another(tile: int) -> None:
    region = sequences(300)
    at = frame(region)
    offsets = at.arena.offsets
    assert found(at.input(0), 3, tile) == TABLE + (3 * 300 + tile * TILE) * 12 * FLOAT
    assert found(at.output(0), 3, tile) == 3 * TABLE + (3 * 300 + tile * TILE) * 24 * FLOAT
    assert found(at.output(1), 3, tile) == 4 * TABLE + (3 * 300 + tile * TILE) * 8 * FLOAT
    assert position(region, "v0", 3, tile) == offsets["v0"] + tile * 16 * TILE
    assert position(region, "v1", 3, tile) == offsets["v1"] + tile * 24 * TILE


def test_a_score_mask_is_that_of_the_item_unless_all_share_it() -> None:
    region = sequences(5)
    assert found(frame(region).input(1), item=3) == 2 * TABLE + 3 * (2 * 5 * 16) * FLOAT
    shared = Region(
        (*region.inputs[:1], Border(2, 5, 16, shared=True)), region.outputs, region.values, region.calls
    )
    assert found(frame(shared).input(1), item=3) == 2 * TABLE


def test_tokens_that_stand_alone_are_cut_into_tiles() -> None:
    assert found(frame(sequences(0)).input(0), item=2) == TABLE + 2 * TILE * 12 * FLOAT


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
    assert int(tokens_in(tokens, T.int32(extent), T.int32(item), where).value) == expected
