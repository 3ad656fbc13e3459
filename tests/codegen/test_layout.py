"""Where a section's values lie, and the calls that bring them there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

from sparsecomp.codegen.layout import View, lay_out, place, source_geometry, source_view
from sparsecomp.geometry import Planes, Tokens
from sparsecomp.layer import Layer
from sparsecomp.pattern import RowBlocks
from sparsecomp.region import Apply, Border, Enter, Exit, Region, Rows, RowsKernelChoice, Schedule, Split
from sparsecomp.section import Section, SectionOp, WorkOp
from sparsecomp.work import Attention, Mean, Norm, Pointwise, Pool

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


def encoder(mask_batch: int = 2) -> Section:
    """The first half of a transformer block on 197 tokens: norm, one layer for q, k and v, attention, residual."""
    narrow, wide = (2, 197, 64), (2, 197, 192)
    attention = Attention(4, 4, 16, 16, 0.25, starts=(0, 64, 128), masked=True)
    sources, shapes = ("w", "w", "w", "m"), (wide, wide, wide, (mask_batch, 1, 197, 208))
    return Section(
        ("x", "m"),
        (
            WorkOp("n", Norm("layer", 64, 1e-5, True, True), ("x",), (narrow,), "h", narrow),
            SectionOp("qkv", linear("qkv", 192, 64), "h", "w", "bias"),
            WorkOp("a", attention, sources, shapes, "a", narrow, shared_mask=mask_batch == 1),
            SectionOp("out", linear("out", 64, 64), "a", "y", "bias add", ("x",)),
            WorkOp("z", Norm("rms", 64, 1e-6, True, False), ("y",), (narrow,), "z", narrow),
        ),
        ("y", "z"),
    )


def pool(name: str, kind: Literal["max", "mean"], window: Layer, source: str, target: str) -> WorkOp:
    """As `window`, a depthwise convolution, reads."""
    given = (1, *window.input_shape[1:])
    return WorkOp(name, Pool(kind, window), (source,), (given,), target, window.output_shape, channel=1)


def stem() -> Section:
    """Where a ResNet begins, and how it ends: convolution, max pool, a sum of two, the mean of all pixels."""
    window = replace(conv("", 16, 1, 12, 3, stride=2), groups=16, input_shape=(1, 16, 12, 12))
    made = (1, 16, 6, 6)
    return Section(
        ("x", "r"),
        (
            SectionOp("c", conv("c", 16, 3, 24, 7, stride=2), "x", "h", "bias relu"),
            pool("p", "max", window, "h", "p"),
            WorkOp("s", Pointwise(), ("p",), (made,), "s", made, "add relu", ("r",), channel=1),
            SectionOp("d", conv("d", 16, 16, 6, 3), "s", "t", "bias"),
            WorkOp("m", Mean(keep=False), ("t",), (made,), "m", (1, 16), channel=1),
        ),
        ("s", "m"),
    )


def region_of(section: Section) -> Region:
    count = len(section.layers)
    return lay_out(section, [HOW] * count, [0] * count)


def test_two_layer_mlp(golden: Callable[[str], None]) -> None:
    golden(str(region_of(mlp())))


def test_bottleneck_with_stride_2(golden: Callable[[str], None]) -> None:
    golden(str(region_of(bottleneck())))


def test_a_shared_list_is_as_long_as_its_stream(golden: Callable[[str], None]) -> None:
    golden(str(lay_out(mlp(), [SHARED, HOW], [60, 0])))


def test_regions_pass_their_check() -> None:
    for section in (mlp(), bottleneck(), encoder(), stem()):
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
        def names(own: tuple[str, ...]) -> tuple[str, ...]:
            return tuple(prefix + name for name in own)

        ops = tuple(
            replace(
                op,
                site=prefix + op.site,
                layer=replace(op.layer, name=prefix + op.layer.name, weight=prefix),
                source=prefix + op.source,
                target=prefix + op.target,
                tensors=names(op.tensors),
            )
            if isinstance(op, SectionOp)
            else replace(
                op,
                site=prefix + op.site,
                sources=names(op.sources),
                target=prefix + op.target,
                tensors=names(op.tensors),
            )
            for op in section.ops
        )
        return Section(names(section.inputs), ops, names(section.outputs))

    for section in (mlp(), bottleneck(), encoder(), stem()):
        assert region_of(renamed(section, "layer2.")) == region_of(section)


def test_source_geometry_is_the_grid_that_the_kernel_walks() -> None:
    section = bottleneck()
    geometry, values = source_geometry(section), place(section)
    assert set(geometry) == {"a", "b", "s", "c"}
    for op in section.layers:
        assert geometry[op.site] == values[source_view(op)].geometry
    assert set(source_geometry(mlp()).values()) == {Tokens()}


def test_a_stride_of_one_reads_whole_images() -> None:
    section = bottleneck()
    assert source_view(section.ops[0]) == View("x")
    assert source_view(section.ops[1]) == View("h", (2, 2), ((0, 0), (0, 1), (1, 0), (1, 1)))
    assert source_view(section.ops[2]) == View("x", (2, 2), ((0, 0),))


# Work between layers ----------------------------------------------------------------------------------------


def test_a_transformer_block_of_sequences(golden: Callable[[str], None]) -> None:
    golden(str(region_of(encoder())))


def test_a_stem_with_pools_and_a_mean(golden: Callable[[str], None]) -> None:
    golden(str(region_of(stem())))


def test_attention_makes_each_sequence_an_item() -> None:
    region = region_of(encoder())
    assert {value.geometry for _, value in region.values} == {Tokens(length=197)}
    assert region.tokens == Tokens(length=197)
    assert region.tokens.tiles == 4


def test_weights_do_not_mind_how_tokens_are_cut_into_items() -> None:
    assert set(source_geometry(encoder()).values()) == {Tokens()} == set(source_geometry(mlp()).values())


def test_a_mask_is_read_as_it_lies() -> None:
    """It does not enter: no value of the region stands for it."""
    region = region_of(encoder())
    assert region.inputs == (Border(64), Border(1, 197, 208))
    assert [call.source for call in region.calls if isinstance(call, Enter)] == [0]
    (attention,) = (c for c in region.calls if isinstance(c, Apply) and isinstance(c.work, Attention))
    assert attention.plain == (1,)
    assert len(attention.sources) == 3


def test_a_mask_may_be_one_for_all() -> None:
    shared = region_of(encoder(mask_batch=1))
    assert shared.inputs == (Border(64), Border(1, 197, 208, shared=True))
    assert shared != region_of(encoder())
    assert shared.calls == region_of(encoder()).calls


def test_vectors_of_work_are_numbered_with_those_of_layers() -> None:
    region = region_of(encoder())
    assert [call.vectors for call in region.calls if isinstance(call, Rows | Apply)] == [
        (0, 1),
        (2,),
        (),
        (3,),
        (4,),
    ]
    assert region.vectors == 5


def test_a_pool_reads_as_a_convolution_does() -> None:
    """In phases, with zeros around it where it has padding."""
    section = stem()
    pooling = section.ops[1]
    assert source_view(pooling) == View("h", (2, 2), ((0, 0), (0, 1), (1, 0), (1, 1)))
    split = place(section)[source_view(pooling)]
    assert split.channels == 4 * 16
    assert split.zero_pads


def test_a_pool_and_a_convolution_may_read_the_same_phases() -> None:
    window = replace(conv("", 4, 1, 10, 3, stride=2), groups=4, input_shape=(1, 4, 10, 10))
    ops = (
        SectionOp("a", conv("a", 4, 4, 10, 1), "x", "h"),
        SectionOp("b", conv("b", 8, 4, 10, 3, stride=2), "h", "y"),
        pool("p", "mean", window, "h", "z"),
    )
    calls = region_of(Section(("x",), ops, ("y", "z"))).calls
    assert sum(isinstance(call, Split) for call in calls) == 1


def test_a_mean_lies_on_a_grid_of_its_own() -> None:
    values = place(stem())
    mean, image = values[View("m")], values[View("t")]
    assert isinstance(mean.geometry, Planes)
    assert (mean.channels, mean.geometry.height, mean.geometry.width) == (16, 1, 1)
    assert mean.geometry != image.geometry
    assert region_of(stem()).outputs == (Border(16, 6, 6), Border(16))


def test_a_mean_that_keeps_its_dimensions_is_an_image() -> None:
    made = (1, 4, 1, 1)
    ops = (
        SectionOp("a", conv("a", 4, 3, 10, 3), "x", "h"),
        WorkOp("m", Mean(keep=True), ("h",), ((1, 4, 10, 10),), "m", made, channel=1),
        SectionOp("b", conv("b", 2, 4, 1, 1), "m", "y", "sigmoid"),
    )
    region = region_of(Section(("x",), ops, ("m", "y")))
    region.check()
    assert region.outputs == (Border(4, 1, 1), Border(2, 1, 1))


def test_what_a_sum_reads_from_outside_enters_on_its_grid() -> None:
    region, value = region_of(stem()), region_of(stem()).value
    (total,) = (c for c in region.calls if isinstance(c, Apply) and isinstance(c.work, Pointwise))
    assert len({value[name].geometry for name in (*total.sources, *total.tensors, total.target)}) == 1
    assert [call.source for call in region.calls if isinstance(call, Enter)] == [0, 1]
    assert [call.target for call in region.calls if isinstance(call, Exit)] == [0, 1]
