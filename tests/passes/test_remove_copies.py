"""Copies that change nothing go; those that a caller could see stay."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsecomp.passes.remove_copies import RemoveCopies
from tests.passes.programs import captured, same_outputs


class Copies(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = F.dropout(x.relu(), 0.5, self.training).to(torch.float32).to(x.device)
        return F.pad(y.sigmoid().clone(), [0, 0]) + 1


def test_removes() -> None:
    model, x = Copies().eval(), torch.randn(2, 4)
    program = RemoveCopies()(captured(model, x))
    assert not {"clone", "pad", "dropout", "to."} & set(re.findall(r"clone|pad|dropout|to\.", str(program)))
    assert same_outputs(program, model, x)


class Returned(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.relu().clone()


class ReturnedView(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.t().clone()[0]


class ReturnedDropout(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x.relu().clone(), 0.5, self.training)


class Converts(nn.Module):
    """To another type, and to another memory format."""

    def forward(self, x: Tensor) -> Tensor:
        y = (
            x.to(torch.float64)
            .sigmoid()
            .to(torch.float32)
            .to(torch.float32, memory_format=torch.channels_last)
        )
        return y + 1


@pytest.mark.parametrize("kind", [Returned, ReturnedView, ReturnedDropout, Converts])
def test_refuses_what_is_returned_or_changes_something(kind: type[nn.Module]) -> None:
    program = captured(kind().eval(), torch.randn(2, 4, 1, 1) if kind is Converts else torch.randn(2, 4))
    assert RemoveCopies()(program) is program
