"""The vector forms of the activations against PyTorch in float64."""

from __future__ import annotations

import math

import pytest
import torch
import tvm
from torch import Tensor
from tvm import s_tir

from sparsecomp.codegen.compiled_region import compile_region
from sparsecomp.codegen.cpu.epilogues import HEAVY_STEPS
from sparsecomp.codegen.cpu.gathered_rows import RowsKernel, gathered_rows
from sparsecomp.codegen.layout import lay_out, source_geometry
from sparsecomp.codegen.lowered_region import LoweredRegion
from sparsecomp.codegen.machine import machine_of
from sparsecomp.codegen.stream import make_stream
from sparsecomp.epilogue import ACTIVATIONS, STEPS, apply, split_steps
from sparsecomp.layer import Layer
from sparsecomp.pattern import RowBlocks, pack
from sparsecomp.region import RowsKernelChoice, Schedule
from sparsecomp.section import Section, SectionOp
from sparsecomp.target import Target

HOW = RowsKernelChoice(RowBlocks(1), Schedule(1, 1))

BOUNDS = {
    "relu": 0.0,
    "relu6": 0.0,
    "gelu": 1e-6,
    "gelu_tanh": 5e-7,
    "silu": 2e-7,
    "sigmoid": 1e-7,
    "tanh": 2e-7,
    "hardswish": 2e-7,
    "hardsigmoid": 1e-7,
}
"""Largest error, absolute below 1 and relative above."""
SMALL = {"gelu": 6e-7, "gelu_tanh": 6e-7, "silu": 3e-7, "tanh": 6e-7, "hardswish": 3e-7}
"""Largest relative error for |x| < 1 of those that are 0 at 0."""

DIFFERS_FROM_TORCH = {
    ("silu", -math.inf): -math.inf,
    ("gelu", math.inf): math.inf,
}
"""(activation, input) -> what the kernel gives; PyTorch gives NaN for each of these."""


def code_of(epilogue: str) -> LoweredRegion:
    """epilogue(x), for a layer of one weight that is 1 and operands that are 1 too."""
    layer = Layer("identity", "linear", "w", (1, 1), (1, 1))
    section = Section(("x",), (SectionOp("s", layer, "x", "y", epilogue),), ("y",))
    stream = make_stream(
        pack(torch.ones(1, 1), HOW.pattern), layer, source_geometry(section)["s"], HOW.schedule
    )
    code = compile_region(lay_out(section, [HOW], [0]), machine_of(Target()))
    return LoweredRegion(code, [stream], [], lambda: 1)


def run(epilogue: str, x: Tensor) -> Tensor:
    return code_of(epilogue).run([x[:, None]])[0][:, 0]


def dense_grid() -> Tensor:
    tiny = torch.logspace(-38, 0, 2000)
    near, far = torch.linspace(-10, 10, 200_001), torch.linspace(-100, 100, 200_001)
    return torch.cat([near, far, tiny, -tiny, torch.tensor([0.0, -0.0])])


def test_every_activation_has_a_bound() -> None:
    assert set(BOUNDS) == set(ACTIVATIONS)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_is_as_exact_as_documented(name: str) -> None:
    x = dense_grid()
    exact = ACTIVATIONS[name](x.double())
    error = (run(name, x).double() - exact).abs() / exact.abs().clamp(min=1)
    assert float(error.max()) <= BOUNDS[name]


@pytest.mark.parametrize("name", SMALL)
def test_small_values_keep_their_digits(name: str) -> None:
    x = dense_grid()
    x = x[(x.abs() < 1) & (x.abs() > 1e-36)]  # below, results are denormal
    exact = ACTIVATIONS[name](x.double())
    error = (run(name, x).double() - exact).abs() / exact.abs()
    assert float(error.max()) <= SMALL[name]


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("special", [math.nan, math.inf, -math.inf])
def test_nan_and_infinity(name: str, special: float) -> None:
    x = torch.full((20,), special)
    differs = [
        y for (other, at), y in DIFFERS_FROM_TORCH.items() if other == name and str(at) == str(special)
    ]
    expected = torch.full((20,), differs[0]) if differs else ACTIVATIONS[name](x)
    torch.testing.assert_close(run(name, x), expected, equal_nan=True)


@pytest.mark.parametrize("step", sorted(HEAVY_STEPS))
def test_steps_in_a_row_add_up(step: str) -> None:
    """TVM's simplifier writes a bound expression out at each of its uses. A step must not hand the next one an
    expression, or every further step multiplies the time to compile by about ten."""

    def size(epilogue: str) -> int:
        spec = RowsKernel(1, 0, 1, HOW.pattern, Schedule(1, 1), 0, 128, (), epilogue, masked=False)
        module = tvm.IRModule({"kernel": gathered_rows("kernel", spec, machine_of(Target()))})
        return len(s_tir.transform.StmtSimplify()(module).script())

    assert size(f"{step} {step}") < 3 * size(step)


def test_steps_apply_in_order() -> None:
    y, p, q = torch.randn(2, 3, 4, 4), torch.randn(3), torch.randn(2, 3, 4, 4)
    expected = torch.relu(y * p[:, None, None] + q) * q
    torch.testing.assert_close(apply(y, "scale add relu multiply", [p, q, q], channel=1), expected)
    last = apply(y, "bias", [torch.ones(4)], channel=-1)
    torch.testing.assert_close(last, y + 1)


def test_operands_are_counted() -> None:
    with pytest.raises(AssertionError, match="1 operands too many"):
        apply(torch.zeros(1, 1), "relu", [torch.zeros(1)], channel=1)


def test_steps_are_known_by_name() -> None:
    assert split_steps("scale bias  relu") == ("scale", "bias", "relu")
    assert split_steps("") == ()
    assert set(ACTIVATIONS) < set(STEPS)
    with pytest.raises(AssertionError, match="unknown epilogue steps"):
        split_steps("relu swish")
