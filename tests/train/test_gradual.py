"""Gradual pruning: the schedule's sparsity, in every pattern, for good."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import nn

from sparsecomp.pattern import RowBlocks
from sparsecomp.train import CubicSchedule, GradualPruning, Pattern
from tests.train.nets import OPTIMIZERS, SmallNet, advance, message, same, says, values

SCHEDULE = CubicSchedule(final=0.75, begin=2, end=10, every=2)
PATTERNS = ["unstructured", "4x1", "2x3", "filter", "channel", "shape", "kernel"]


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("optimizer", ["momentum", "adamw"])
def test_the_schedule_is_kept(pattern: str, optimizer: str) -> None:
    net = SmallNet()
    opt, pruning = OPTIMIZERS[optimizer](net), GradualPruning(net, SCHEDULE, pattern)
    gone = {name: torch.zeros_like(kept) for name, kept in pruning.groups.items()}
    for step in range(1, 14):
        advance(net, opt)
        assert pruning.step(opt) is (step in (2, 4, 6, 8, 10))
        for name, kept in pruning.groups.items():
            wanted = max(1, round((1 - SCHEDULE.sparsity(step)) * kept.numel())) if step <= 10 else None
            if step % 2 == 0 and wanted is not None:
                assert int(kept.sum()) == wanted
            assert not bool((gone[name] & kept).any())  # never comes back
            gone[name] = ~kept
            weight = pruning.weights[name]
            assert torch.equal(pruning.pattern.scores(weight, weight.parameter) != 0, kept)


@pytest.mark.parametrize("pattern", ["2:4", "1:4", "3:8"])
def test_n_of_m(pattern: str) -> None:
    net = SmallNet()
    parsed = Pattern.parse(pattern)
    final = parsed.only_sparsity
    assert final is not None
    assert parsed.n_of_m is not None
    n, m = parsed.n_of_m
    opt, pruning = OPTIMIZERS["adamw"](net), GradualPruning(net, CubicSchedule(final, 1, 9, 2), pattern)
    for step in range(1, 12):
        advance(net, opt)
        pruning.step(opt)
        if step == 5:
            assert 0 < pruning.sparsity < final
    for name, weight in pruning.weights.items():
        matrix = weight.matrix(weight.parameter)
        for start in range(0, matrix.shape[1], m):
            part = matrix[:, start : start + m]
            assert bool((part.count_nonzero(dim=1) == min(n, part.shape[1])).all()), name


def test_the_smallest_go() -> None:
    net = nn.Linear(4, 2)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[1.0, -8, 3, -4], [5, -6, 7, 2]]))
    pruning = GradualPruning(net, CubicSchedule(0.5, 0, 1, 1))
    pruning.step(torch.optim.SGD(net.parameters(), 0.0))
    assert net.weight.tolist() == [[0, -8, 0, 0], [5, -6, 7, 0]]


def test_erk_gives_each_layer_its_own() -> None:
    net = SmallNet()
    opt = OPTIMIZERS["momentum"](net)
    pruning = GradualPruning(net, SCHEDULE, distribution="erk")
    for _ in range(10):
        advance(net, opt)
        pruning.step(opt)
    shares = {name: 1 - float(kept.float().mean()) for name, kept in pruning.groups.items()}
    assert shares == pytest.approx(pruning.layer_sparsities, abs=0.02)
    assert shares["fc1.weight"] > 0.75 > shares["conv1.weight"]
    assert pruning.sparsity == pytest.approx(0.75, abs=0.01)


def test_a_run_goes_on_where_it_was_saved() -> None:
    """Bit for bit as if it had not stopped, through files."""

    def run(net: nn.Module, opt: Any, pruning: GradualPruning, steps: range) -> None:
        for step in steps:
            torch.manual_seed(step)
            advance(net, opt)
            pruning.step(opt)

    net = SmallNet()
    opt, pruning = OPTIMIZERS["adamw"](net), GradualPruning(net, SCHEDULE, "4x1")
    run(net, opt, pruning, range(5))
    file = io.BytesIO()
    torch.save({"net": net.state_dict(), "opt": opt.state_dict(), "pruning": pruning.state_dict()}, file)
    run(net, opt, pruning, range(5, 12))
    other = SmallNet()
    opt2, pruning2 = OPTIMIZERS["adamw"](other), GradualPruning(other, SCHEDULE, "4x1")
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    other.load_state_dict(saved["net"])
    opt2.load_state_dict(saved["opt"])
    pruning2.load_state_dict(saved["pruning"])
    run(other, opt2, pruning2, range(5, 12))
    assert same(values(net), values(other))
    assert pruning2.steps == 12


def test_states_that_do_not_fit() -> None:
    net = SmallNet()
    pruning, before = GradualPruning(net, SCHEDULE, "4x1"), values(net)
    state = pruning.state_dict()
    wrong: Any = 3
    says(message(lambda: pruning.load_state_dict(wrong)), "state_dict()")
    says(message(lambda: pruning.load_state_dict(state | {"pattern": "8x1"})), "'8x1'", "'4x1'")
    says(message(lambda: pruning.load_state_dict(state | {"groups": {}})), "conv1.weight")
    other = copy.deepcopy(state)
    other["groups"]["fc1.weight"] = torch.zeros(1, 1, dtype=torch.bool)
    says(message(lambda: pruning.load_state_dict(other)), "(1, 1)", "'fc1.weight'", "(5, 192)")
    assert same(values(net), before)


def test_the_compilers_patterns_are_understood() -> None:
    assert GradualPruning(SmallNet(), SCHEDULE, RowBlocks(4)).pattern == Pattern("4x1")


def test_bad_input() -> None:
    net = SmallNet()
    wrong: Any = net
    schedule: Any = 0.9
    says(message(lambda: GradualPruning(net, schedule)), "CubicSchedule", "float")
    says(message(lambda: GradualPruning(net, SCHEDULE, "2:4")), "2:4", "0.5", "0.75")
    half = CubicSchedule(0.5, 0, 10)
    says(message(lambda: GradualPruning(net, half, "2:4", distribution="erk")), "2:4", "'erk'")
    says(message(lambda: GradualPruning(net, SCHEDULE, "4by1")), "'4by1'")
    says(message(lambda: GradualPruning(net, SCHEDULE, distribution="all")), "'all'")
    says(message(lambda: GradualPruning(net, SCHEDULE).step(wrong)), "optimiser")


def test_it_prints() -> None:
    pruning = GradualPruning(SmallNet(), SCHEDULE, "4x1", layers=("conv1",))
    assert str(pruning) == "step 0, 0.0% zeros\nconv1.weight: 18 of 18 groups kept (4x1)"
