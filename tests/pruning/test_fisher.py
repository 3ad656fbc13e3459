"""Gradients of single samples, and pruning by the Fisher matrix, against brute force."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sparsecomp.errors import InputError
from sparsecomp.pruning.calibration import collect
from sparsecomp.pruning.candidate import Candidate
from sparsecomp.pruning.fisher import FisherSurgery
from sparsecomp.pruning.prune import prune_weight
from sparsecomp.pruning.statistics import Statistics
from sparsecomp.train.tiling import Tiling
from tests.pruning.layers import moments


def net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)
    ).eval()


def test_gradients_are_those_of_single_samples() -> None:
    model, x, y = net(), torch.randn(6, 1, 4, 4), torch.randint(0, 3, (6,))
    model.get_parameter("0.weight").requires_grad_(False)
    found = collect(
        model, [(x[:4], y[:4]), (x[4:], y[4:])], loss=F.cross_entropy, samples=5, keep_gradients=3
    )
    assert not model.get_parameter("0.weight").requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())
    model.get_parameter("0.weight").requires_grad_(True)
    for name in ("0", "4"):
        weight, own = model.get_parameter(f"{name}.weight"), found[name]
        single = [
            torch.autograd.grad(F.cross_entropy(model(x[i : i + 1]), y[i : i + 1]), weight)[0].flatten(1)
            for i in range(5)
        ]
        assert own.fisher is not None
        assert own.gradients is not None
        torch.testing.assert_close(own.gradients, torch.stack(single[:3]))
        torch.testing.assert_close(own.fisher, torch.stack(single).double().square().mean(dim=0))


def quadratic(change: torch.Tensor, gradients: torch.Tensor, damp: float) -> float:
    """change^T F change, F whole."""
    along = torch.einsum("nrc,rc->n", gradients.double(), change)
    return float(along.square().mean() + damp * change.square().sum())


@pytest.mark.parametrize(("rows", "width"), [(1, 1), (2, 1), (1, 3), (4, 6)])
def test_a_block_that_holds_the_weight_gives_the_best_single_removal(rows: int, width: int) -> None:
    """Against least squares on the whole Fisher matrix, for every group that could go."""
    weight, gradients = torch.randn(rows, 6).double(), torch.randn(10, rows, 6)
    tiles = 6 // width
    sparsity = 1 / tiles if tiles > 1 else 0.0
    damp = 0.1 * float(gradients.double().square().mean())
    mask, result = FisherSurgery(Tiling(rows, width), sparsity, None, 0.1).run(weight, gradients)
    flat = gradients.double().reshape(10, -1)
    matrix = flat.T @ flat / 10 + damp * torch.eye(rows * 6)
    costs = []
    for tile in range(tiles):
        kept = torch.ones(rows, 6, dtype=torch.bool)
        kept[:, tile * width : (tile + 1) * width] = False
        own = kept.flatten()
        change = -weight.clone().flatten()
        if own.any():
            change[own] = (
                torch.linalg.solve(matrix[own][:, own], (matrix @ weight.flatten())[own])
                - weight.flatten()[own]
            )
        costs.append(float(change @ matrix @ change))
    if tiles > 1:
        assert int((~mask).sum()) == rows * width
        assert quadratic(result - weight, gradients, damp) == pytest.approx(min(costs), rel=1e-6)
    else:
        assert mask.all()


def test_blocks_reach_over_the_end_of_no_row() -> None:
    """70 columns are a block of 64 and one of 6 with filling, which never counts as removed."""
    weight, gradients = torch.randn(3, 70).double(), torch.randn(8, 3, 70)
    for sparsity in (0.1, 0.5, 0.9):
        mask, result = FisherSurgery(Tiling(1, 1), sparsity, None, 0.1).run(weight, gradients)
        assert int((~mask).sum()) == round(sparsity * 210)
        assert bool((result[~mask] == 0).all())
    mask, _ = FisherSurgery(Tiling(1, 1), 0.5, (2, 4), 0.1).run(weight, gradients)
    assert int(mask.reshape(3, 70)[:, :68].reshape(3, 17, 4).sum(dim=2).max()) == 2


def test_second_order_costs_less_loss_than_first_than_magnitude() -> None:
    """By the quadratic that they minimise, in 19 of 20 layers whose gradients are correlated."""
    ordered = 0
    for seed in range(20):
        torch.manual_seed(seed)
        mixing = torch.randn(24, 24) * torch.randn(24).exp()
        gradients = (torch.randn(200, 8, 8) @ torch.randn(8, 24)) + 0.1 * torch.randn(200, 8, 24) @ mixing
        found = Statistics(400, moments(24), gradients.double().square().mean(dim=0), gradients)
        weight = torch.randn(8, 24)
        damp = 0.01 * float(gradients.double().square().mean())
        losses = [
            quadratic(
                (
                    prune_weight(weight, Candidate("unstructured", 0.5), found, method).weight - weight
                ).double(),
                gradients,
                damp,
            )
            for method in ("woodfisher", "fisher", "magnitude")
        ]
        ordered += losses[0] < losses[1] < losses[2]
    assert ordered >= 19


def test_bad_input() -> None:
    model, x, y = net(), torch.randn(6, 1, 4, 4), torch.randint(0, 3, (6,))
    with pytest.raises(InputError, match="pair of inputs and labels"):
        collect(model, [x], loss=F.cross_entropy)
    with pytest.raises(InputError, match="finite scalar"):
        collect(model, [(x, y)], loss=lambda output, label: output)
    with pytest.raises(InputError, match="does not depend on the weights"):
        collect(model, [(x, y)], loss=lambda output, label: torch.tensor(1.0))
    with pytest.raises(InputError, match=r"GiB.*keep"):
        collect(model, [(x, y)], loss=F.cross_entropy, keep_gradients=10**8)
