"""Sections and regions: how they print, what they refuse, what a section means in plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from sparsecomp.geometry import Planes, Tokens
from sparsecomp.layer import Layer
from sparsecomp.pattern import RowBlocks
from sparsecomp.region import Border, Enter, Exit, Region, Rows, Schedule, Split, Value
from sparsecomp.section import Section, SectionOp, run_section

SCHEDULE = Schedule(4, 16)


def two_layers() -> Section:
    """y = relu(conv(x) * scale + bias); z = conv(y, stride 2) + r"""
    first = Layer("a", "conv2d", "a.weight", (6, 3, 3, 3), (2, 3, 8, 8), padding=(1, 1, 1, 1))
    second = Layer("b", "conv2d", "b.weight", (4, 6, 1, 1), (2, 6, 8, 8), stride=(2, 2))
    return Section(
        ("x", "r"),
        (
            SectionOp("a", first, "x", "y", "scale bias relu"),
            SectionOp("b", second, "y", "z", "add", ("r",)),
        ),
        ("y", "z"),
    )


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


def test_a_section_prints(golden: Callable[[str], None]) -> None:
    golden(str(two_layers()))


def test_a_region_prints(golden: Callable[[str], None]) -> None:
    golden(str(rows_region()))


def test_a_section_knows_the_shapes_of_its_inputs() -> None:
    assert two_layers().input_shapes == [(2, 3, 8, 8), (2, 4, 4, 4)]


def test_run_section_is_plain_pytorch() -> None:
    section = two_layers()
    weights = {"a": torch.randn(6, 27), "b": torch.randn(4, 6)}
    x, r, scale, bias = torch.randn(2, 3, 8, 8), torch.randn(2, 4, 4, 4), torch.randn(6), torch.randn(6)
    vectors = {"a": (scale, bias), "b": ()}
    y, z = run_section(section, lambda op: weights[op.site], vectors, [x, r])
    a = F.conv2d(x, weights["a"].reshape(6, 3, 3, 3), padding=1)
    expected = F.relu(a * scale[:, None, None] + bias[:, None, None])
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(z, F.conv2d(expected, weights["b"].reshape(4, 6, 1, 1), stride=2) + r)


def test_run_section_takes_operands_in_the_order_of_the_steps() -> None:
    layer = Layer("fc", "linear", "w", (4, 3), (5, 3))
    op = SectionOp("s", layer, "x", "y", "add scale multiply bias", ("p", "q"))
    x, w, p, q = torch.randn(5, 3), torch.randn(4, 3), torch.randn(5, 4), torch.randn(5, 4)
    scale, bias = torch.randn(4), torch.randn(4)
    section = Section(("x", "p", "q"), (op,), ("y",))
    (y,) = run_section(section, lambda op: w, {"s": (scale, bias)}, [x, p, q])
    torch.testing.assert_close(y, (x @ w.T + p) * scale * q + bias)


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
