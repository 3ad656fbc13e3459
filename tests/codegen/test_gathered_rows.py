"""Generated kernels against their meaning in plain PyTorch: random layers, patterns, schedules, epilogues."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparsecomp.codegen.compiled_region import compile_region
from sparsecomp.codegen.layout import lay_out, source_geometry
from sparsecomp.codegen.lowered_region import LoweredRegion
from sparsecomp.codegen.machine import machine_of
from sparsecomp.codegen.stream import make_stream
from sparsecomp.epilogue import STEPS, split_steps
from sparsecomp.geometry import TILE
from sparsecomp.layer import Layer
from sparsecomp.pattern import PATTERNS, RowBlocks, pack
from sparsecomp.region import RowsKernelChoice, Schedule
from sparsecomp.section import Section, SectionOp, run_section
from sparsecomp.target import Target

MACHINE = machine_of(Target())
TOLERANCE = 1e-5
"""Of the largest output: float32 sums of up to some hundred products in another order."""

Shape = tuple[int, ...]


def examples(count: int) -> settings:
    """A kernel takes 0.1 to 0.5 seconds to compile: few examples, with much in each."""
    return settings(max_examples=count, deadline=None, suppress_health_check=list(HealthCheck))


# Random layers and sections ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A section, how its ops are to run, how many weights they keep, and a seed for the numbers."""

    section: Section
    choices: tuple[RowsKernelChoice, ...]
    densities: tuple[float, ...]
    seed: int


