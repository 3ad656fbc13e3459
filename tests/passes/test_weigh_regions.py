"""All layers of a region that loses to PyTorch go back to it, with the reason."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsecomp.cost import RegionTimes
from sparsecomp.passes.weigh_regions import slower_regions
from tests.passes.programs import rewritten, sparse


class Chain(nn.Module):
    """Two layers in one region, then a third behind a softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = (nn.Linear(16, 16) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(torch.softmax(self.second(F.relu(self.first(x))), -1))
        return y


@pytest.mark.parametrize(
    ("chain", "last", "min_speedup", "losers"),
    [
        (0.9, 0.9, 1.0, set()),
        (1.1, 0.9, 1.0, {"first", "second"}),
        (0.9, 1.0, 1.0, {"last"}),
        (0.9, 0.9, 1.2, {"first", "second", "last"}),
    ],
)
def test_all_layers_of_a_region_that_loses_go_back(
    chain: float, last: float, min_speedup: float, losers: set[str]
) -> None:
    """Times of the regions are given in those of PyTorch."""
    program = rewritten(sparse(Chain()), torch.randn(3, 16))
    times = {
        name: RegionTimes(share * 1e-3, 1e-3)
        for name, share in zip(program.regions, (chain, last), strict=True)
    }
    refused = slower_regions(program, times, min_speedup)
    assert {program.layers[site].name for site in refused} == losers
    assert all(
        "with layout conversions" in reason and "ms in PyTorch" in reason for reason in refused.values()
    )
