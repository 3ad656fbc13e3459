"""Whole units of a network shrink and die together: residual streams, grouped and depthwise convolutions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsecomp.train import GroupLasso
from tests.train.nets import message, same, says, values


class Residual(nn.Module):
    """A stem, a branch that adds to it, a grouped and a depthwise convolution, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.branch = nn.Conv2d(6, 6, 3, padding=1)
        self.depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.fc1 = nn.Linear(6 * 4, 8)
        self.fc2 = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = F.relu(x + self.branch(x))
        x = F.max_pool2d(self.depthwise(x), 2)
        y: Tensor = self.fc2(F.relu(self.fc1(x.flatten(1))))
        return y


X = (torch.randn(4, 1, 4, 4),)
CHANNEL = (
    "stem.weight",
    "stem.bias",
    "norm.weight",
    "norm.bias",
    "branch.bias",
    "depthwise.weight",
    "depthwise.bias",
)


def channel_slices(net: Residual, unit: int) -> dict[str, Tensor]:
    """By hand: everything that a channel of the residual stream crosses."""
    slices = {name: net.get_parameter(name).detach()[unit] for name in CHANNEL}
    slices["branch.weight row"] = net.branch.weight.detach()[unit]
    slices["branch.weight column"] = net.branch.weight.detach()[:, unit]
    slices["fc1.weight"] = net.fc1.weight.detach()[:, 4 * unit : 4 * unit + 4]
    return slices


def neuron_slices(net: Residual, unit: int) -> dict[str, Tensor]:
    return {
        "fc1.weight": net.fc1.weight.detach()[unit],
        "fc1.bias": net.get_parameter("fc1.bias").detach()[unit],
        "fc2.weight": net.fc2.weight.detach()[:, unit],
    }


def norm(slices: dict[str, Tensor]) -> float:
    return float(torch.cat([part.flatten() for part in slices.values()]).double().norm())


def test_a_unit_is_all_that_it_crosses() -> None:
    net = Residual()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_()
    ssl = GroupLasso(net, {"coupled": 0.1}, scaled=False, example_inputs=X)
    channels, neurons = ssl.terms
    assert channels.norms().tolist() == pytest.approx(
        [norm(channel_slices(net, i)) for i in range(6)], rel=1e-5
    )
    assert neurons.norms().tolist() == pytest.approx(
        [norm(neuron_slices(net, i)) for i in range(8)], rel=1e-5
    )
    scaled = GroupLasso(net, {"coupled": 0.1}, example_inputs=X).terms[0]
    size = sum(part.numel() for part in channel_slices(net, 0).values())
    assert scaled.penalty() == pytest.approx(size**0.5 * channels.penalty(), rel=1e-5)


def test_a_step_shrinks_the_joint_norm() -> None:
    """Each slice by one factor, but the weights that two groups cross by both."""
    net = Residual()
    ssl = GroupLasso(net, {"coupled": 0.1}, scaled=False, example_inputs=X)
    before, old = values(net), [norm(channel_slices(net, i)) for i in range(6)]
    ssl.step(torch.optim.SGD(net.parameters(), 0.5))
    for i in range(6):
        share = 1 - 0.05 / old[i]
        for name in CHANNEL:
            assert torch.allclose(net.get_parameter(name)[i], before[name][i] * share)
        both = before["branch.weight"] * share
        for j in range(6):
            wanted = both[i, j] * (1 - 0.05 / old[j])
            assert torch.allclose(net.branch.weight[i, j], wanted, atol=1e-6)


def test_units_die_as_a_whole() -> None:
    net, x, y = Residual(), torch.randn(32, 1, 4, 4), torch.randint(0, 3, (32,))
    opt = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    ssl = GroupLasso(net, {"coupled": 3e-3}, example_inputs=(x[:4],))
    for _ in range(80):
        torch.autograd.backward(F.cross_entropy(net(x), y))
        opt.step()
        ssl.step(opt)
        opt.zero_grad()
    dead = [i for i in range(6) if norm(channel_slices(net, i)) == 0]
    assert ssl.dead()[("stem.weight", "coupled")] == (len(dead), 6)
    assert sum(gone for gone, _ in ssl.dead().values()) > 0
    masks = ssl.freeze()
    torch.autograd.backward(F.cross_entropy(net(x), y))
    opt.step()
    masks.step(opt)
    for i in dead:
        assert net.stem.weight[i].count_nonzero() == net.branch.weight[:, i].count_nonzero() == 0


def test_the_model_is_left_as_it_was() -> None:
    net = Residual().train()
    net.branch.eval()
    before = values(net)
    GroupLasso(net, {"coupled": 0.1}, example_inputs=X)
    assert same(values(net), before)
    assert net.training
    assert not net.branch.training


def test_what_is_left_out_is_not_shrunk() -> None:
    net = Residual()
    before = values(net)
    ssl = GroupLasso(net, {"coupled": 1e6}, skip=("norm", "fc2"), example_inputs=X)
    ssl.step(torch.optim.SGD(net.parameters(), 1.0))
    after = values(net)
    assert all(torch.equal(after[name], before[name]) for name in before if name.startswith(("norm", "fc2")))
    assert after["stem.weight"].count_nonzero() == after["fc1.weight"].count_nonzero() == 0


class Shared(Residual):
    """Its one free group is pinned by a weight that two layers share."""

    def __init__(self) -> None:
        super().__init__()
        self.again = nn.Conv2d(6, 6, 3, padding=1)
        self.again.weight = self.branch.weight

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.again(self.branch(self.stem(x)))
        return y


def test_bad_input() -> None:
    net = Residual()
    says(message(lambda: GroupLasso(net, {"coupled": 0.1})), "coupled groups need example inputs", "(x, ...)")
    wrong: Any = X[0]
    says(message(lambda: GroupLasso(net, {"coupled": 0.1}, example_inputs=wrong)), "is a tensor", "(x,)")
    small = (torch.randn(1, 1, 3, 3),)
    says(message(lambda: GroupLasso(net, {"coupled": 0.1}, example_inputs=small)), "cannot be", "Residual")
    pinned = message(lambda: GroupLasso(Shared(), {"coupled": 0.1}, example_inputs=X))
    says(pinned, "no layer has 'coupled' groups", "several operators share again.weight")
    ssl = GroupLasso(net, {"coupled": 0.1}, example_inputs=X)
    groups: list[dict[str, Any]] = [
        {"params": [p for n, p in net.named_parameters() if n != "norm.weight"]},
        {"params": [net.norm.weight], "lr": 0.2},
    ]
    before = values(net)
    text = message(lambda: ssl.step(torch.optim.SGD(groups, 0.1)))
    says(text, "one coupled group", "'norm.weight'", "different learning rates")
    assert same(values(net), before)
