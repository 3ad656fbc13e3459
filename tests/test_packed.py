"""Weights that are packed are read unpacked, wherever the module tree holds them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sparsecomp.packed import pack_attributes


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

    pack_attributes(model, packed, weights)
    assert asked == []
    found: list[Any] = [model.first.weight, model.tied.weight, model.listed[0], model.buffer, model.plain]
    assert asked == ["first.weight", "first.weight", "listed.0", "buffer", "plain"]
    assert all(torch.equal(tensor, torch.full_like(tensor, 7)) for tensor in found)
    assert [isinstance(tensor, nn.Parameter) for tensor in found] == [True, True, True, False, False]
    assert [name for name, _ in model.named_parameters()] == ["first.bias", "tied.bias"]
    assert torch.equal(model.first(torch.ones(1, 3)), 21 + model.first.bias[None])


def test_other_modules_keep_their_class() -> None:
    model = Holder()
    pack_attributes(model, {"first.weight": model.first.weight}, lambda name: torch.zeros(2, 3))
    assert type(model) is Holder
    assert isinstance(model.first, nn.Linear)
    assert type(model.first).__name__ == "Linear"
    assert model.first.bias is model._modules["first"]._parameters["bias"]  # type: ignore[union-attr]