EPILOGUES = st.lists(st.sampled_from(sorted(STEPS)), max_size=4).map(" ".join)
LEADING = st.one_of(
    st.just(()),
    st.tuples(st.integers(1, 2 * TILE + 40)),
    st.tuples(st.integers(1, 5), st.integers(1, TILE // 2 + 6)),
)
IMAGES = st.tuples(st.integers(1, 3), st.integers(1, 12), st.integers(1, 18), st.integers(1, 18))


@st.composite
def token_shapes(draw: st.DrawFn) -> Shape:
    return (*draw(LEADING), draw(st.integers(1, 70)))


@st.composite
def image_shapes(draw: st.DrawFn) -> Shape:
    batch, channels, height, width = draw(IMAGES)
    return batch, channels, draw(st.sampled_from([1, height])), width


def linear_on(draw: st.DrawFn, shape: Shape, rows: int | None) -> Layer:
    rows = rows or draw(st.integers(1, 50))
    return Layer("fc", "linear", "w", (rows, shape[-1]), shape)


def conv_on(draw: st.DrawFn, shape: Shape, rows: int | None) -> Layer:
    """A convolution of images of this shape; with `rows` given one that keeps height and width."""

    def axis(size: int) -> tuple[int, int, int, int, int]:
        kernel, dilation = draw(st.integers(1, 5)), draw(st.integers(1, 2))
        reach = dilation * (kernel - 1)
        if rows is not None:
            return kernel, 1, dilation, reach // 2, reach - reach // 2
        before, after = draw(st.integers(0, 4)), draw(st.integers(0, 4))
        missing = max(0, reach + 1 - size - before - after)
        return kernel, draw(st.integers(1, 3)), dilation, before, after + missing

    channels, height, width = shape[1:]
    flat = height == 1 and draw(st.booleans())
    (kh, sh, dh, top, bottom), (kw, sw, dw, left, right) = (
        (1, 1, 1, 0, 0) if flat else axis(height),
        axis(width),
    )
    divisors = [n for n in range(1, channels + 1) if channels % n == 0 and (rows or n) % n == 0]
    groups = draw(st.sampled_from([1, *divisors]))
    outputs = rows or groups * draw(st.integers(1, 9))
    return Layer(
        "conv",
        "conv1d" if flat else "conv2d",
        "w",
        (outputs, channels // groups, kh, kw),
        shape,
        stride=(sh, sw),
        padding=(top, bottom, left, right),
        dilation=(dh, dw),
        groups=groups,
    )


LayerOn = Callable[[st.DrawFn, Shape, int | None], Layer]


@st.composite
def choices(draw: st.DrawFn, layer: Layer) -> RowsKernelChoice:
    def allowed(pattern: RowBlocks) -> bool:
        return layer.groups == 1 or not (pattern.shared or layer.rows // layer.groups % pattern.rows)

    pattern = draw(st.sampled_from([pattern for pattern in PATTERNS if allowed(pattern)]))
    columns = draw(st.sampled_from([layer.columns, draw(st.integers(1, layer.columns))]))
    return RowsKernelChoice(
        pattern, Schedule(draw(st.integers(1, 8)), columns, draw(st.sampled_from([0, 128])))
    )


@st.composite
def cases(draw: st.DrawFn, shapes: st.SearchStrategy[Shape], layer_on: LayerOn, most: int) -> Case:
    """Up to `most` layers. Each reads any value before it, and so do the tensors of its epilogue where shapes
    agree; other tensors are inputs. What nothing reads is an output, and so are some other values."""
    shape_of = {"x": draw(shapes)}
    inputs, ops = ["x"], list[SectionOp]()
    for number in range(draw(st.integers(min(2, most), most))):
        source = draw(st.sampled_from(list(shape_of)))
        keeps_shape = most > 1 and draw(st.booleans())
        rows = shape_of[source][_channel(shape_of[source])] if keeps_shape else None
        layer = layer_on(draw, shape_of[source], rows)
        epilogue, tensors = draw(EPILOGUES), list[str]()
        for step in split_steps(epilogue):
            if STEPS[step] == "tensor":
                same = [name for name, shape in shape_of.items() if shape == layer.output_shape]
                tensor = draw(st.sampled_from([f"t{len(inputs)}", *same]))
                if tensor not in shape_of:
                    shape_of[tensor] = layer.output_shape
                    inputs.append(tensor)
                tensors.append(tensor)
        ops.append(SectionOp(f"s{number}", layer, source, f"y{number}", epilogue, tuple(tensors)))
        shape_of[f"y{number}"] = layer.output_shape
    read = {name for op in ops for name in (op.source, *op.tensors)}
    outputs = [op.target for op in ops if op.target not in read or draw(st.booleans())]
    return Case(
        Section(tuple(inputs), tuple(ops), tuple(outputs)),
        tuple(draw(choices(op.layer)) for op in ops),
        tuple(draw(st.sampled_from([0.0, 0.02, 0.1, 0.5, 1.0])) for _ in ops),
        draw(st.integers(0, 999)),
    )


def _channel(shape: Shape) -> int:
    return 1 if len(shape) == 4 else -1


LINEAR = cases(token_shapes(), linear_on, 1)
CONVOLUTION = cases(image_shapes(), conv_on, 1)
LINEARS = cases(token_shapes(), linear_on, 4)
CONVOLUTIONS = cases(image_shapes(), conv_on, 4)


# The law -------------------------------------------------------------------------------------------------


def lowered(
    section: Section,
    how: Sequence[RowsKernelChoice],
    matrices: dict[str, Tensor],
    vectors: dict[str, list[Tensor]],
    threads: Callable[[], int],
) -> LoweredRegion:
    geometry = source_geometry(section)
    streams = [
        make_stream(
            pack(matrices[op.site], choice.pattern, op.layer.groups),
            op.layer,
            geometry[op.site],
            choice.schedule,
        )
        for op, choice in zip(section.layers, how, strict=True)
    ]
    region = lay_out(section, how, [stream.kept for stream in streams])
    operands = [vector for op in section.layers for vector in vectors[op.site]]
    return LoweredRegion(compile_region(region, MACHINE), streams, operands, threads)


def random_matrix(layer: Layer, density: float) -> Tensor:
    """Of outputs about as large as the inputs."""
    kept = torch.rand(layer.rows, layer.columns) < density
    scale: float = (layer.columns * max(density, 0.1)) ** -0.5
    return torch.randn(kept.shape) * kept * scale


def check(case: Case) -> None:
    """The compiled section gives what PyTorch gives in float64; on one thread, on two, and in an arena full of
    what NaN and infinity left there."""
    torch.manual_seed(case.seed)
    section, threads = case.section, [1]
    matrices = {
        op.site: random_matrix(op.layer, density)
        for op, density in zip(section.layers, case.densities, strict=True)
    }
    vectors = {
        op.site: [torch.randn(op.layer.rows) for step in split_steps(op.epilogue) if STEPS[step] == "vector"]
        for op in section.layers
    }
    inputs = [torch.randn(shape) for shape in section.input_shapes]
    expected = run_section(
        section,
        lambda op: matrices[op.site].double(),
        {site: [vector.double() for vector in own] for site, own in vectors.items()},
        [x.double() for x in inputs],
    )
    run = lowered(section, case.choices, matrices, vectors, lambda: threads[0]).run
    assert_close(run(inputs), expected)
    threads[0] = 2
    for garbage in (torch.nan, torch.inf):
        run([torch.full_like(x, garbage) for x in inputs])
    assert_close(run(inputs), expected)
    threads[0] = 1
    assert_close(run(inputs), expected)


def assert_close(actual: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    assert [y.shape for y in actual] == [y.shape for y in expected]
    for y, wanted in zip(actual, expected, strict=True):
        scale = max(1.0, float(wanted.abs().max()))
        assert float((y.double() - wanted).abs().max()) <= TOLERANCE * scale


@examples(50)
@given(LINEAR)
def test_linear(case: Case) -> None:
    check(case)


@examples(50)
@given(CONVOLUTION)
def test_convolution(case: Case) -> None:
    check(case)


@examples(12)
@given(LINEARS)
def test_section_of_linear_layers(case: Case) -> None:
    check(case)


@examples(20)
@given(CONVOLUTIONS)
def test_section_of_convolutions(case: Case) -> None:
    check(case)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", [LINEAR, CONVOLUTION, LINEARS, CONVOLUTIONS])
@settings(parent=examples(250))
@given(data=st.data())
def test_five_times_as_many(strategy: st.SearchStrategy[Case], data: st.DataObject) -> None:
    check(data.draw(strategy))


# Pitfalls ------------------------------------------------------------------------------------------------


def case_of(ops: Sequence[SectionOp], inputs: Sequence[str], outputs: Sequence[str]) -> Case:
    how = RowsKernelChoice(RowBlocks(1), Schedule(4, 16))
    section = Section(tuple(inputs), tuple(ops), tuple(outputs))
    return Case(section, (how,) * len(ops), (1.0,) * len(ops), 0)


def conv(rows: int, shape: Shape, kernel: int, padding: int, stride: int = 1) -> Layer:
    weight = (rows, shape[1], kernel, kernel)
    return Layer("conv", "conv2d", "w", weight, shape, stride=(stride, stride), padding=(padding,) * 4)


@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_an_image_of_one_pixel(kernel: int) -> None:
    """Its loops run once, so everything inlines; with alias metadata LLVM then moved loads before stores."""
    layer = conv(3, (1, 2, 1, 1), kernel, kernel // 2)
    check(case_of([SectionOp("s", layer, "x", "y")], ["x"], ["y"]))


def test_a_single_weight() -> None:
    layer = Layer("fc", "linear", "w", (1, 1), (1, 1))
    check(case_of([SectionOp("s", layer, "x", "y", "bias relu")], ["x"], ["y"]))


def test_garbage_does_not_leak_out_of_padding() -> None:
    """The first convolution has no padding, so between image rows of its output lies whatever the columns
    between its own rows gave. The second reads there: it must find zeros, even after infinity and NaN."""
    shape = (2, 4, 9, 9)
    ops = [
        SectionOp("a", conv(8, shape, 3, 0), "x", "h", "bias gelu"),
        SectionOp("b", conv(8, (2, 8, 7, 7), 3, 1), "h", "g", "add multiply", ("h", "h")),
        SectionOp("c", conv(4, (2, 8, 7, 7), 5, 2), "g", "y"),
    ]
    check(case_of(ops, ["x"], ["y", "g"]))


def test_garbage_does_not_leak_through_phases() -> None:
    """An odd image split by a stride of 2: the phases are of different size."""
    ops = [
        SectionOp("a", conv(6, (1, 4, 9, 7), 3, 0), "x", "h", "relu"),
        SectionOp("b", conv(5, (1, 6, 7, 5), 3, 1, stride=2), "h", "y", "add", ("r",)),
    ]
    check(case_of(ops, ["x", "r"], ["y"]))


def test_one_layout_for_several_batches_and_threads() -> None:
    """Arenas are kept: one made for few threads is not lent to many, nor do images of another call remain."""
    layer = conv(8, (1, 4, 6, 6), 3, 1)
    section = Section(("x",), (SectionOp("s", layer, "x", "y"),), ("y",))
    matrix, threads = torch.randn(8, 36), [1]
    how = [RowsKernelChoice(RowBlocks(2), Schedule(2, 9))]
    run = lowered(section, how, {"s": matrix}, {"s": []}, lambda: threads[0]).run
    for batch, count in [(1, 1), (5, 2), (0, 2), (2, 3), (1, 4), (7, 1)]:
        threads[0], x = count, torch.randn(batch, 4, 6, 6)
        torch.testing.assert_close(run([x])[0], layer.dense(x, matrix))


def test_tokens_come_in_any_leading_shape() -> None:
    layer = Layer("fc", "linear", "w", (6, 10), (3, 10))
    section = Section(("x",), (SectionOp("s", layer, "x", "y"),), ("y",))
    matrix, how = torch.randn(6, 10), [RowsKernelChoice(RowBlocks(4, shared=True), Schedule(2, 10))]
    run = lowered(section, how, {"s": matrix}, {"s": []}, lambda: 2).run
    for leading in [(), (1,), (127,), (128,), (129,), (2, 200), (3, 1, 5), (0,), (4, 0)]:
        x = torch.randn(*leading, 10)
        (y,) = run([x])
        assert y.shape == (*leading, 6)
        torch.testing.assert_close(y, x @ matrix.T)


def test_inputs_need_not_be_contiguous() -> None:
    layer = conv(8, (2, 4, 6, 6), 3, 1)
    section = Section(("x",), (SectionOp("s", layer, "x", "y"),), ("y",))
    matrix, how = torch.randn(8, 36), [RowsKernelChoice(RowBlocks(8), Schedule(2, 36))]
    run = lowered(section, how, {"s": matrix}, {"s": []}, lambda: 1).run
    x = torch.randn(2, 6, 6, 4).permute(0, 3, 1, 2)
    torch.testing.assert_close(run([x])[0], layer.dense(x, matrix))
