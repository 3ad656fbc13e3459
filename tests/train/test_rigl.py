"""RigL keeps the number of groups, exchanges the right ones, and starts them at zero."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from sparsecomp.train import CosineSchedule, Pattern, RigL
from tests.train.nets import OPTIMIZERS, SmallNet, advance, message, same, says, values

SCHEDULE = CosineSchedule(end=20, every=2, alpha=0.5)


@pytest.mark.parametrize(
    "pattern", ["unstructured", "4x1", "2x3", "filter", "channel", "shape", "kernel", "2:4", "1:4"]
)
@pytest.mark.parametrize("optimizer", ["momentum", "adamw"])
def test_the_count_stays_and_the_mask_moves(pattern: str, optimizer: str) -> None:
    net = SmallNet()
    sparsity = Pattern.parse(pattern).only_sparsity or 0.7
    opt = OPTIMIZERS[optimizer](net)
    rigl = RigL(net, sparsity, SCHEDULE, pattern, distribution="uniform")
    counts = {name: int(kept.sum()) for name, kept in rigl.groups.items()}
    moved = False
    for step in range(1, 25):
        advance(net, opt)
        before = rigl.groups
        assert rigl.step(opt) is (step % 2 == 0 and step < 20)
        assert {name: int(kept.sum()) for name, kept in rigl.groups.items()} == counts
        for name, kept in rigl.groups.items():
            weight = rigl.weights[name]
            grown = rigl.pattern.mask(weight, kept & ~before[name])
            parameter = weight.parameter
            assert parameter[grown | ~rigl.masks.kept[name]].count_nonzero() == 0
            for remembered in opt.state[parameter].values():
                if remembered.shape == parameter.shape:
                    assert remembered[grown].count_nonzero() == 0
            moved |= bool(grown.any())
    assert moved
    few = rigl.pattern.n_of_m
    if few:
        for weight in rigl.weights.values():
            lines = rigl.pattern.lines(rigl.groups[weight.name], False)
            assert bool((lines.sum(dim=1) <= few[0]).all())


def test_one_exchange_by_hand() -> None:
    """Four of eight kept; half are dropped, the smallest; the largest gradients grow, a dropped one among them."""
    net = nn.Linear(8, 1, bias=False)
    rigl = RigL(net, 0.5, CosineSchedule(end=10**9, every=1, alpha=0.5), distribution="uniform")
    rigl.load_state_dict(rigl.state_dict() | {"groups": {"weight": torch.tensor([[True] * 4 + [False] * 4])}})
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[4.0, 1, 3, 2, 0, 0, 0, 0]]))
    net.weight.grad = torch.tensor([[9.0, 6, 9, 1, 5, 2, 7, 3]])
    assert rigl.step(torch.optim.SGD(net.parameters(), 0.0))
    assert rigl.groups["weight"].tolist() == [[True, True, True, False, False, False, True, False]]
    assert net.weight.tolist() == [[4, 1, 3, 0, 0, 0, 0, 0]]


def test_weights_that_are_not_finite_do_not_change_the_count() -> None:
    net = nn.Linear(8, 4)
    opt = torch.optim.SGD(net.parameters(), 0.0)
    rigl = RigL(net, 0.5, CosineSchedule(end=100, every=1), distribution="uniform")
    with torch.no_grad():
        net.weight[0] = torch.nan
    net.weight.grad = torch.randn(4, 8)
    for _ in range(5):
        rigl.step(opt)
        assert int(rigl.groups["weight"].sum()) == 16


def test_erk_is_the_default() -> None:
    rigl = RigL(SmallNet(), 0.7, SCHEDULE)
    shares = {name: 1 - float(kept.float().mean()) for name, kept in rigl.groups.items()}
    assert shares == pytest.approx(rigl.layer_sparsities, abs=0.02)
    assert shares["fc1.weight"] > shares["fc2.weight"] > shares["conv1.weight"]
    assert rigl.sparsity == pytest.approx(0.7, abs=0.01)


def test_the_first_groups_are_drawn_by_the_generator() -> None:
    def drawn(seed: int) -> torch.Tensor:
        net = SmallNet()
        return RigL(net, 0.7, SCHEDULE, generator=torch.Generator().manual_seed(seed)).groups["fc1.weight"]

    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))


def test_a_run_goes_on_where_it_was_saved() -> None:
    net, other = SmallNet(), SmallNet()
    opt, rigl = OPTIMIZERS["momentum"](net), RigL(net, 0.7, SCHEDULE)
    opt2, rigl2 = OPTIMIZERS["momentum"](other), RigL(other, 0.7, SCHEDULE)
    for step in range(12):
        if step == 5:
            other.load_state_dict(net.state_dict())
            opt2.load_state_dict(copy.deepcopy(opt.state_dict()))
            rigl2.load_state_dict(rigl.state_dict())
        for one, its, moves in [(net, opt, rigl), (other, opt2, rigl2)]:
            torch.manual_seed(step)
            advance(one, its)
            moves.step(its)
    assert same(values(net), values(other))


def test_bad_input() -> None:
    net = SmallNet()
    before, opt = values(net), OPTIMIZERS["momentum"](net)
    wrong: Any = 100
    says(message(lambda: RigL(net, 0.9, wrong)), "CosineSchedule", "int")
    says(message(lambda: RigL(net, 1.0, SCHEDULE)), "sparsity", "1.0")
    says(message(lambda: RigL(net, 0.5, SCHEDULE, "2:4")), "2:4", "'erk'")
    says(message(lambda: RigL(net, 0.9, SCHEDULE, "rows")), "'rows'")
    assert same(values(net), before)
    rigl = RigL(net, 0.5, CosineSchedule(end=10, every=1))
    before = values(net)
    says(message(lambda: rigl.step(opt)), "'conv1.weight' has no gradient", "before zero_grad")
    assert same(values(net), before)
    assert rigl.steps == 0
