"""How far a model's outputs have moved."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from sparsecomp.pruning.output_change import output_change


class Several(nn.Module):
    """Outputs of every kind."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, x: Tensor) -> dict[str, object]:
        return {"scaled": self.scale * x, "same": x, "count": torch.tensor(int(self.scale * 10)), "name": "x"}


def test_it_is_relative_and_over_all_batches_and_outputs() -> None:
    batches = [torch.full((2, 3), 1.0), torch.full((4, 3), 2.0)]
    assert output_change(Several(1.0), Several(1.0), batches) == 0.0
    assert output_change(Several(1.0), Several(1.5), batches) == pytest.approx(0.125)  # a quarter of a half


def test_both_run_in_evaluation_mode_and_are_left_in_theirs() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5)).train()
    assert output_change(model, copy.deepcopy(model), [torch.randn(4, 8)]) == 0.0
    assert model.training


def test_outputs_of_nothing_but_zeros() -> None:
    zero, one = nn.Linear(2, 2), nn.Linear(2, 2)
    for layer, value in ((zero, 0.0), (one, 1.0)):
        nn.init.constant_(layer.weight, value)
        nn.init.zeros_(layer.bias)
    assert output_change(zero, one, [torch.ones(1, 2)]) == pytest.approx(8.0)
