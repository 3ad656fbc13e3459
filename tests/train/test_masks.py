"""Zeros that no optimiser brings back, in plain and in shared weights."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from sparsecomp.train import Masks
from tests.train.nets import OPTIMIZERS, Shared, SmallNet, advance, message, same, says, values


def random_masks(net: nn.Module) -> dict[str, Tensor]:
    return {name: torch.rand_like(value) < 0.3 for name, value in net.named_parameters() if value.dim() > 1}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_zeros_survive_every_optimiser(optimizer: str) -> None:
    net = SmallNet()
    opt = OPTIMIZERS[optimizer](net)
    for _ in range(3):
        advance(net, opt)  # so that there are momenta to push what is masked
    kept = random_masks(net)
    masks = Masks(net, kept)
    for _ in range(5):
        before = values(net)
        advance(net, opt)
        masks.step(opt)
        for name, mask in kept.items():
            parameter = net.get_parameter(name)
            assert bool((parameter[~mask] == 0).all())
            assert bool((parameter[mask] != before[name][mask]).any())
            for remembered in opt.state[parameter].values():
                if remembered.shape == parameter.shape:
                    assert bool((remembered[~mask] == 0).all())


def test_by_default_what_is_zero_stays_zero() -> None:
    net = SmallNet()
    with torch.no_grad():
        net.conv2.weight[3] = 0
        net.get_parameter("conv2.bias").zero_()
    masks = Masks(net)
    opt = OPTIMIZERS["momentum"](net)
    advance(net, opt)
    masks.step(opt)
    assert net.conv2.weight[3].count_nonzero() == 0
    assert net.get_parameter("conv2.bias").count_nonzero() > 0
    assert masks.sparsity == pytest.approx(
        net.conv2.weight[3].numel() / sum(p.numel() for p in net.parameters() if p.dim() > 1)
    )
    assert "conv2.weight: 396 of 432 kept" in str(masks)


def test_saved_and_loaded() -> None:
    net, other = SmallNet(), SmallNet()
    masks = Masks(net, random_masks(net))
    state = copy.deepcopy(masks.state_dict())
    resumed = Masks(other)
    other.load_state_dict(net.state_dict())
    resumed.load_state_dict(state)
    assert same(resumed.state_dict()["masks"], masks.state_dict()["masks"])
    opt = OPTIMIZERS["adamw"](other)
    advance(other, opt)
    resumed.step(opt)
    assert resumed.sparsity == masks.sparsity
    assert all(bool((other.get_parameter(name)[~mask] == 0).all()) for name, mask in masks.kept.items())


@pytest.mark.parametrize(
    "state", [None, {}, {"masks": {}}, {"masks": {"conv1.weight": torch.ones(8, 1, 3, 3)}}, 3]
)
def test_a_state_of_something_else(state: Any) -> None:
    net = SmallNet()
    masks, before = Masks(net), values(net)
    says(message(lambda: masks.load_state_dict(state)), "the state is of masks", "conv2.weight")
    assert same(values(net), before)


@pytest.mark.parametrize(
    ("name", "mask", "parts"),
    [
        ("conv1.weight", torch.ones(8, 3, 3), ["'conv1.weight'", "(8, 3, 3)", "(8, 1, 3, 3)"]),
        ("conv1.weight", torch.full((8, 1, 3, 3), 0.5), ["'conv1.weight'", "True and False"]),
        ("conv1.weight", torch.full((8, 1, 3, 3), torch.nan), ["'conv1.weight'", "True and False"]),
        ("conv1.weight", [True], ["'conv1.weight'", "list"]),
        ("conv3.weight", torch.ones(1), ["no parameter 'conv3.weight'", "'conv1.weight'"]),
    ],
)
def test_masks_that_do_not_fit(name: str, mask: Any, parts: list[str]) -> None:
    net = SmallNet()
    before = values(net)
    good = torch.zeros(20, 192)
    says(message(lambda: Masks(net, {"fc1.weight": good, name: mask})), *parts)
    assert same(values(net), before)


def test_what_is_no_model_or_no_mask() -> None:
    wrong: Any = torch.ones(3)
    says(message(lambda: Masks(wrong)), "nn.Module", "Tensor")
    says(message(lambda: Masks(wrong, {})), "nn.Module", "Tensor")
    says(message(lambda: Masks(SmallNet(), wrong)), "mapping", "Tensor")
    says(message(lambda: Masks(SmallNet()).step(wrong)), "optimiser", "Tensor")


def test_a_shared_weight_has_one_mask() -> None:
    net, mask = Shared(), torch.eye(4)
    masks = Masks(net, {"second.weight": mask})
    assert list(masks.kept) == ["first.weight"]
    assert torch.equal(net.first.weight != 0, mask.bool())
    assert net.second.weight is net.first.weight
    assert list(Masks(net).kept) == ["first.weight"]
    says(
        message(lambda: Masks(net, {"first.weight": mask, "second.weight": 1 - mask})),
        "'first.weight', 'second.weight' are one parameter",
        "masks differ",
    )


def test_a_weight_shared_with_an_embedding_is_refused() -> None:
    embedding, body, head = nn.Embedding(10, 4), nn.Linear(4, 4), nn.Linear(4, 10)
    head.weight = embedding.weight
    net = nn.ModuleDict({"embedding": embedding, "body": body, "head": head})
    says(message(lambda: Masks(net)), "'embedding.weight', 'head.weight'", "Embedding", "skip=('head',)")
    assert list(Masks(net, skip=("head",)).kept) == ["body.weight"]


def test_a_weight_shared_by_layers_of_two_kinds_is_refused() -> None:
    down, up = nn.Conv2d(4, 4, 3), nn.ConvTranspose2d(4, 4, 3)
    up.weight = down.weight
    net = nn.ModuleDict({"down": down, "up": up})
    says(message(lambda: Masks(net)), "'down.weight', 'up.weight'", "Conv2d", "ConvTranspose2d")


def test_views_of_one_memory_are_refused() -> None:
    net = Shared()
    net.second.weight = nn.Parameter(net.first.weight.detach().t())
    says(message(lambda: Masks(net)), "'first.weight' and 'second.weight'", "same memory", "skip=('first',)")
    flat = torch.randn(32)
    net.first.weight = nn.Parameter(flat[:16].view(4, 4))
    net.second.weight = nn.Parameter(flat[16:].view(4, 4))
    Masks(net)  # side by side in one buffer, which is no overlap


def test_weights_that_are_computed_are_refused() -> None:
    net = SmallNet()
    prune.random_unstructured(net.conv1, "weight", 0.5)  # type: ignore[no-untyped-call]
    says(message(lambda: Masks(net)), "'conv1.weight'", "prune.remove", "skip=('conv1',)")
    other = SmallNet()
    parametrizations.weight_norm(other.fc1)
    says(message(lambda: Masks(other)), "'fc1.weight'", "remove_parametrizations")
    assert "fc1.weight" not in Masks(other, skip=("fc1",)).kept
    says(message(lambda: Masks(parametrizations.weight_norm(nn.Linear(3, 3)))), "'weight' is computed")


def test_a_weight_without_a_shape() -> None:
    says(message(lambda: Masks(nn.LazyLinear(3))), "'weight'", "run the model once")


def test_a_weight_that_was_replaced() -> None:
    net = SmallNet()
    masks, opt = Masks(net), OPTIMIZERS["momentum"](net)
    net.fc1.weight = nn.Parameter(torch.randn(20, 192))
    before = values(net)
    says(message(lambda: masks.step(opt)), "'fc1.weight' was replaced")
    assert same(values(net), before)


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"layers": ("conv3",)}, ["layers names 'conv3'", "'conv1'"]),
        ({"skip": ("fcl",)}, ["skip names 'fcl'"]),
        ({"skip": 3}, ["skip must be names", "3"]),
        ({"layers": ("relu1",)}, ["no linear layer or convolution", "relu1"]),
        ({"skip": ("conv1", "conv2", "fc1", "fc2")}, ["no linear layer or convolution"]),
    ],
)
def test_names_that_do_not_exist(options: dict[str, Any], parts: list[str]) -> None:
    says(message(lambda: Masks(SmallNet(), **options)), *parts)


def test_frozen_weights_are_left_alone_unless_asked_for() -> None:
    net = SmallNet()
    net.conv1.weight.requires_grad_(False)
    assert "conv1.weight" not in Masks(net).kept
    assert list(Masks(net, layers=("conv1",)).kept) == ["conv1.weight"]
