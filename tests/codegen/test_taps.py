"""Pooling and depthwise convolution against PyTorch in float64, on images laid out as regions lay them out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from sparsecomp.codegen.cpu.taps import TapsKernel, taps
from sparsecomp.codegen.machine import Machine
from sparsecomp.epilogue import STEPS, apply, split_steps
from sparsecomp.geometry import Planes, Taps, grid, offsets, phase_size
from sparsecomp.layer import Layer
from tests.codegen.kernels import MACHINES, Output, compiled, in_parts, surrounded

Kind = Literal["max", "sum", "weighted"]
SCALE = 0.37


@dataclass(frozen=True)
class Case:
    kind: Kind
    channels: int
    size: tuple[int, int]
    kernel: tuple[int, int]
    stride: int = 1
    dilation: int = 1
    padding: tuple[int, int] = (0, 0)
    """At most half of the kernel, as PyTorch wants of a pool."""
    epilogue: str = ""
    masked: bool = True
    machine: int = 0

    @property
    def layer(self) -> Layer:
        """A depthwise convolution, for its geometry."""
        (up, left), shape = self.padding, (1, self.channels, *self.size)
        return Layer(
            "taps",
            "conv2d",
            "w",
            (self.channels, 1, *self.kernel),
            shape,
            stride=(self.stride, self.stride),
            padding=(up, up, left, left),
            dilation=(self.dilation, self.dilation),
            groups=self.channels,
        )

    @property
    def geometry(self) -> tuple[Planes, Planes]:
        """Of x and y, on one grid."""
        layer, at = self.layer, Taps.of(self.layer)
        (height, width), output = phase_size(layer), layer.output_size
        shared = grid([(height, width), output], at.margin(layer, height, width), at.span)
        source = Planes(height, width, shared.row, shared.plane, shared.origin)
        return source, Planes(*output, shared.row, shared.plane, shared.origin)

    @property
    def spec(self) -> TapsKernel:
        source, target = self.geometry
        steps = split_steps(self.epilogue)
        lanes = self.on.lanes
        return TapsKernel(
            self.kind,
            self.channels,
            len(Taps.of(self.layer).phases),
            tuple(int(offset) for offset in offsets(self.layer, source)[0]),
            source.plane,
            target.plane,
            -(-target.columns // lanes),
            SCALE,
            self.masked,
            self.epilogue,
            (target.plane,) * sum(STEPS[step] == "tensor" for step in steps),
        )

    @property
    def on(self) -> Machine:
        return MACHINES[self.machine]


def view(buffer: Tensor, geometry: Planes) -> Tensor:
    """channels x height x width of a buffer of planes."""
    rows = buffer[:, geometry.origin : geometry.origin + geometry.height * geometry.row]
    return rows.view(len(buffer), geometry.height, geometry.row)[:, :, : geometry.width]


def lay_out(x: Tensor, case: Case) -> Tensor:
    """Phase planes of an image, in padding that adds nothing."""
    geometry, _ = case.geometry
    phases, step = Taps.of(case.layer).phases, case.stride
    nothing = -math.inf if case.kind == "max" else 0.0
    planes = torch.full((case.channels, len(phases), geometry.plane), nothing)
    for position, (top, left) in enumerate(phases):
        phase = x[:, top::step, left::step]
        view(planes[:, position], geometry)[:, : phase.shape[1], : phase.shape[2]] = phase
    return planes


def meaning(x: Tensor, weight: Tensor, case: Case) -> Tensor:
    x = x.double()[None]
    if case.kind == "max":
        return F.max_pool2d(x, case.kernel, case.stride, case.padding, case.dilation)[0]
    weight = weight.double() if case.kind == "weighted" else torch.full_like(weight.double(), SCALE)
    weight = weight.view(case.channels, 1, *case.kernel)
    return F.conv2d(x, weight, None, case.stride, case.padding, case.dilation, case.channels)[0]


def check(case: Case, parts: int = 1, x: Tensor | None = None) -> None:
    _, target = case.geometry
    x = torch.randn(case.channels, *case.size) if x is None else x
    weight = torch.randn(case.channels, math.prod(case.kernel))
    expected = meaning(x, weight, case)
    operands, buffers = random_operands(case, expected.shape)
    y, source = Output(case.channels, target.plane), surrounded(lay_out(x, case))
    mask = torch.zeros(target.plane)
    mask[: len(target.mask)] = torch.from_numpy(target.mask)
    tensors = [source.view(-1)[target.origin :], y.tensor.view(-1)[target.origin :], mask]
    tensors += [weight] * (case.kind == "weighted")
    in_parts(compiled(taps, case.spec, case.on), [*tensors, *buffers], parts)
    y.check()
    expected = apply(expected, case.epilogue, [operand.double() for operand in operands], channel=0)
    bound = 1e-5 * max(1.0, float(expected.nan_to_num().abs().max()))
    torch.testing.assert_close(
        view(y.tensor, target).double(), expected, rtol=1e-5, atol=bound, equal_nan=True
    )
    check_padding(y.tensor, target, case)


def random_operands(case: Case, shape: torch.Size) -> tuple[list[Tensor], list[Tensor]]:
    """What the epilogue takes, and where it lies for the kernel."""
    _, target = case.geometry
    operands, buffers = list[Tensor](), list[Tensor]()
    for step in split_steps(case.epilogue):
        match STEPS[step]:
            case "vector":
                operands.append(torch.randn(case.channels))
                buffers.append(operands[-1])
            case "tensor":
                operands.append(torch.randn(shape))
                planes = surrounded(torch.full((case.channels, target.plane), torch.nan))
                view(planes, target).copy_(operands[-1])
                buffers.append(planes.view(-1)[target.origin :])
    return operands, buffers


def check_padding(y: Tensor, target: Planes, case: Case) -> None:
    """Columns that are padding are zero if masked; before the first column and after the last nothing is stored."""
    columns = y[:, target.origin : target.origin + case.spec.vectors * case.on.lanes]
    if case.masked:
        padding = torch.from_numpy(target.mask)[: columns.shape[1]] == 0
        assert not bool(columns[:, padding].any())
    assert bool(y[:, : target.origin].isnan().all())
    assert bool(y[:, target.origin + columns.shape[1] :].isnan().all())


@st.composite
def cases(draw: st.DrawFn) -> Case:
    height, width = draw(st.integers(1, 20)), draw(st.integers(1, 40))
    kernel = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    padding = draw(st.integers(0, kernel[0] // 2)), draw(st.integers(0, kernel[1] // 2))
    dilation = draw(st.integers(1, 2))
    reach = [dilation * (k - 1) + 1 - 2 * p for k, p in zip(kernel, padding, strict=True)]
    return Case(
        draw(st.sampled_from(["max", "sum", "weighted"])),
        draw(st.integers(1, 5)),
        (max(height, reach[0]), max(width, reach[1])),
        kernel,
        draw(st.integers(1, 3)),
        dilation,
        padding,
        draw(st.lists(st.sampled_from(sorted(STEPS)), max_size=2).map(" ".join)),
        draw(st.booleans()),
        draw(st.sampled_from([0, 0, 0, 1, 2])),
    )


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(cases(), st.integers(1, 4))
def test_any(case: Case, parts: int) -> None:
    check(case, parts)


@pytest.mark.parametrize(
    "case",
    [
        Case("weighted", 3, (14, 14), (7, 7), padding=(3, 3), epilogue="scale bias relu"),
        Case("weighted", 2, (15, 20), (7, 7), stride=2, padding=(3, 3)),
        Case("sum", 2, (7, 7), (7, 7)),
        Case("max", 2, (30, 30), (5, 5), padding=(2, 2)),
        Case("weighted", 2, (24, 24), (7, 7), dilation=2, padding=(3, 3), machine=1),
    ],
    ids=str,
)
def test_many_taps(case: Case) -> None:
    check(case)
    assert case.spec.period < len(case.spec.offsets)


def test_many_taps_that_do_not_repeat() -> None:
    case = Case("weighted", 2, (15, 20), (3, 7), stride=2, padding=(1, 3))
    check(case)
    assert case.spec.period == len(case.spec.offsets)


@pytest.mark.parametrize("kind", ["sum", "weighted"])
@pytest.mark.parametrize("dilation", [1, 2, 5, 16])
def test_taps_between_others(kind: Kind, dilation: int) -> None:
    """Their vectors are shuffled from their neighbours', which overlap, touch or lie apart."""
    check(Case(kind, 2, (5, 70), (1, 4), dilation=dilation, padding=(0, 2)), parts=2)


def test_period_of_offsets() -> None:
    def period(offsets: Sequence[int]) -> int:
        return TapsKernel("sum", 1, 1, tuple(offsets), 1, 1, 1, 1.0, masked=False).period

    assert period([0, 1, 10, 11]) == 4
    assert period([10 * r + s for r in range(7) for s in range(7)]) == 7
    assert period([1000 * (r % 2) + 10 * (r // 2) + s for r in range(7) for s in range(7)]) == 14
    assert period(range(30)) == 1
    assert period([i * i for i in range(30)]) == 30


@pytest.mark.parametrize("machine", [0, 1, 2])
def test_nan_stays_nan(machine: int) -> None:
    """Wherever it is in the window, and whatever its sign."""
    x = torch.randn(2, 12, 12)
    x[0, 5, 5], x[1, 3, 9], x[0, 0, 0], x[1, 11, 0] = torch.nan, -torch.tensor(torch.nan), math.inf, -math.inf
    check(Case("max", 2, (12, 12), (3, 3), padding=(1, 1), machine=machine), x=x)
