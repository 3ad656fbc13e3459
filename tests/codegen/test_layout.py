"""Where a section's values lie, and the calls that bring them there."""

from __future__ import annotations

from collections.abc import Callable

from sparsecomp.codegen.layout import View, lay_out, place, source_geometry, source_view
from sparsecomp.geometry import Planes, Tokens
from sparsecomp.layer import Layer
from sparsecomp.pattern import RowBlocks
from sparsecomp.region import Enter, Region, Rows, RowsKernelChoice, Schedule, Split
from sparsecomp.section import Section, SectionOp

HOW = RowsKernelChoice(RowBlocks(1), Schedule(8, 128, 128))
SHARED = RowsKernelChoice(RowBlocks(8, shared=True), Schedule(3, 256))


def linear(name: str, rows: int, columns: int) -> Layer:
    return Layer(name, "linear", f"{name}.weight", (rows, columns), (2, 197, columns))


def conv(name: str, rows: int, channels: int, size: int, kernel: int, stride: int = 1) -> Layer:
    return Layer(
        name,
        "conv2d",
        f"{name}.weight",
        (rows, channels, kernel, kernel),
        (1, channels, size, size),
        stride=(stride, stride),
        padding=(kernel // 2,) * 4,
    )


def mlp() -> Section:
    return Section(
        ("x",),
        (
            SectionOp("up", linear("up", 256, 64), "x", "h", "bias gelu"),
            SectionOp("down", linear("down", 64, 256), "h", "y", "bias add", ("x",)),
        ),
        ("y",),
    )


def bottleneck() -> Section:
    """The block of a ResNet that halves the image: 1x1, 3x3 with stride 2, 1x1, and a 1x1 shortcut."""
    steps = "scale bias relu"
    return Section(
        ("x",),
        (
            SectionOp("a", conv("a", 16, 64, 14, 1), "x", "h", steps),
            SectionOp("b", conv("b", 16, 16, 14, 3, stride=2), "h", "g", steps),
            SectionOp("s", conv("s", 128, 64, 14, 1, stride=2), "x", "short", "scale bias"),
            SectionOp("c", conv("c", 128, 16, 7, 1), "g", "y", "scale bias add relu", ("short",)),
        ),
        ("y",),
    )


def region_of(section: Section) -> Region:
    return lay_out(section, [HOW] * len(section.ops), [0] * len(section.ops))


def test_two_layer_mlp(golden: Callable[[str], None]) -> None:
    golden(str(region_of(mlp())))


def test_bottleneck_with_stride_2(golden: Callable[[str], None]) -> None:
    golden(str(region_of(bottleneck())))


def test_a_shared_list_is_as_long_as_its_stream(golden: Callable[[str], None]) -> None:
    golden(str(lay_out(mlp(), [SHARED, HOW], [60, 0])))


def test_regions_pass_their_check() -> None:
    for section in (mlp(), bottleneck()):
        region_of(section).check()


def test_operands_of_a_kernel_share_a_grid() -> None:
    region = region_of(bottleneck())
    for call in region.rows_calls:
        grids = [region.value[name].geometry for name in (call.source, call.target, *call.tensors)]
        assert all(isinstance(grid, Planes) for grid in grids)
        assert len({(grid.plane, grid.origin) for grid in grids}) == 1


def test_only_what_is_read_with_padding_is_zeroed() -> None:
    zeroed = {view.tensor for view, value in place(bottleneck()).items() if value.zero_pads}
    assert zeroed == {"h"}


def test_an_image_that_is_read_whole_and_in_phases_enters_twice() -> None:
    entered = [call for call in region_of(bottleneck()).calls if isinstance(call, Enter)]
    assert [(call.source, call.stride) for call in entered] == [(0, (1, 1)), (0, (2, 2))]


def test_a_value_is_split_once_for_all_its_readers() -> None:
    ops = (
        SectionOp("a", conv("a", 8, 4, 10, 1), "x", "h"),
        SectionOp("b", conv("b", 8, 8, 10, 3, stride=2), "h", "y"),
        SectionOp("c", conv("c", 4, 8, 10, 3, stride=2), "h", "z"),
    )
    region = region_of(Section(("x",), ops, ("y", "z")))
    assert sum(isinstance(call, Split) for call in region.calls) == 1


def test_vectors_are_numbered_through_the_region() -> None:
    calls = [call for call in region_of(bottleneck()).calls if isinstance(call, Rows)]
    assert [call.vectors for call in calls] == [(0, 1), (2, 3), (4, 5), (6, 7)]
    assert [call.weight for call in calls] == [0, 1, 2, 3]


def test_regions_of_equal_blocks_are_equal() -> None:
    def renamed(section: Section, prefix: str) -> Section:
        ops = tuple(
            SectionOp(
                prefix + op.site,
                Layer(**{**vars(op.layer), "name": prefix + op.layer.name, "weight": prefix}),
                prefix + op.source,
                prefix + op.target,
                op.epilogue,
                tuple(prefix + name for name in op.tensors),
            )
            for op in section.ops
        )
        return Section(
            tuple(prefix + name for name in section.inputs),
            ops,
            tuple(prefix + name for name in section.outputs),
        )

    for section in (mlp(), bottleneck()):
        assert region_of(renamed(section, "layer2.")) == region_of(section)


def test_source_geometry_is_the_grid_that_the_kernel_walks() -> None:
    section = bottleneck()
    geometry, values = source_geometry(section), place(section)
    assert set(geometry) == {"a", "b", "s", "c"}
    for op in section.ops:
        assert geometry[op.site] == values[source_view(op)].geometry
    assert set(source_geometry(mlp()).values()) == {Tokens()}


def test_a_stride_of_one_reads_whole_images() -> None:
    section = bottleneck()
    assert source_view(section.ops[0]) == View("x")
    assert source_view(section.ops[1]) == View("h", (2, 2), ((0, 0), (0, 1), (1, 0), (1, 1)))
    assert source_view(section.ops[2]) == View("x", (2, 2), ((0, 0),))
