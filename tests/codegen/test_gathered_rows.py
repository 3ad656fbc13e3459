"""Generated kernels against their meaning in plain PyTorch: random layers, patterns, schedules, epilogues."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparsecomp.codegen.compiled_region import LoweredRegion, compile_region
from sparsecomp.codegen.cpu.epilogues import HEAVY_STEPS
from sparsecomp.codegen.layout import lay_out, source_geometry
from sparsecomp.codegen.machine import machine_of
from sparsecomp.codegen.stream import make_stream
from sparsecomp.epilogue import STEPS, split_steps
from sparsecomp.layer import Layer
from sparsecomp.pattern import PATTERNS, RowBlocks, pack
from sparsecomp.region import RowsKernelChoice, Schedule, Section, SectionOp, run_section
from sparsecomp.target import Target

MACHINE = machine_of(Target())
TOLERANCE = 1e-5

DENSITIES = st.sampled_from([0.0, 0.02, 0.1, 0.5, 1.0])
EPILOGUES = (
    st.lists(st.sampled_from(sorted(STEPS)), max_size=4)
    .filter(lambda steps: sum(step in HEAVY_STEPS for step in steps) <= 2)
    .map(" ".join)
)
LEADING = st.one_of(
    st.just(()), st.tuples(st.integers(1, 300)), st.tuples(st.integers(1, 5), st.integers(1, 70))
)


def budget(examples: int) -> settings:
    """A kernel takes 0.1 to 0.5 seconds to compile; so few examples, each of them with much in it."""
    return settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))


@dataclass(frozen=True)
class Case:
    """A section, how each of its ops is to run, and everything random about it."""

    section: Section
    choices: tuple[RowsKernelChoice, ...]
    densities: tuple[float, ...]
    seed: int


@st.composite
def linear_layers(draw: st.DrawFn) -> Layer:
    rows, columns, leading = draw(st.integers(1, 50)), draw(st.integers(1, 70)), draw(LEADING)
    return Layer("fc", "linear", "w", (rows, columns), (*leading, columns))


@st.composite
def conv_layers(draw: st.DrawFn) -> Layer:
    def axis(largest_kernel: int) -> tuple[int, int, int, int, int, int]:
        kernel, stride = draw(st.integers(1, largest_kernel)), draw(st.integers(1, 3))
        dilation = draw(st.integers(1, 2)) if kernel > 1 else 1
        before, after = draw(st.integers(0, 4)), draw(st.integers(0, 4))
        least = max(1, dilation * (kernel - 1) + 1 - before - after)
        return kernel, stride, dilation, before, after, least + draw(st.integers(0, 17))

    flat = draw(st.booleans())
    height = (1, 1, 1, 0, 0, 1) if flat else axis(5)
    width = axis(5)
    groups, inputs, outputs = draw(st.integers(1, 4)), draw(st.integers(1, 5)), draw(st.integers(1, 9))
    if draw(st.booleans()):  # depthwise
        groups, inputs, outputs = draw(st.integers(1, 20)), 1, draw(st.integers(1, 2))
    return Layer(
        "conv",
        "conv1d" if flat else "conv2d",
        "w",
        (groups * outputs, inputs, height[0], width[0]),
        (draw(st.integers(1, 3)), groups * inputs, height[5], width[5]),
        stride=(height[1], width[1]),
        padding=(height[3], height[4], width[3], width[4]),
        dilation=(height[2], width[2]),
        groups=groups,
    )


def allowed(layer: Layer, pattern: RowBlocks) -> bool:
    return layer.groups == 1 or not (pattern.shared or layer.rows // layer.groups % pattern.rows)


@st.composite
def choices_for(draw: st.DrawFn, layer: Layer) -> RowsKernelChoice:
    pattern = draw(st.sampled_from([pattern for pattern in PATTERNS if allowed(layer, pattern)]))
    columns = draw(st.one_of(st.just(layer.columns), st.integers(1, layer.columns)))
    schedule = Schedule(draw(st.integers(1, 8)), columns, draw(st.sampled_from([0, 128])))
    return RowsKernelChoice(pattern, schedule)


@st.composite
def single_layers(draw: st.DrawFn, layers: st.SearchStrategy[Layer]) -> Case:
    """One layer, with an epilogue whose tensors are inputs."""
    layer, epilogue = draw(layers), draw(EPILOGUES)
    count = sum(STEPS[step] == "tensor" for step in split_steps(epilogue))
    tensors = tuple(f"t{i}" for i in range(count))
    op = SectionOp("s", layer, "x", "y", epilogue, tensors)
    choice, density = draw(choices_for(layer)), draw(DENSITIES)
    return Case(Section(("x", *tensors), (op,), ("y",)), (choice,), (density,), draw(st.integers(0, 999)))


def random_matrix(op: SectionOp, density: float) -> Tensor:
    matrix = torch.randn(op.layer.rows, op.layer.columns) * (op.layer.columns * max(density, 0.1)) ** -0.5
    return matrix * (torch.rand(matrix.shape) < density)


def random_vectors(op: SectionOp) -> list[Tensor]:
    steps = split_steps(op.epilogue)
    return [torch.randn(op.layer.rows) for step in steps if STEPS[step] == "vector"]


def lowered(
    section: Section,
    choices: Sequence[RowsKernelChoice],
    matrices: dict[str, Tensor],
    vectors: dict[str, list[Tensor]],
    threads: Callable[[], int],
) -> LoweredRegion:
    geometry = source_geometry(section)
    streams = [
        make_stream(pack(matrices[op.site], how.pattern), op.layer, geometry[op.site], how.schedule)
        for op, how in zip(section.ops, choices, strict=True)
    ]
    region = lay_out(section, choices, [stream.kept for stream in streams])
    operands = [vector for op in section.ops for vector in vectors[op.site]]
    return LoweredRegion(compile_region(region, MACHINE), streams, operands, threads)


def check(case: Case, leading: Sequence[tuple[int, ...]] = ()) -> None:
    """The compiled section gives what PyTorch gives in float64, on 1 thread, on 2, and after garbage."""
    torch.manual_seed(case.seed)
    section, threads = case.section, [1]
    pairs = zip(section.ops, case.densities, strict=True)
    matrices = {op.site: random_matrix(op, density) for op, density in pairs}
    vectors = {op.site: random_vectors(op) for op in section.ops}
    run = lowered(section, case.choices, matrices, vectors, lambda: threads[0]).run
    inputs = [torch.randn(shape) for shape in section.input_shapes]
    expected = run_section(
        section,
        lambda op: matrices[op.site].double(),
        {site: [vector.double() for vector in own] for site, own in vectors.items()},
        [x.double() for x in inputs],
    )
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
        error = float((y.double() - wanted).abs().max()) / scale
        assert error <= TOLERANCE


@budget(60)
@given(single_layers(linear_layers()))
def test_linear(case: Case) -> None:
    check(case)


@budget(60)
@given(single_layers(conv_layers()))
def test_convolution(case: Case) -> None:
    check(case)
