"""The call: every kind of budget on a small net, resumed, and what cannot be done."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sparsecomp
from sparsecomp import InputError, sparsify
from sparsecomp.pruning import subject, whole
from sparsecomp.pruning.calibration import collect
from sparsecomp.pruning.candidate import Candidate
from sparsecomp.pruning.energy import removed_energies
from sparsecomp.pruning.layers import prunable_layers
from sparsecomp.pruning.model import layer_weight, prune_layers
from sparsecomp.pruning.plan import Plan
from sparsecomp.pruning.prune import prune_weight
from sparsecomp.pruning.pruned import Pruned
from sparsecomp.pruning.sensitivity import fisher_losses

QUICK: dict[str, Any] = {"target": "reference", "measure": False, "method": "wanda", "levels": 4}


class Net(nn.Module):
    """A convolution, two linear layers and one that is too small."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(4, 16, 3, padding=1)
        self.up = nn.Linear(16, 64)
        self.down = nn.Linear(64, 16)
        self.head = nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.convolution(x).relu().mean(dim=(2, 3))
        result: Tensor = self.head(self.down(self.up(y).relu()).relu())
        return result


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture
def batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(8, 4, 6, 6, generator=generator) for _ in range(3)]


def test_a_share_of_zeros(net: nn.Module, batches: list[Tensor], tmp_path: Path) -> None:
    before = {name: value.clone() for name, value in net.state_dict().items()}
    plan = sparsify(net, batches, sparsity=0.7, resume=tmp_path, **QUICK)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    weights = prunable_layers(plan.model)
    kept = sum(int(w.parameter.count_nonzero()) for w in weights.values())
    total = sum(w.parameter.numel() for w in weights.values())
    assert plan.totals.kept == kept
    assert plan.totals.weights == total
    assert 0.68 <= 1 - kept / total < 0.95
    assert plan.layers[-1].name == "head"
    assert plan.layers[-1].note == "stays dense: it has only 32 weights"
    for layer in plan.layers[:-1]:
        error = wanda_error(net, layer.name, layer.chosen.candidate, batches)
        assert layer.chosen.error == pytest.approx(error)
        assert len(layer.runners_up) == 2
    assert plan.totals.error == pytest.approx(sum(layer.chosen.error for layer in plan.layers))


def wanda_error(net: nn.Module, name: str, candidate: Candidate, batches: list[Tensor]) -> float:
    statistics = collect(net, batches, [name])
    weight = layer_weight(prunable_layers(net)[name])
    return prune_weight(weight, candidate, statistics[name], "wanda").error


