"""Whole models, layer by layer."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsecomp.errors import InputError
from sparsecomp.pruning.calibration import collect
from sparsecomp.pruning.candidate import DENSE, Candidate
from sparsecomp.pruning.layers import prunable_layers
from sparsecomp.pruning.model import execution_order, prune_layers, prune_model
from sparsecomp.pruning.prune import Method, prune_weight
from sparsecomp.pruning.sensitivity import fisher_losses, layer_errors, measured_losses

HALF = Candidate("unstructured", 0.5)


class Attention(nn.Module):
    """Layers that run in another order than they are held; three share an input."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(8, 8)
        self.query, self.key, self.value = (nn.Linear(8, 8) for _ in range(3))
        self.unused = nn.Linear(3, 3)
        self.norm = nn.BatchNorm1d(8)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.query(x), self.key(x), self.value(x)
        mixed = torch.softmax(q @ k.T, dim=1) @ v
        y: Tensor = self.last(self.norm(mixed))
        return y


def batches() -> list[Tensor]:
    return [torch.randn(16, 8) for _ in range(3)]


def test_layers_run_in_order_those_of_one_input_together() -> None:
    model = Attention()
    order = execution_order(model, prunable_layers(model), batches()[0])
    assert order == [("query", "key", "value"), ("last",), ("unused",)]


def test_each_layer_sees_the_activations_of_pruned_ones() -> None:
    torch.manual_seed(1)
    model, data = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 6)), batches()
    dense = copy.deepcopy(model)
    found = prune_model(model, {"2": HALF, "0": HALF}, data)
    assert list(found) == ["0", "2"]
    by_hand = copy.deepcopy(dense)
    for name in ("0", "2"):
        weight = by_hand.get_parameter(f"{name}.weight")
        with torch.no_grad():
            weight.copy_(prune_weight(weight, HALF, collect(by_hand, data, [name])[name]).weight)
    assert torch.equal(model.get_parameter("2.weight"), by_hand.get_parameter("2.weight"))
    assert torch.equal(model.get_parameter("0.weight"), found["0"].weight)


def test_stopped_and_taken_up_again_it_gives_the_same() -> None:
    model, data = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 6)), batches()
    other = copy.deepcopy(model)
    prune_model(model, {"0": HALF, "2": HALF}, data)
    name, _ = next(prune_layers(other, {"0": HALF, "2": HALF}, data))
    assert name == "0"
    dict(prune_layers(other, {"2": HALF}, data))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_batch_norms_are_estimated_anew() -> None:
    model = nn.Sequential(nn.Linear(8, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 6)).eval()
    data = batches()
    prune_model(model, {"0": Candidate("unstructured", 0.8), "3": DENSE}, data)
    rows = [model[0](x) for x in data]
    norm = model[1]
    assert isinstance(norm, nn.BatchNorm1d)
    torch.testing.assert_close(norm.running_mean, torch.stack([r.mean(dim=0) for r in rows]).mean(dim=0))
    torch.testing.assert_close(norm.running_var, torch.stack([r.var(dim=0) for r in rows]).mean(dim=0))
    assert (norm.momentum, norm.training) == (0.1, False)
    assert int(norm.num_batches_tracked or 0) == 3


def test_weights_stored_inputs_first_are_pruned_as_any_other() -> None:
    class Conv1D(nn.Module):  # as GPT-2 has it
        def __init__(self) -> None:
            super().__init__()
            self.nf = 6
            self.weight = nn.Parameter(torch.randn(8, 6))

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.weight

    model, linear, data = nn.Sequential(Conv1D()), nn.Sequential(nn.Linear(8, 6, bias=False)), batches()
    linear.get_parameter("0.weight").data.copy_(model.get_parameter("0.weight").detach().T)
    prune_model(model, {"0": Candidate("4x1", 0.5)}, data)
    prune_model(linear, {"0": Candidate("4x1", 0.5)}, data)
    assert torch.equal(model.get_parameter("0.weight"), linear.get_parameter("0.weight").T)


def test_sensitivity_of_each_layer_alone() -> None:
    model, data = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 6)), batches()
    before = copy.deepcopy(model)
    candidates = [DENSE, Candidate("unstructured", 0.3), Candidate("unstructured", 0.9)]
    statistics = collect(model, data)
    x = torch.cat(data)
    y = model(x).detach()
    measured = measured_losses(
        model, candidates, lambda m: float((m(x) - y).detach().square().mean()), statistics
    )
    for errors in (layer_errors(model, candidates), layer_errors(model, candidates, statistics), measured):
        assert list(errors) == ["0", "2"]
        for found in errors.values():
            assert found[DENSE] == 0
            assert 0 < found[candidates[1]] < found[candidates[2]]
    last = prune_weight(before.get_parameter("2.weight"), candidates[2], statistics["2"])
    change = (last.weight - before.get_parameter("2.weight")).detach().double()
    expected = float((change @ statistics["2"].moments[0] * change).sum() / 6)
    assert measured["2"][candidates[2]] == pytest.approx(expected, rel=1e-4)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before.parameters(), strict=True))


def test_with_a_loss_statistics_are_of_the_whole_network() -> None:
    model = nn.Sequential(nn.Linear(8, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 6)).eval()
    pairs = [(x, torch.randint(0, 6, (16,))) for x in batches()]
    methods: tuple[Method, ...] = ("fisher", "woodfisher")
    for method in methods:
        found = prune_model(copy.deepcopy(model), {"0": HALF, "3": HALF}, pairs, method, loss=F.cross_entropy)
        statistics = collect(model, pairs, loss=F.cross_entropy, keep_gradients=64)
        for name, pruned in found.items():
            weight = model.get_parameter(f"{name}.weight")
            assert pruned.method == method
            assert torch.equal(pruned.weight, prune_weight(weight, HALF, statistics[name], method).weight)


def test_layers_without_inputs_go_by_magnitude() -> None:
    found = prune_model(Attention(), {"unused": HALF, "query": HALF}, batches())
    assert found["unused"].method == "magnitude"
    assert "calibration" in found["unused"].note
    assert found["query"].method.startswith("obs")


def test_losses_that_gradients_predict() -> None:
    """Of a quadratic loss whose Fisher matrix is its Hessian they are what removing a weight costs."""
    model = nn.Sequential(nn.Linear(3, 1, bias=False))
    data = [(torch.eye(3) * torch.tensor([1.0, 2.0, 3.0]), torch.zeros(3))]
    statistics = collect(model, data, loss=lambda output, label: output.sum())
    found = fisher_losses(model, [DENSE, Candidate("unstructured", 0.3)], statistics)["0"]
    weight = model.get_parameter("0.weight").detach()[0]
    costs = weight.double().square() * torch.tensor([1.0, 4.0, 9.0]) / 3 / 2
    assert found[DENSE] == 0
    assert found[Candidate("unstructured", 0.3)] == pytest.approx(float(costs.min()))
    with pytest.raises(InputError, match="no squared gradients"):
        fisher_losses(model, [DENSE], collect(model, [data[0][0]]))


def test_bad_input() -> None:
    model = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 6))
    with pytest.raises(InputError, match="no module of that name"):
        prune_model(model, {"9": HALF}, batches())
    with pytest.raises(InputError, match="could be pruned"):
        prune_model(model, {"1": HALF}, batches())
