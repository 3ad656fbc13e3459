"""Weights that are packed are read unpacked, wherever the module tree holds them."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from sparsecomp.packed import pack_tensors


class Holder(nn.Module):
    plain: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 2)
        self.tied = nn.Linear(3, 2)
        self.tied.weight = self.first.weight
        self.listed = nn.ParameterList([nn.Parameter(torch.ones(2))])
        self.register_buffer("buffer", torch.ones(4))
        self.plain = torch.ones(5)


def test_reading_unpacks() -> None:
    model, asked = Holder(), []
    names = ["first.weight", "listed.0", "buffer", "plain"]
    packed = dict(zip(names, (model.first.weight, model.listed[0], model.buffer, model.plain), strict=True))
    values = {name: torch.full_like(tensor, 7.0) for name, tensor in packed.items()}

    def weights(name: str) -> Tensor:
        asked.append(name)
        return values[name].detach()

    pack_tensors(model, packed, weights)
    assert asked == []
    found: list[Any] = [model.first.weight, model.tied.weight, model.listed[0], model.buffer, model.plain]
    assert asked == ["first.weight", "first.weight", "listed.0", "buffer", "plain"]
    assert all(torch.equal(tensor, torch.full_like(tensor, 7)) for tensor in found)
    assert [isinstance(tensor, nn.Parameter) for tensor in found] == [True, True, True, False, False]
    assert torch.equal(model.first(torch.ones(1, 3)), 21 + model.first.bias[None])


def test_parameters_are_still_listed() -> None:
    """Models ask `next(self.parameters())` for device and dtype."""
    model = Holder()
    pack_tensors(model, {"first.weight": model.first.weight}, lambda name: torch.full((2, 3), 7.0))
    names = [name for name, _ in model.named_parameters()]
    assert {"first.weight", "first.bias", "tied.bias", "listed.0"} <= set(names)
    assert torch.equal(next(model.parameters()), torch.full((2, 3), 7.0))
    assert torch.equal(model.get_parameter("first.weight"), torch.full((2, 3), 7.0))
    assert torch.equal(copy.deepcopy(model.first).weight, torch.full((2, 3), 7.0))


def test_setting_a_tensor_ends_the_unpacking() -> None:
    model = Holder()
    pack_tensors(model, {"first.weight": model.first.weight}, lambda name: torch.zeros(2, 3))
    model.first.weight = nn.Parameter(torch.ones(2, 3))
    assert torch.equal(model.first.weight, torch.ones(2, 3))
    del model.tied.weight
    assert not hasattr(model.tied, "weight")
