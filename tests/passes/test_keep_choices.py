"""Later graphs keep what was decided for a weight."""

from __future__ import annotations

import torch
from torch import nn

from sparsecomp.passes.keep_choices import KeepChoices
from tests.passes.programs import analysed, chosen, sparse


def test_keeps_and_leaves_the_others_to_pytorch() -> None:
    model = sparse(nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16)))
    first = chosen(model, torch.randn(2, 16))
    settled = {"0.weight": next(c for c in first.choices.values() if c.layer == "0")}
    kept = KeepChoices(settled)(analysed(model, torch.randn(2, 3, 16)))
    assert [choice.how for choice in kept.choices.values()] == [settled["0.weight"].how, None]
    assert "left to PyTorch" in list(kept.choices.values())[1].reason
