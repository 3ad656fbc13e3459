"""Groups weighed by what their weights cost where the model will run."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from sparsecomp.train import GroupLasso
from sparsecomp.train.costs import weight_costs
from tests.train.nets import Shared, SmallNet, message, same, says, values

X = (torch.randn(2, 1, 8, 8),)
USES = {"conv1.weight": 36, "conv2.weight": 16, "fc1.weight": 1, "fc2.weight": 1}
"""How often a weight is multiplied for one image."""
SIZES = {"conv1.weight": 72, "conv2.weight": 432, "fc1.weight": 3840, "fc2.weight": 200}


def test_flops() -> None:
    net = SmallNet().train()
    before = values(net)
    mean = sum(USES[name] * SIZES[name] for name in USES) / sum(SIZES.values())
    assert weight_costs(net, X, "flops") == pytest.approx({name: uses / mean for name, uses in USES.items()})
    assert same(values(net), before)
    assert net.training


def test_a_shared_weight_costs_what_its_layers_do() -> None:
    assert weight_costs(Shared(), (torch.randn(3, 4),), "flops") == {"second.weight": 1.0}


def test_measured_times() -> None:
    costs = weight_costs(SmallNet(), X, "cpu")
    assert costs.keys() <= USES.keys()
    assert all(cost > 0 for cost in costs.values())
    mean = sum(cost * SIZES[name] for name, cost in costs.items()) / sum(SIZES[name] for name in costs)
    assert mean == pytest.approx(1)


@pytest.mark.parametrize("kind", ["filter", "coupled"])
def test_they_weigh_the_groups(kind: str) -> None:
    net = SmallNet()
    plain = GroupLasso(net, {kind: 0.1}, layers=("conv1", "conv2"), example_inputs=X)
    weighed = GroupLasso(net, {kind: 0.1}, layers=("conv1", "conv2"), example_inputs=X, device="flops")
    costs = weight_costs(net, X, "flops")
    if kind == "filter":
        for a, b in zip(plain.terms, weighed.terms, strict=True):
            assert b.penalty() == pytest.approx(a.penalty() * costs[a.name])
    else:
        for a, b in zip(plain.terms, weighed.terms, strict=True):
            assert b.penalty() > a.penalty()  # a convolution's weights are dearer than the mean


def test_bad_input() -> None:
    net, wrong = SmallNet(), nn.Linear(3, 3)
    unknown: Any = "tpu"
    says(message(lambda: GroupLasso(net, {"filter": 0.1}, device="flops")), "a device needs example inputs")
    says(message(lambda: GroupLasso(net, {"filter": 0.1}, device=unknown, example_inputs=X)), "'tpu'")
    says(
        message(lambda: weight_costs(net, X, "rpc://board")),
        "'rpc://board' cannot be read",
        "rpc://host:port",
    )
    says(message(lambda: weight_costs(net, X, "rpc://127.0.0.1:1/board")), "no RPC tracker answers")
    says(message(lambda: weight_costs(net, X, "reference")), "'reference' measures nothing", "'flops'")
    says(message(lambda: weight_costs(wrong, X, "flops")), "cannot be run on these inputs")
