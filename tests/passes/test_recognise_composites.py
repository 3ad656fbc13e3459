"""What is written out becomes one operator, and only where it means the same."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparsecomp.passes.recognise_composites import RecogniseComposites
from sparsecomp.passes.remove_copies import RemoveCopies
from sparsecomp.program import Program
from tests.passes.programs import Wired, captured, operators, same_outputs


def recognised(model: nn.Module, *inputs: Tensor) -> Program:
    return RecogniseComposites()(RemoveCopies()(captured(model, *inputs)))


def gelu(
    x: Tensor, half: float = 0.5, cube: float = 0.044715, root: float = math.sqrt(2 / math.pi)
) -> Tensor:
    return half * x * (1.0 + torch.tanh(root * (x + cube * x**3)))


def rms(s: Any, x: Tensor, epsilon: float = 1e-6) -> Tensor:
    y: Tensor = s.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + epsilon))
    return y


def rms_as_in_transformers(s: Any, x: Tensor) -> Tensor:
    x32 = x.to(torch.float32)
    y: Tensor = s.weight * (x32 * torch.rsqrt(x32.pow(2).mean(-1, keepdim=True) + 1e-6)).to(x.dtype)
    return y


WRITTEN_OUT: dict[str, tuple[str, Callable[..., Tensor]]] = {
    "gelu": ("aten.gelu", lambda s, x: gelu(x)),
    "gelu, its sums the other way round": (
        "aten.gelu",
        lambda s, x: (torch.tanh((x.pow(3) * 0.044715 + x) * math.sqrt(2 / math.pi)) + 1) * (x * 0.5),
    ),
    "gelu, with the digits that papers print": ("aten.gelu", lambda s, x: gelu(x, root=0.79788456)),
    "rms norm": ("aten.rms_norm", rms),
    "rms norm with conversions": ("aten.rms_norm", rms_as_in_transformers),
    "rms norm, weighted last": (
        "aten.rms_norm",
        lambda s, x: x * torch.rsqrt((x**2).mean(2, keepdim=True) + 1e-6) * s.weight,
    ),
    "silu": ("aten.silu", lambda s, x: x * torch.sigmoid(x)),
    "silu, the other way round": ("aten.silu", lambda s, x: x.sigmoid() * x),
}


@pytest.mark.parametrize("what", WRITTEN_OUT)
def test_recognises(what: str) -> None:
    expected, function = WRITTEN_OUT[what]
    model, x = Wired(function, weight=nn.Parameter(torch.rand(16))).eval(), torch.randn(2, 3, 16)
    program = recognised(model, x)
    assert operators(program) == [expected]
    assert same_outputs(program, model, x)


def test_recognises_within_a_larger_graph() -> None:
    model = Wired(lambda s, x: (gelu(rms(s, x)) + x).softmax(-1), weight=nn.Parameter(torch.rand(16)))
    x = torch.randn(2, 3, 16)
    program = recognised(model.eval(), x)
    assert operators(program) == ["aten.rms_norm", "aten.gelu", "aten.add.Tensor", "aten.softmax.int"]
    assert same_outputs(program, model, x)


def shared_part(s: Any, x: Tensor) -> Tensor:
    cubed = torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))
    return 0.5 * x * (1.0 + cubed) + cubed


def scale_of_all(s: Any, x: Tensor) -> Tensor:
    y: Tensor = s.weight * (x * torch.rsqrt(x.pow(2).mean(None, keepdim=True) + 1e-6))
    return y


NEAR_MISSES: dict[str, Callable[..., Tensor]] = {
    "another constant": lambda s, x: gelu(x, half=0.51),
    "a root of few digits": lambda s, x: gelu(x, root=0.797),
    "two tensors": lambda s, x: (
        0.5 * x * (1 + torch.tanh(0.7978845608 * (x.sin() + 0.044715 * x.sin() ** 3)))
    ),
    "a part that somebody else reads": shared_part,
    "a sum that is scaled": lambda s, x: torch.add(1.0 * x, x.sigmoid() * x.cos(), alpha=2),
    "the sigmoid of another": lambda s, x: x * torch.sigmoid(x + 1),
    "a mean over tokens": lambda s, x: s.weight * (x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + 1e-6)),
    "a mean over all": scale_of_all,
    "a mean of cubes": lambda s, x: s.weight * (x * torch.rsqrt(x.pow(3).mean(-1, keepdim=True).abs() + 1)),
    "a weight that is computed": lambda s, x: (
        (s.weight * 2) * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))
    ),
    "a weight for every token": lambda s, x: (
        s.wide * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))
    ),
    "one weight for all": lambda s, x: s.narrow * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)),
    "a weight of another type": lambda s, x: (
        s.exact * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))
    ),
    "an epsilon that is computed": lambda s, x: (
        s.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + s.narrow))
    ),
    "double precision": lambda s, x: x.double() * torch.sigmoid(x.double()),
}


@pytest.mark.parametrize("what", NEAR_MISSES)
def test_refuses(what: str) -> None:
    parts = {"weight": torch.rand(16), "wide": torch.rand(3, 16), "narrow": torch.rand(1)}
    tensors = {name: nn.Parameter(value) for name, value in parts.items()}
    model = Wired(NEAR_MISSES[what], **tensors, exact=nn.Parameter(torch.rand(16).double())).eval()
    x = torch.randn(2, 3, 16)
    before = RemoveCopies()(captured(model, x))
    program = RecogniseComposites()(before)
    assert program is before
    assert same_outputs(program, model, x)
