"""Element-wise work moves into the primitive before it, and only where it means the same."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsecomp.passes.fuse_epilogues import FuseEpilogues
from sparsecomp.passes.rewrite_sparse import RewriteSparse
from sparsecomp.primitives import EPILOGUE, PRIMITIVES
from sparsecomp.program import Program
from tests.passes.programs import chosen, same_outputs, sparse

ImageOp = Callable[[Tensor], Tensor]


def fused(model: nn.Module, *inputs: Tensor) -> Program:
    return FuseEpilogues()(RewriteSparse()(chosen(model, *inputs)))


def epilogues(program: Program) -> list[object]:
    return [node.args[EPILOGUE] for node in program.graph.graph.nodes if node.target in PRIMITIVES]


class After(nn.Module):
    """A layer, then a function of its output and input."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.function = nn.Linear(16, 16), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.layer(x), x)


FUSED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "bias relu": lambda y, x: F.relu(y),
    "bias relu6": lambda y, x: F.relu6(y),
    "bias gelu": lambda y, x: F.gelu(y),
    "bias gelu_tanh": lambda y, x: F.gelu(y, approximate="tanh"),
    "bias silu": lambda y, x: F.silu(y),
    "bias tanh": lambda y, x: y.tanh(),
    "bias hardswish": lambda y, x: F.hardswish(y),
    "bias add relu": lambda y, x: F.relu(y + x),
    "bias multiply": lambda y, x: x * y,
}


@pytest.mark.parametrize("expected", FUSED)
def test_fuses(expected: str) -> None:
    model, x = sparse(After(FUSED[expected])), torch.randn(4, 16)
    program = fused(model, x)
    assert epilogues(program) == [expected]
    assert same_outputs(program, model, x)


KEPT: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "the layer's own output twice": lambda y, x: y + y,
    "a smaller tensor": lambda y, x: y + x[:1],
    "a scaled sum": lambda y, x: torch.add(y, x, alpha=2),
    "another clamp": lambda y, x: y.clamp(-1, 6),
    "an output that is read twice": lambda y, x: F.relu(y) + y.sigmoid(),
}


@pytest.mark.parametrize("what", KEPT)
def test_refuses(what: str) -> None:
    model, x = sparse(After(KEPT[what])), torch.randn(4, 16)
    program = fused(model, x)
    assert epilogues(program) == ["bias"]
    assert same_outputs(program, model, x)


class Residual(nn.Module):
    def __init__(self, inplace: bool) -> None:
        super().__init__()
        self.inplace = inplace
        self.main, self.norm = nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.shortcut = nn.Conv2d(16, 16, 1)
        self.norm.running_mean, self.norm.running_var = torch.randn(16), torch.rand(16) + 0.5

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.main(x)) + self.shortcut(x), inplace=self.inplace)


@pytest.mark.parametrize("inplace", [False, True])
def test_a_norm_is_folded_and_the_later_convolution_takes_the_sum(inplace: bool) -> None:
    """Written in place or not, which decides whether torch.export decomposes the norm."""
    model, x = sparse(Residual(inplace)), torch.randn(2, 16, 8, 8)
    program = fused(model, x)
    assert epilogues(program) == ["scale bias", "bias add relu"]
    assert same_outputs(program, model, x)


def test_leaves_others_alone() -> None:
    program = chosen(nn.Linear(4, 4).eval(), torch.randn(2, 4))
    assert FuseEpilogues()(program) is program
