"""Regions: how they print, and what they refuse."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from sparsecomp.geometry import Planes, Tokens
from sparsecomp.pattern import RowBlocks
from sparsecomp.region import Apply, Border, Enter, Exit, Region, Rows, Schedule, Split, Value
from sparsecomp.work import Attention, Mean, Norm

SCHEDULE = Schedule(4, 16)


def rows_region() -> Region:
    """An image enters, is split, multiplied and exits."""
    whole, half = Planes(8, 8, 8, 80, 0), Planes(4, 4, 4, 48, 0)
    call = Rows("v1", "v2", 0, (4, 3), 0, RowBlocks(2), SCHEDULE, "bias relu", (0,))
    return Region(
        inputs=(Border(3, 8, 8),),
        outputs=(Border(4, 4, 4),),
        values=(("v0", Value(3, whole)), ("v1", Value(3, half)), ("v2", Value(4, half, zero_pads=True))),
        calls=(Enter(0, "v0"), Split("v0", "v1", (2, 2), ((0, 0),)), call, Exit("v2", 0)),
    )


def test_a_region_prints(golden: Callable[[str], None]) -> None:
    golden(str(rows_region()))


def test_a_good_region_passes_its_check() -> None:
    rows_region().check()


def test_a_value_is_read_after_it_is_written() -> None:
    region = rows_region()
    enter, split, rows, leave = region.calls
    for calls, reader in [
        ((split, enter, rows, leave), "split"),
        ((enter, rows, split, leave), "rows"),
        ((enter, split, leave, rows), "exit"),
    ]:
        with pytest.raises(AssertionError, match=rf"{reader}.*reads before writing"):
            replace(region, calls=calls).check()


def test_a_value_is_written_once() -> None:
    region = rows_region()
    with pytest.raises(AssertionError, match="writes v0 again"):
        replace(region, calls=(region.calls[0], *region.calls)).check()


@pytest.mark.parametrize("other", [Planes(4, 4, 5, 48, 0), Planes(4, 4, 4, 80, 0)], ids=["row", "plane"])
def test_operands_lie_on_one_grid(other: Planes) -> None:
    region = rows_region()
    values = (*region.values[:2], ("v2", Value(4, other)))
    with pytest.raises(AssertionError, match="operands on different grids"):
        replace(region, values=values).check()


def test_an_epilogue_has_its_operands() -> None:
    with pytest.raises(AssertionError):
        Rows("v0", "v1", 0, (4, 3), 0, RowBlocks(1), SCHEDULE, "bias")
    with pytest.raises(AssertionError, match="unknown epilogue steps: \\['swish'\\]"):
        Rows("v0", "v1", 0, (4, 3), 0, RowBlocks(1), SCHEDULE, "swish")


def test_passes_cover_the_columns() -> None:
    def passes(columns: int, kept: int, pattern: RowBlocks) -> int:
        return Rows("v0", "v1", 0, (4, columns), kept, pattern, SCHEDULE).passes

    assert [passes(n, 0, RowBlocks(1)) for n in (1, 16, 17, 33)] == [1, 1, 2, 3]
    assert [passes(99, n, RowBlocks(4, shared=True)) for n in (0, 16, 17)] == [1, 1, 2]


def test_only_a_region_of_tokens_has_a_tile() -> None:
    assert rows_region().tokens is None
    assert replace(rows_region(), values=(("v0", Value(3, Tokens())),)).tokens == Tokens()


def sequence_region() -> Region:
    """Tokens of a sequence enter, mix, are normalised and exit."""
    geometry = Tokens(length=300)
    attention = Attention(2, 2, 4, 4, 0.5, masked=True)
    return Region(
        inputs=(Border(24), Border(1, 300, 304, shared=True)),
        outputs=(Border(8),),
        values=tuple(
            (name, Value(channels, geometry)) for name, channels in (("v0", 24), ("v1", 8), ("v2", 8))
        ),
        calls=(
            Enter(0, "v0"),
            Apply(attention, ("v0", "v0", "v0"), "v1", plain=(1,)),
            Apply(Norm("layer", 8, 1e-5, True, True), ("v1",), "v2", vectors=(0, 1)),
            Exit("v2", 0),
        ),
    )


def test_a_region_of_sequences_prints(golden: Callable[[str], None]) -> None:
    golden(str(sequence_region()))


def test_work_counts_its_vectors_and_is_checked() -> None:
    region = sequence_region()
    region.check()
    assert region.vectors == 2
    assert region.rows_calls == ()
    assert region.tokens == Tokens(length=300)
    with pytest.raises(AssertionError, match=r"attention.*reads before writing"):
        replace(region, calls=region.calls[1:]).check()


def test_only_a_mean_may_change_the_grid() -> None:
    image, pixel = Planes(4, 4, 4, 48, 0), Planes(1, 1, 1, 16, 0)

    def region(call: Apply) -> Region:
        values = (("v0", Value(3, image)), ("v1", Value(3, pixel)))
        return Region((Border(3, 4, 4),), (Border(3),), values, (Enter(0, "v0"), call, Exit("v1", 0)))

    region(Apply(Mean(keep=False), ("v0",), "v1")).check()
    with pytest.raises(AssertionError, match="operands on different grids"):
        region(Apply(Norm("rms", 3, 1e-6, False, False), ("v0",), "v1")).check()
