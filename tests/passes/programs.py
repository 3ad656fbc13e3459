"""Small programs for the tests of passes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sparsecomp.capture import capture
from sparsecomp.codegen.reference import StoredCost
from sparsecomp.passes import analysis, choosing, rewriting
from sparsecomp.pipeline import run
from sparsecomp.program import Program


def sparse(model: nn.Module, density: float = 0.1) -> nn.Module:
    """In evaluation mode, a share of each matrix and kernel kept."""
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data *= torch.rand_like(parameter) < density
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
    return bool(torch.allclose(program(*inputs)[0], expected, atol=1e-5))
