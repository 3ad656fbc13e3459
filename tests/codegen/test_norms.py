"""Normalisations against PyTorch in float64."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sparsecomp.codegen.cpu.norms import NormKernel, norm
from tests.codegen.kernels import MACHINES, Output, compiled, in_parts, surrounded

Kind = Literal["layer", "rms"]


@dataclass(frozen=True)
class Case:
    kind: Kind
    channels: int
    vectors: int
    weight: bool
    bias: bool
    static: bool
    masked: bool
    machine: int = 0


def meaning(x: Tensor, weight: Tensor, bias: Tensor, case: Case, epsilon: float) -> Tensor:
    """channels x columns"""
    x, shape = x.double().T, (case.channels,)
    of_weight = weight.double() if case.weight else None
    of_bias = bias.double() if case.bias else torch.zeros(case.channels, dtype=torch.float64)
    if case.kind == "layer":
        return F.layer_norm(x, shape, of_weight, of_bias, epsilon).T
    return (F.rms_norm(x, shape, of_weight, epsilon) + of_bias).T


def check(case: Case, parts: int) -> None:
    machine, epsilon = MACHINES[case.machine], 1e-3
    columns = case.vectors * machine.lanes
    source, target = columns + 16, columns + 32
    vectors = case.vectors if case.static else 0
    spec = NormKernel(
        case.kind, case.channels, source, target, epsilon, case.weight, case.bias, vectors, case.masked
    )
    x = torch.full((case.channels, source), torch.nan)
    x[:, :columns] = torch.randn(case.channels, columns) * 0.1 + 3
    weight, bias = torch.randn(case.channels), torch.randn(case.channels)
    mask = (torch.rand(columns) < 0.7).float()
    x[:, :columns][:, (mask == 0) & torch.tensor(case.masked)] = torch.nan
    y = Output(case.channels, target)
    tensors = [surrounded(x), y.tensor, surrounded(mask), *[weight] * case.weight, *[bias] * case.bias]
    in_parts(compiled(norm, spec, machine), tensors, parts, case.vectors)
    y.check()
    expected = meaning(x[:, :columns], weight, bias, case, epsilon)
    if case.masked:
        expected[:, mask == 0] = 0
    torch.testing.assert_close(y.tensor[:, :columns].double(), expected, rtol=1e-5, atol=1e-4)
    assert bool(y.tensor[:, columns:].isnan().all())


@pytest.mark.parametrize("parts", [1, 2, 20])
@pytest.mark.parametrize("vectors", [1, 3, 8])
@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_tokens(kind: Kind, vectors: int, parts: int) -> None:
    """One kernel for any number of tokens."""
    check(Case(kind, 70, vectors, weight=True, bias=kind == "layer", static=False, masked=False), parts)


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_images(kind: Kind, parts: int) -> None:
    check(Case(kind, 24, 13, weight=True, bias=True, static=True, masked=True), parts)


@pytest.mark.parametrize(("weight", "bias"), [(False, False), (True, False), (False, True)])
def test_without_weight_or_bias(weight: bool, bias: bool) -> None:
    check(Case("layer", 5, 2, weight, bias, static=False, masked=False), parts=1)


def test_one_channel() -> None:
    check(Case("layer", 1, 1, weight=True, bias=True, static=False, masked=False), parts=1)


@pytest.mark.parametrize("machine", [1, 2])
def test_shorter_vectors(machine: int) -> None:
    check(Case("layer", 33, 7, True, True, static=False, masked=True, machine=machine), parts=2)
