"""A region that loses with its conversions gives its layers back, with the reason."""

from __future__ import annotations

import torch
from torch import nn

from sparsecomp.codegen.reference import StoredCost
from sparsecomp.passes.weigh_regions import slower_regions
from tests.passes.programs import rewritten, sparse


def test_a_slow_region_is_refused_and_a_fast_one_is_not() -> None:
    program = rewritten(
        sparse(nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32))), torch.randn(2, 32)
    )
    (name,) = program.regions
    refused = slower_regions(program, {name: 1.0}, StoredCost())
    assert set(refused) == set(program.layers)
    assert all("its region of 2 layers would take 1000.000 ms" in reason for reason in refused.values())
    assert slower_regions(program, {name: 0.0}, StoredCost()) == {}
