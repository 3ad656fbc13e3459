"""Copies that change nothing go; those that a caller could see stay."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsecomp.passes.remove_copies import RemoveCopies
from tests.passes.programs import captured, same_outputs


class Copies(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = F.dropout(x.relu(), 0.5, self.training)
        return F.pad(y.sigmoid().clone(), [0, 0]) + 1


def test_removes() -> None:
    model, x = Copies().eval(), torch.randn(2, 4)
    program = RemoveCopies()(captured(model, x))
    assert "clone" not in str(program)
    assert "pad" not in str(program)
    assert same_outputs(program, model, x)


class Returned(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.relu().clone()


class ReturnedView(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.t().clone()[0]


@pytest.mark.parametrize("kind", [Returned, ReturnedView])
def test_refuses_what_is_returned(kind: type[nn.Module]) -> None:
    program = captured(kind().eval(), torch.randn(2, 4))
    assert RemoveCopies()(program) is program
