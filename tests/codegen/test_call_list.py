"""A region's calls as numbers: steps, then rows of equal width, one per call."""

from __future__ import annotations

from dataclasses import replace

from sparsecomp.codegen.arena import plan_arena
from sparsecomp.codegen.call_list import ADDRESS, STEP, CallList, row_width
from sparsecomp.codegen.calls import arguments
from sparsecomp.codegen.compiled_region import compile_region
from sparsecomp.codegen.machine import machine_of
from sparsecomp.codegen.table import Frame, Table
from sparsecomp.geometry import Tokens
from sparsecomp.pattern import RowBlocks
from sparsecomp.region import Border, Enter, Exit, Region, Rows, Schedule, Value
from sparsecomp.target import Target

MACHINE = machine_of(Target())


def chain(layers: int) -> Region:
    """Layers of one shape, one after the other."""
    rows = tuple(
        Rows(f"v{i}", f"v{i + 1}", i, (8, 8), 0, RowBlocks(1), Schedule(4, 8), "bias", (i,))
        for i in range(layers)
    )
    values = tuple((f"v{i}", Value(8, Tokens())) for i in range(layers + 1))
    return Region((Border(8),), (Border(8),), values, (Enter(0, "v0"), *rows, Exit(f"v{layers}", 0)))


def listed(region: Region) -> CallList:
    return CallList.of(region.calls, region, Table.of(region), plan_arena(region), MACHINE)


def test_each_row_names_its_kernel_and_where_things_are() -> None:
    region = chain(2)
    found, frame = listed(region), Frame(region, Table.of(region), plan_arena(region))
    width = row_width(found.counts)
    begin = STEP * len(region.calls)
    rows = [found.numbers[i : i + width].tolist() for i in range(begin, len(found.numbers), width)]
    steps = [found.numbers[i : i + STEP].tolist() for i in range(0, begin, STEP)]
    assert steps == [[begin + width * number, 0, 1] for number in range(len(region.calls))]
    assert [row[0] for row in rows] == [0, 1, 1, 2]
    for row, call in zip(rows, region.calls, strict=True):
        expected = [number for address in arguments(call, frame) for number in address.numbers]
        assert row[1 : 1 + len(expected)] == expected
        assert len(expected) == ADDRESS * found.counts[row[0]]


def test_code_does_not_grow_with_the_number_of_layers() -> None:
    one, five = compile_region(chain(1), MACHINE), compile_region(chain(5), MACHINE)
    assert one.module is five.module
    assert one.list.numbers != five.list.numbers
    wider = replace(chain(1), values=(("v0", Value(8, Tokens(length=5))), ("v1", Value(8, Tokens(length=5)))))
    assert compile_region(wider, MACHINE).module is not one.module, "sequences are walked in another way"