def test_bytes(net: nn.Module, batches: list[Tensor], tmp_path: Path) -> None:
    dense = sum(tensor.numel() * tensor.element_size() for tensor in net.state_dict().values())
    plan = sparsify(net, batches, target_bytes=dense // 2, resume=tmp_path, **QUICK)
    assert plan.totals.dense_bytes == dense
    assert 0.3 * dense < plan.totals.bytes <= dense // 2
    with pytest.raises(
        InputError, match=r"target_bytes=100 is out of reach: the least .* leave is \d+ bytes"
    ):
        sparsify(net, batches, target_bytes=100, resume=tmp_path, **QUICK)


def test_a_loss_that_is_measured(net: nn.Module, batches: list[Tensor], tmp_path: Path) -> None:
    held_out = torch.randn(32, 4, 6, 6)
    with torch.no_grad():
        expected = net(held_out)

    def evaluate(model: nn.Module) -> float:
        with torch.no_grad():
            return float((model(held_out) - expected).square().mean() / expected.square().mean())

    loose, tight = (
        sparsify(net, batches, max_loss=most, evaluate=evaluate, resume=tmp_path, **QUICK)
        for most in (0.05, 0.0005)
    )
    for plan, most in ((loose, 0.05), (tight, 0.0005)):
        assert plan.totals.loss == pytest.approx(evaluate(plan.model))
        assert evaluate(plan.model) <= most
        assert plan.totals.dense_loss == 0.0
    assert loose.totals.predicted_seconds <= tight.totals.predicted_seconds
    assert loose.totals.sparsity > 0.1
    nothing = sparsify(net, batches, max_loss=0.0, evaluate=evaluate, resume=tmp_path, **QUICK)
    assert nothing.totals.loss == 0.0


@pytest.mark.parametrize("allocation", ["uniform", "erk", "global"])
def test_plain_allocations(net: nn.Module, batches: list[Tensor], allocation: str, tmp_path: Path) -> None:
    plan = sparsify(net, batches, sparsity=0.6, allocation=allocation, resume=tmp_path, **QUICK)
    assert 0.58 <= plan.totals.sparsity <= 0.63
    found = {layer.chosen.candidate.sparsity for layer in plan.layers[:-1]}
    assert (len(found) == 1) == (allocation == "uniform")


def test_a_resumed_run_asks_for_nothing_again(
    net: nn.Module, batches: list[Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = sparsify(net, batches, sparsity=0.7, resume=tmp_path, **QUICK)

    def fails(*args: object) -> None:
        raise AssertionError("errors are known already")

    monkeypatch.setattr(subject, "layer_errors", fails)
    again = sparsify(net, batches, sparsity=0.7, resume=tmp_path, **QUICK)
    assert again.choices == first.choices
    for name, value in again.model.state_dict().items():
        assert torch.equal(value, first.model.state_dict()[name])


def test_an_interrupt_while_pruning_loses_no_layer(
    net: nn.Module, batches: list[Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = sparsify(net, batches, sparsity=0.7, resume=tmp_path / "whole", verify=False, **QUICK)
    seen: list[str] = []
    limit = 2

    def counted(*args: Any, **options: Any) -> Iterator[tuple[str, Pruned]]:
        for name, pruned in prune_layers(*args, **options):
            if len(seen) == limit:
                raise KeyboardInterrupt
            seen.append(name)
            yield name, pruned

    monkeypatch.setattr(subject, "prune_layers", counted)
    with pytest.raises(KeyboardInterrupt):
        sparsify(net, batches, sparsity=0.7, resume=tmp_path / "parts", verify=False, **QUICK)
    limit = 10
    again = sparsify(net, batches, sparsity=0.7, resume=tmp_path / "parts", verify=False, **QUICK)
    assert len(seen) == len(set(seen)) == 3
    for name, value in again.model.state_dict().items():
        torch.testing.assert_close(value, whole.model.state_dict()[name])


def test_without_data_magnitude_decides(net: nn.Module, batches: list[Tensor], tmp_path: Path) -> None:
    plan = sparsify(
        net, None, sparsity=0.7, example_inputs=(batches[0],), resume=tmp_path, **QUICK | {"method": "obs"}
    )
    assert plan.method == "magnitude"
    weights = prunable_layers(net)
    for layer in plan.layers:
        candidate = layer.chosen.candidate
        if not candidate.is_dense:
            pruned = prune_weight(layer_weight(weights[layer.name]), candidate, None, "magnitude")
            assert layer.chosen.error == pytest.approx(pruned.error)


def test_a_method_without_its_labels_falls_back_and_says_so(
    net: nn.Module, batches: list[Tensor], tmp_path: Path
) -> None:
    plan = sparsify(net, batches, sparsity=0.7, resume=tmp_path, **QUICK | {"method": "fisher"})
    notes = {layer.note for layer in plan.layers if not layer.chosen.candidate.is_dense}
    assert notes == {"fisher needs gradients: labels and a loss"}
    assert "fisher needs gradients" in str(plan)


@pytest.mark.parametrize("method", ["fisher", "woodfisher"])
def test_gradients_of_a_loss_weigh_errors(
    net: nn.Module, batches: list[Tensor], tmp_path: Path, method: str
) -> None:
    pairs = [(x, torch.arange(len(x)) % 2) for x in batches]
    options = QUICK | {"method": method, "loss": F.cross_entropy, "levels": 2}
    plan = sparsify(net, pairs, sparsity=0.5, resume=tmp_path, **options)
    assert {layer.note for layer in plan.layers[:-1]} == {""}
    statistics = collect(net, pairs, ["up"], loss=F.cross_entropy, keep_gradients=64)
    candidate = plan.choices["up"]
    if not candidate.is_dense:
        expected = fisher_losses(net, (candidate,), statistics, plan.method, ("up",))["up"][candidate]
        assert plan.layers[1].chosen.error == pytest.approx(expected)
    with pytest.raises(InputError, match="calibration batch 1 must be a pair of inputs and labels"):
        sparsify(net, batches, sparsity=0.5, resume=tmp_path / "other", **options)


def test_energies_are_those_of_pruning(net: nn.Module) -> None:
    wanted = [Candidate("unstructured", 0.0), Candidate("2:4", 0.5)]
    wanted += [Candidate(s, share) for s in ("unstructured", "4x1", "filter", "3x2") for share in (0.3, 0.77)]
    for weight in prunable_layers(net).values():
        found = removed_energies(weight, wanted)
        for candidate in wanted:
            expected = prune_weight(layer_weight(weight), candidate, None, "magnitude").error
            assert found[candidate] == pytest.approx(expected, rel=1e-9), candidate


def test_skipped_layers_are_not_in_the_plan(net: nn.Module, batches: list[Tensor], tmp_path: Path) -> None:
    plan = sparsify(net, batches, sparsity=0.5, skip=["up"], resume=tmp_path, **QUICK)
    assert "up" not in plan.choices
    assert torch.equal(plan.model.get_parameter("up.weight"), net.get_parameter("up.weight"))


def test_a_plan_from_a_file_makes_the_same_model(
    net: nn.Module, batches: list[Tensor], tmp_path: Path
) -> None:
    plan = sparsify(net, batches, sparsity=0.7, resume=tmp_path, **QUICK)
    plan.save(tmp_path / "plan.json")
    again = Plan.load(tmp_path / "plan.json").apply(net, batches)
    for name, value in again.state_dict().items():
        torch.testing.assert_close(value, plan.model.state_dict()[name])


def test_whole_models_are_timed_once_and_the_finished_one_again(
    net: nn.Module, batches: list[Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[nn.Module] = []

    def counted(model: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
        compiled.append(model)
        return sparsecomp.compile_sparse(model, *args, **kwargs)

    monkeypatch.setattr(whole, "compile_sparse", counted)
    options = QUICK | {"measure": True}
    plan = sparsify(net, batches, sparsity=0.7, resume=tmp_path, **options)
    totals = plan.totals
    assert totals.measured_seconds is not None
    assert totals.dense_seconds is not None
    assert totals.eager_seconds is not None
    assert totals.speedup == pytest.approx(totals.dense_seconds / totals.measured_seconds)
    assert compiled[0] is net
    finished = compiled[2:]  # after the very sparse one
    assert len(finished) in (2, 3)
    assert all(model is plan.model for model in finished)
    compiled.clear()
    again = sparsify(net, batches, sparsity=0.7, resume=tmp_path, **options)
    timed = {id(model) for model in compiled}  # what else was timed is known
    assert timed == {id(net), id(again.model)}
    assert again.totals.predicted_seconds == totals.predicted_seconds
    assert again.totals.dense_seconds == totals.dense_seconds


def test_what_functions_said_is_not_believed_of_others(net: nn.Module, batches: list[Tensor]) -> None:
    told: list[nn.Module] = []

    def worse_by(times: float) -> Callable[[nn.Module], float]:
        def evaluate(model: nn.Module) -> float:
            told.append(model)
            kept = sum(int(p.count_nonzero()) for p in model.parameters())
            return -times * kept

        return evaluate

    tight = sparsify(net, batches, max_loss=100, evaluate=worse_by(1.0), **QUICK)
    loose = sparsify(net, batches, max_loss=100, evaluate=worse_by(0.1), **QUICK)
    assert tight.totals.kept > loose.totals.kept
    assert len(told) > 6


def test_errors_may_be_the_rise_of_a_loss(net: nn.Module, batches: list[Tensor]) -> None:
    weight = net.get_parameter("up.weight").detach().clone()

    def only_up_matters(model: nn.Module) -> float:
        return float((model.get_parameter("up.weight").detach() - weight).square().sum())

    plan = sparsify(net, batches, sparsity=0.4, sensitivity=only_up_matters, **QUICK)
    assert plan.choices["up"].is_dense
    assert plan.choices["convolution"].sparsity > 0
    assert plan.totals.error == 0.0


X = torch.randn(2, 4, 6, 6)
BAD: list[tuple[Any, dict[str, Any], str]] = [
    ([], {"sparsity": 0.5}, "calibration has no batches"),
    (X, {"sparsity": 0.5}, r"not one Tensor: pass \[batch\]"),
    ({"x": X}, {"sparsity": 0.5}, r"not one dict: pass \[batch\]"),
    (None, {"sparsity": 0.5}, "without calibration data pass example_inputs"),
    ([X[:, :3]], {"sparsity": 0.5}, "cannot be run"),
    ([X, X[:0]], {"sparsity": 0.5}, "calibration batch 2 is empty"),
    ([X.to("meta")], {"sparsity": 0.5}, "batch 1 is on meta, the model on cpu"),
    ([X * float("nan")], {"sparsity": 0.5}, "batch 1 has NaN"),
    ([X], {}, "exactly one of"),
    ([X], {"sparsity": 0.5, "target_speedup": 2}, "exactly one of"),
    ([X], {"max_loss": 0.1}, "max_loss needs evaluate"),
    ([X], {"max_loss": 0.1, "evaluate": lambda model: "much"}, "evaluate must return a number, not str"),
    ([X], {"max_loss": 0.1, "evaluate": lambda model: float("nan")}, "returned nan: it must return a finite"),
    ([X], {"sparsity": 0.5, "evaluate": 3}, "evaluate must be a function"),
    ([X], {"target_speedup": 2.0}, "measure=False cannot be asked for"),
    ([X], {"sparsity": 0.5, "method": "luck"}, "method 'luck' is not known. Use one of"),
    ([X], {"sparsity": 0.5, "allocation": "fair"}, "allocation 'fair' is not known"),
    ([X], {"sparsity": 0.5, "structures": ["9:4"]}, "pattern '9:4' is not known"),
    ([X], {"sparsity": 0.5, "structures": []}, "structures is empty"),
    ([X], {"sparsity": 0.5, "levels": 1}, "levels must be a whole number of at least 2"),
    ([X], {"sparsity": 0.5, "skip": ["upp"]}, "upp"),
    (
        [X],
        {"sparsity": 0.5, "skip": ["convolution", "up", "down"]},
        "no layer can be pruned: 'head' stays dense",
    ),
    ([X], {"sparsity": 0.995}, "sparsity=0.995 is out of reach: at least"),
    ([X], {"sparsity": 0.5, "structures": ["2:4"], "allocation": "erk"}, "needs a structure of any sparsity"),
    (
        [X],
        {"sparsity": 0.5, "structure": ["4x1"]},
        "option 'structure' is not known. Did you mean 'structures'",
    ),
    ([X], {"sparsity": 0.5, "threads": 0}, "threads must be a positive number"),
]


@pytest.mark.parametrize(("calibration", "options", "message"), BAD)
def test_bad_input(
    net: nn.Module, calibration: Any, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        sparsify(net, calibration, resume=tmp_path, **QUICK | options)


def test_a_model_in_training_mode_is_refused(net: nn.Module) -> None:
    with pytest.raises(InputError, match="training mode"):
        sparsify(net.train(), [X], sparsity=0.5)


def test_a_layer_whose_weight_others_multiply_by_goes_by_magnitude() -> None:
    """The output projection of PyTorch's own attention is never called as a module."""
    model, x = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval(), torch.randn(2, 5, 16)
    plan = sparsify(
        model, [x], sparsity=0.5, method="wanda", allocation="uniform", measure=False, target="reference"
    )
    (layer,) = (layer for layer in plan.layers if layer.name == "self_attn.out_proj")
    assert layer.note == "wanda needs calibration data"
    assert bool((plan.model.get_parameter("self_attn.out_proj.weight") == 0).any())


def test_it_is_a_function_of_the_package() -> None:
    assert callable(sparsecomp.sparsify)
