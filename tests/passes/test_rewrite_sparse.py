"""Operators of chosen layers become primitives that mean the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsecomp import codegen
from sparsecomp.capture import capture
from sparsecomp.choice import Choice
from sparsecomp.passes import analysis, rewriting
from sparsecomp.passes.rewrite_sparse import RewriteSparse
from sparsecomp.pattern import RowBlocks
from sparsecomp.pipeline import run
from sparsecomp.primitives import REGIONS
from sparsecomp.program import Program
from sparsecomp.region import RowsKernelChoice, Schedule
from sparsecomp.target import Target

HOW = RowsKernelChoice(RowBlocks(1), Schedule(4, 64))


class Call(nn.Module):
    """A function of the inputs, a weight and a bias."""

    def __init__(
        self, function: Callable[..., Tensor], weight: tuple[int, ...], bias: tuple[int, ...] = (12,)
    ) -> None:
        super().__init__()
        self.function = function
        self.weight, self.bias = nn.Parameter(torch.randn(weight)), nn.Parameter(torch.randn(bias))

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(*inputs, self.weight, self.bias)


def chosen(model: nn.Module, *inputs: Tensor) -> Program:
    """Captured, every layer found, a kernel chosen for each."""
    program, _ = run(analysis(inputs), Program(capture(model.eval(), inputs).graph))
    choices = {site: Choice(layer.name, HOW, "") for site, layer in program.layers.items()}
    return replace(program, choices=choices)


FORMS: dict[str, tuple[Callable[..., Tensor], tuple[int, ...], tuple[int, ...]]] = {
    "linear": (lambda x, w, b: F.linear(x, w, b), (12, 16), (12,)),
    "linear without bias": (lambda x, w, b: F.linear(x, w), (12, 16), (12,)),
    "matmul": (lambda x, w, b: x @ w, (16, 12), (12,)),
    "transposed matmul": (lambda x, w, b: x @ w.t(), (12, 16), (12,)),
    "addmm": (lambda x, w, b: torch.addmm(b, x, w), (16, 12), (12,)),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_keeps_the_outputs(form: tuple[Callable[..., Tensor], tuple[int, ...], tuple[int, ...]]) -> None:
    function, weight, bias = form
    x = torch.randn(5, 16)
    program = chosen(Call(function, weight, bias), x)
    assert program.choices
    after = RewriteSparse()(program)
    torch.testing.assert_close(after(x), program(x))


def test_nothing_to_do() -> None:
    program = Program(capture(Call(F.linear, (12, 16)).eval(), (torch.randn(5, 16),)).graph)
    assert RewriteSparse()(program) is program


# Forms of a bias that are not one constant number a channel -----------------------------------------------


def lowered(
    program: Program, target: Target, name: str, *inputs: Tensor
) -> Callable[..., tuple[Tensor, ...]]:
    """The program with its regions compiled for the target."""
    after, _ = run(rewriting(name, inputs), program)
    streams = codegen.stream_store()
    runners = {
        region: codegen.lower(body, target, streams, lambda: 1) for region, body in after.regions.items()
    }

    def call(*inputs: Tensor) -> tuple[Tensor, ...]:
        REGIONS.update(runners)
        return after(*inputs)

    return call


@pytest.mark.parametrize("kind", ["reference", "cpu"])
@pytest.mark.parametrize("shape", [(), (1,), (12,), (1, 12), (5, 1), (5, 12)], ids=str)
def test_a_bias_of_addmm_may_broadcast(shape: tuple[int, ...], kind: str) -> None:
    x = torch.randn(5, 16)
    program = chosen(Call(lambda x, w, b: torch.addmm(b, x, w), (16, 12), shape), x)
    compiled = lowered(program, Target(kind), f"broadcast{len(shape)}{sum(shape)}{kind}", x)
    torch.testing.assert_close(compiled(x), program(x))


@pytest.mark.parametrize("kind", ["reference", "cpu"])
def test_a_bias_may_be_computed(kind: str) -> None:
    def constant(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return F.linear(x, w, b * 2)

    x = torch.randn(5, 16)
    program = chosen(Call(constant, (12, 16)), x)
    torch.testing.assert_close(lowered(program, Target(kind), f"constant{kind}", x)(x), program(x))


@pytest.mark.parametrize("kind", ["reference", "cpu"])
def test_a_bias_may_be_an_input(kind: str) -> None:
    x, b = torch.randn(5, 16), torch.randn(5, 12)
    program = chosen(Call(lambda x, b, w, _: torch.addmm(b, x, w), (16, 12)), x, b)
    torch.testing.assert_close(lowered(program, Target(kind), f"input{kind}", x, b)(x, b), program(x, b))


@pytest.mark.parametrize("kind", ["reference", "cpu"])
def test_a_weight_may_be_read_both_ways(kind: str) -> None:
    x = torch.randn(5, 16)
    program = chosen(Call(lambda x, w, b: (x @ w.t()) @ w, (16, 16)), x)
    torch.testing.assert_close(lowered(program, Target(kind), f"ways{kind}", x)(x), program(x))
