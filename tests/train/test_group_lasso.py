"""The proximal step: exact zeros, the minimiser of the objective, groups that overlap, bad input."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparsecomp.train import GroupLasso
from tests.train.nets import OPTIMIZERS, Shared, SmallNet, advance, message, minimiser, same, says, values

ALL = {"kernel": 0.1, "shape": 0.1, "channel": 0.1, "filter": 0.1, "input": 0.1, "neuron": 0.1, "depth": 0.1}


def still(net: nn.Module, rate: float = 1.0) -> torch.optim.Optimizer:
    """An optimiser that has not moved: a step of the lasso is then the proximal operator alone."""
    return torch.optim.SGD(net.parameters(), rate)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_whole_groups_become_zero_and_can_be_frozen(optimizer: str) -> None:
    net = SmallNet()
    opt, strength = OPTIMIZERS[optimizer](net), 0.05 if optimizer in ("momentum", "nesterov") else 0.5
    ssl = GroupLasso(net, {"filter": strength, "neuron": strength / 3}, skip=("fc2",))
    for _ in range(40):
        advance(net, opt)
        ssl.step(opt)
    dead = ssl.dead()
    assert set(dead) == {("conv1.weight", "filter"), ("conv2.weight", "filter"), ("fc1.weight", "neuron")}
    assert sum(gone for gone, _ in dead.values()) > 0
    for (name, _), (gone, groups) in dead.items():
        rows = net.get_parameter(name).flatten(1)
        assert groups == len(rows)
        assert int((rows == 0).all(dim=1).sum()) == gone
        assert bool(((rows == 0).all(dim=1) | (rows != 0).all(dim=1)).all())  # whole filters, nothing else
    masks = ssl.freeze()
    for _ in range(3):
        advance(net, opt)
        masks.step(opt)
    assert ssl.dead() == dead


def test_the_scale_of_a_step_and_of_the_penalty() -> None:
    """lambda sqrt(n) or lambda, times the learning rate, off the norm of every filter."""
    for scaled in (True, False):
        net = SmallNet()
        norms = net.conv1.weight.detach().flatten(1).norm(dim=1)
        ssl = GroupLasso(net, {"filter": 0.01}, layers=("conv1",), scaled=scaled)
        strength = 0.01 * (3.0 if scaled else 1.0)  # 9 weights in a filter
        assert ssl.penalty() == pytest.approx(strength * float(norms.sum()), rel=1e-5)
        ssl.step(still(net, 0.5))
        after = net.conv1.weight.detach().flatten(1).norm(dim=1)
        assert torch.allclose(after, norms - 0.5 * strength, atol=1e-6)


def norms(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    return (x.square().sum(dims) + 1e-14).sqrt().sum()


@pytest.mark.parametrize("seed", range(5))
def test_groups_within_groups_are_exact(seed: int) -> None:
    """Shapes within channels within the layer: the kinds in turn are the operator of their sum."""
    torch.manual_seed(seed)
    net = nn.Conv2d(3, 4, 2).double()
    w = net.weight.detach().clone()
    GroupLasso(net, {"depth": 0.1, "shape": 0.12, "channel": 0.15}, scaled=False).step(still(net))
    wanted = minimiser(
        lambda x: 0.12 * norms(x, (0,)) + 0.15 * norms(x, (0, 2, 3)) + 0.1 * norms(x, (0, 1, 2, 3)), w
    )
    assert torch.allclose(net.weight.detach(), wanted, atol=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_groups_that_cross_differ_by_the_square_of_the_step(seed: int) -> None:
    errors = []
    for rate in (0.1, 0.05, 0.025):
        torch.manual_seed(seed)
        net = nn.Conv2d(3, 4, 2).double()
        w = net.weight.detach().clone()
        GroupLasso(net, {"filter": 0.3, "channel": 0.3}, scaled=False).step(still(net, rate))
        wanted = minimiser(lambda x: 0.3 * (norms(x, (1, 2, 3)) + norms(x, (0, 2, 3))), w, rate)
        errors.append(float((net.weight.detach() - wanted).norm()))
    assert errors[0] / errors[1] > 3
    assert errors[1] / errors[2] > 3


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, 0.05),
        lambda p: torch.optim.SGD(p, 0.01, momentum=0.9),
        lambda p: torch.optim.SGD(p, 0.01, momentum=0.9, nesterov=True),
        lambda p: torch.optim.SGD(p, 0.05, momentum=0.5, dampening=0.5),
    ],
)
def test_the_limit_minimises_the_whole_objective(make: Callable[[Any], torch.optim.Optimizer]) -> None:
    """Least squares with groups: the fixed point satisfies the optimality conditions of group lasso, for SGD
    with and without momentum."""
    net = nn.Linear(6, 5, bias=False).double()
    x = torch.randn(40, 6, dtype=torch.float64)
    y = x @ torch.randn(6, 5, dtype=torch.float64) * torch.tensor([1, 1, 0.1, 0.1, 0.1])
    opt, ssl = make(net.parameters()), GroupLasso(net, {"neuron": 0.2}, scaled=False)

    def loss() -> Tensor:
        error: Tensor = (net(x) - y).square().sum() / 80
        return error

    for _ in range(3000):
        opt.zero_grad()
        torch.autograd.backward(loss())
        opt.step()
        ssl.step(opt)
    (gradient,) = torch.autograd.grad(loss(), [net.weight])
    weight = net.weight.detach()
    dead = (weight == 0).all(dim=1)
    assert 0 < int(dead.sum()) < 5
    assert bool((gradient[dead].norm(dim=1) <= 0.2 + 1e-9).all())
    direction = weight[~dead] / weight[~dead].norm(dim=1, keepdim=True)
    assert torch.allclose(gradient[~dead], -0.2 * direction, atol=1e-6)


def test_the_learning_rate_of_each_parameter_counts() -> None:
    net = SmallNet()
    groups: list[dict[str, Any]] = [
        {"params": net.conv1.parameters(), "lr": 0.0},
        {"params": net.fc1.parameters()},
    ]
    opt = torch.optim.SGD(groups, 1.0)
    before = values(net)
    ssl = GroupLasso(net, {"filter": 0.01, "neuron": 0.01}, layers=("conv1", "fc1"))
    ssl.step(opt)
    assert torch.equal(net.conv1.weight, before["conv1.weight"])
    assert not torch.equal(net.fc1.weight, before["fc1.weight"])
    opt.param_groups[1]["lr"] = 1e6  # as a scheduler may set it
    ssl.step(opt)
    assert net.fc1.weight.count_nonzero() == 0


def test_a_shared_weight_is_shrunk_once() -> None:
    net = Shared()
    ssl = GroupLasso(net, {"depth": 0.1}, scaled=False)
    before = float(net.first.weight.detach().norm())
    ssl.step(still(net))
    assert float(net.first.weight.detach().norm()) == pytest.approx(before - 0.1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_types(dtype: torch.dtype) -> None:
    net = SmallNet().to(dtype)
    GroupLasso(net, ALL).step(still(net, 0.01))
    assert net.conv1.weight.dtype is dtype
    GroupLasso(net, ALL).step(still(net, 100.0))
    assert all(value.count_nonzero() == 0 for value in net.parameters() if value.dim() > 1)


def test_it_prints() -> None:
    net = SmallNet()
    ssl = GroupLasso(net, {"filter": 0.1}, layers=("conv1",))
    ssl.step(still(net, 1e3))
    assert str(ssl) == "group lasso, penalty 0\nconv1.weight: 8 of 8 filter groups are zero"


@pytest.mark.parametrize(
    ("strengths", "options", "parts"),
    [
        ({"filters": 0.1}, {}, ["'filters' does not exist", "'filter'", "neuron"]),
        ({}, {}, ["strengths must be a mapping"]),
        (0.1, {}, ["strengths must be a mapping", "0.1"]),
        ({"filter": -1}, {}, ["'filter'", "-1"]),
        ({"filter": math.nan}, {}, ["'filter'", "nan"]),
        ({"filter": "much"}, {}, ["'filter'", "'much'"]),
        ({"filter": 0.1}, {"layers": ("fc1",)}, ["no layer has 'filter' groups", "'fc1.weight'", "neuron"]),
        ({"neuron": 0.1}, {"skip": ("fc1", "fc2")}, ["no layer has 'neuron' groups", "filter"]),
    ],
)
def test_groups_that_do_not_exist(strengths: Any, options: dict[str, Any], parts: list[str]) -> None:
    net = SmallNet()
    before = values(net)
    says(message(lambda: GroupLasso(net, strengths, **options)), *parts)
    assert same(values(net), before)


def test_an_optimiser_that_does_not_fit() -> None:
    net = SmallNet()
    ssl, before = GroupLasso(net, {"filter": 1.0}), values(net)
    wrong: Any = net
    says(message(lambda: ssl.step(wrong)), "optimiser", "SmallNet")
    some = torch.optim.SGD(net.conv1.parameters(), 1.0)
    says(message(lambda: ssl.step(some)), "'conv2.weight'", "does not train it", "skip=('conv2',)")
    says(message(lambda: ssl.step(still(net, math.inf))), "learning rate", "inf")
    assert same(values(net), before)
