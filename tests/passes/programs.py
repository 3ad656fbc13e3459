"""Small programs for the tests of passes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from sparsecomp import codegen
from sparsecomp.capture import capture
from sparsecomp.codegen.reference import StoredCost
from sparsecomp.passes import analysis, choosing, rewriting
from sparsecomp.pipeline import run
from sparsecomp.primitives import REGIONS
from sparsecomp.program import Program, operator_name
from sparsecomp.section import SectionOp
from sparsecomp.target import Target


def sparse(model: nn.Module, density: float = 0.1) -> nn.Module:
    """In evaluation mode, a share of each matrix and kernel kept; something of every row and every column, so that
    no unit dies by chance."""
    for parameter in model.parameters():
        if parameter.dim() > 1:
            keep = torch.rand_like(parameter) < density
            for i in range(max(parameter.shape[:2])):
                keep[i % parameter.shape[0], i % parameter.shape[1]].reshape(-1)[:1] = True
            parameter.data *= keep
    return model.eval()


def captured(model: nn.Module, *inputs: Tensor) -> Program:
    return Program(capture(model, inputs).graph)


def analysed(model: nn.Module, *inputs: Tensor, skip: tuple[str, ...] = ()) -> Program:
    return run(analysis(inputs, skip), captured(model, *inputs))[0]


def chosen(model: nn.Module, *inputs: Tensor, **options: Any) -> Program:
    return run(choosing(StoredCost(), **options), analysed(model, *inputs))[0]


def rewritten(model: nn.Module, *inputs: Tensor) -> Program:
    return run(rewriting("test/region", inputs), chosen(model, *inputs))[0]


def same_outputs(program: Program, model: nn.Module, *inputs: Tensor) -> bool:
    with torch.no_grad():
        expected = model(*inputs)
    outputs, expected = program(*inputs), pytree.tree_leaves(expected)
    return len(outputs) == len(expected) and all(
        torch.allclose(y, y0, atol=1e-5) for y, y0 in zip(outputs, expected, strict=True)
    )


KEPT: list[object] = []
"""Regions are found by name only as long as somebody holds them."""


def same_when_lowered(program: Program, model: nn.Module, *inputs: Tensor, target: str = "reference") -> bool:
    """Whether the program's regions, lowered, give the model's outputs."""
    streams = codegen.stream_store()
    for name, body in program.regions.items():
        runner = codegen.lower(body, Target(target), streams, lambda: 1)
        KEPT.append(runner)
        REGIONS[name] = runner
    return same_outputs(program, model, *inputs)


def operators(program: Program) -> list[str]:
    """Names of the operators in the graph, in order."""
    return [operator_name(node) for node in program.graph.graph.nodes if node.op == "call_function"]


def sections(program: Program) -> list[list[str]]:
    """What each region does, operator by operator: "linear", "layer norm", "pointwise"."""
    return [
        [op.layer.op if isinstance(op, SectionOp) else str(op.work) for op in body.section.ops]
        for body in program.regions.values()
    ]


class Wired(nn.Module):
    """Modules, parameters and buffers, wired by a function of this module and its inputs."""

    def __init__(self, function: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(self, *inputs)


class Branching(nn.Module):
    """Whose graph cannot be captured."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc(x)
        return y if y.sum() > 0 else -y


def let(function: Callable[..., Any], *values: Any) -> Any:
    """function(*values): names for what one expression reads more than once."""
    return function(*values)
