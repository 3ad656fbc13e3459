"""Whole models for a GPU that is not there: its kernels run as loops on the CPU."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from sparsecomp import ArtifactError, InferenceOnlyError, compile_sparse
from sparsecomp.choice import DENSE
from sparsecomp.codegen.cuda import measure
from sparsecomp.compare import relative_error
from sparsecomp.module import SparseModule
from tests.codegen.cuda.null_gpu import NullGpu, null_gpu

FASTER = {DENSE: 1.0, "gathered rows": 0.1}


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[NullGpu]:
    """Kernels win there, and one of each family is tried: loops take their time."""
    monkeypatch.setattr(measure, "TRIED", 1)
    with null_gpu(FASTER) as found:
        yield found


def pruned(model: nn.Module, density: float = 0.2) -> nn.Module:
    for layer in model.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.Conv1d):
            layer.weight.data *= torch.rand_like(layer.weight) < density
    return model.eval()


def perceptron() -> nn.Module:
    return pruned(nn.Sequential(nn.Linear(24, 40), nn.ReLU(), nn.Linear(40, 7)))


def compiled(model: nn.Module, *inputs: Tensor) -> SparseModule:
    return compile_sparse(model, inputs, target="cuda", min_speedup=0.0)


def expected(model: nn.Module, *inputs: Tensor) -> Tensor:
    with torch.no_grad():
        y: Tensor = model(*inputs)
    return y


def test_each_layer_is_a_region_with_its_epilogue_and_gives_the_models_numbers(gpu: NullGpu) -> None:
    model = perceptron()
    module = compiled(model, torch.randn(20, 24))
    assert [layer.chosen.split()[0] for layer in module.report.layers] == ["gathered", "gathered"]
    gpu.launches = 0
    x = torch.randn(33, 24)
    assert relative_error(module(x), expected(model, x)) < 1e-5
    assert gpu.launches == 2
    assert any(getattr(kernel, "epilogue", "") == "bias relu" for kernel in gpu.loaded)


def test_inputs_that_lie_anyhow_give_the_same(gpu: NullGpu) -> None:
    model = perceptron()
    module = compiled(model, torch.randn(20, 24))
    transposed, shifted = torch.randn(24, 18).t(), torch.randn(24 * 17 + 1)[1:].reshape(17, 24)
    for x in (transposed, shifted, torch.randn(2, 24)[:1], torch.empty(0, 24)):
        assert module(x).shape == (len(x), 7)
        assert torch.allclose(module(x), expected(model, x), atol=1e-6)


def test_convolutions_with_batch_norm_and_a_residual_sum_give_the_models_numbers(gpu: NullGpu) -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(6, 4, 1)
            self.norm = nn.BatchNorm2d(6)
            self.norm.running_mean.normal_()  # type: ignore[union-attr]

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(x + self.second(torch.relu(self.norm(self.first(x)))))

    model = pruned(Block(), 0.4)
    module = compiled(model, torch.randn(2, 4, 8, 9))
    assert len([layer for layer in module.report.layers if layer.chosen != "dense"]) == 2
    x = torch.randn(3, 4, 8, 9)
    assert relative_error(module(x), expected(model, x)) < 1e-5


def test_a_convolution_of_one_dimension_in_half_precision(gpu: NullGpu) -> None:
    model = pruned(nn.Sequential(nn.Conv1d(3, 5, 3))).half()
    module = compiled(model, torch.randn(1, 3, 40).half())
    assert module.report.layers[0].chosen.startswith("gathered rows")
    x = torch.randn(2, 3, 40).half()
    assert relative_error(module(x), expected(model, x)) < 1e-2


def test_the_packed_weight_is_all_that_is_held_and_comes_back_bit_for_bit(gpu: NullGpu) -> None:
    model = perceptron()
    module = compiled(model, torch.randn(20, 24))
    for name, value in model.state_dict().items():
        assert torch.equal(module.state_dict()[name], value)


def test_layers_that_gain_nothing_stay_with_pytorch(gpu: NullGpu) -> None:
    gpu.times = {DENSE: 0.05, "gathered rows": 0.1}
    model = pruned(nn.Sequential(nn.Linear(26, 40), nn.ReLU(), nn.Linear(40, 9)))
    module = compile_sparse(model, (torch.randn(20, 26),), target="cuda")
    assert [layer.chosen for layer in module.report.layers] == ["dense", "dense"]
    assert "takes 100.000 ms against 50.000 ms in PyTorch" in str(module.report.layers[0].choice)


def test_the_clock_is_read_when_the_gpu_is_done(gpu: NullGpu) -> None:
    compiled(perceptron(), torch.randn(20, 24))
    assert gpu.finished > 4


def test_a_model_whose_graph_cannot_be_had_runs_layer_by_layer(gpu: NullGpu) -> None:
    class ByValue(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = perceptron()

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.layers(x)
            return y if float(x.sum()) > 0 else -y

    model = ByValue().eval()
    module = compiled(model, torch.randn(20, 24))
    assert module.report.rung == "layers"
    gpu.launches = 0
    x = torch.randn(21, 24)
    assert relative_error(module(x), expected(model, x)) < 1e-5
    assert gpu.launches >= 2


def test_new_values_of_the_same_pattern_are_taken(gpu: NullGpu) -> None:
    model = perceptron()
    module = compiled(model, torch.randn(20, 24))
    for parameter in model.parameters():
        parameter.data *= 3
    module.update_weights(model)
    x = torch.randn(21, 24)
    assert relative_error(module(x), expected(model, x)) < 1e-5


def test_it_is_not_saved_nor_moved_and_says_so(gpu: NullGpu) -> None:
    module = compiled(perceptron(), torch.randn(20, 24))
    with pytest.raises(ArtifactError, match="a module for a GPU has no form in a file yet"):
        module.save("nowhere.sparsecomp")
    with pytest.raises(InferenceOnlyError):
        module.to(torch.float16)
