"""Later graphs keep what was decided for a weight."""

from __future__ import annotations

import torch
from torch import nn

from sparsecomp.passes.keep_choices import KeepChoices
from tests.passes.programs import analysed, chosen, sparse


def test_keeps_and_leaves_the_others_to_pytorch() -> None:
    model = sparse(nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16)))
    first = chosen(model, torch.randn(2, 16))
    site, choice = next((site, choice) for site, choice in first.choices.items() if choice.layer == "0")
    settled = {first.layers[site].reading: choice}
    kept = KeepChoices(settled)(analysed(model, torch.randn(2, 3, 16)))
    assert [choice.how for choice in kept.choices.values()] == [choice.how, None]
    assert "left to PyTorch" in list(kept.choices.values())[1].reason


def test_a_parameter_that_is_read_in_another_way_is_left_to_pytorch() -> None:
    """A choice for groups of channels, say, is none for all channels."""
    layer = nn.Conv2d(4, 4, 1)
    model = sparse(nn.Sequential(layer))
    first = chosen(model, torch.randn(2, 4, 5, 5))
    settled = {layer.reading: first.choices[site] for site, layer in first.layers.items()}
    layer.stride = (2, 2)
    kept = KeepChoices(settled)(analysed(model, torch.randn(2, 4, 5, 5)))
    assert [choice.how for choice in kept.choices.values()] == [None]
