"""Normalisations of few tokens against PyTorch in float64."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch.nn import functional as F

from sparsecomp.codegen.cpu.norm_rows import NormRowsKernel, norm_rows
from tests.codegen.kernels import MACHINES, Output, compiled, in_parts, surrounded


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("tokens", [1, 5])
@pytest.mark.parametrize(
    ("kind", "channels", "weight", "bias", "machine"),
    [
        ("layer", 768, True, True, 0),
        ("layer", 64, False, False, 0),
        ("layer", 77, True, True, 0),
        ("layer", 5, True, False, 0),
        ("rms", 130, True, False, 0),
        ("layer", 45, True, True, 1),
        ("rms", 33, False, False, 2),
    ],
)
def test_is_that_of_pytorch_and_touches_nothing_else(
    kind: Literal["layer", "rms"],
    channels: int,
    weight: bool,
    bias: bool,
    machine: int,
    tokens: int,
    parts: int,
) -> None:
    spec = NormRowsKernel(kind, channels, 1e-3, weight, bias)
    x, scale, shift = torch.randn(tokens, channels) + 3, torch.randn(channels), torch.randn(channels)
    vectors = [*[surrounded(scale)] * weight, *[surrounded(shift)] * bias]
    y = Output(tokens, channels)
    in_parts(compiled(norm_rows, spec, MACHINES[machine]), [surrounded(x), y.tensor, *vectors], parts, tokens)
    y.check()
    by = scale.double() if weight else None
    if kind == "layer":
        expected = F.layer_norm(x.double(), [channels], by, shift.double() if bias else None, 1e-3)
    else:
        expected = F.rms_norm(x.double(), [channels], by, 1e-3)
    torch.testing.assert_close(y.tensor.double(), expected, rtol=1e-5, atol=1e-5)
