"""Second moments of the inputs of layers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sparsecomp.errors import InputError
from sparsecomp.pruning.calibration import collect

CONVOLUTIONS = [
    nn.Conv2d(4, 6, 3, padding=1),
    nn.Conv2d(4, 6, (3, 2), stride=2, dilation=2, padding=(2, 1), groups=2, bias=False),
    nn.Conv2d(4, 4, 3, padding="same", groups=4, padding_mode="circular"),
    nn.Conv1d(4, 6, 5, stride=2, padding=3),
    nn.Conv3d(4, 2, (1, 2, 3), padding=1),
]


def same_energy(layer: nn.Module, x: Tensor) -> None:
    """X W^T reaches the output: so tr(W H W^T) is the mean square of what the layer adds to its bias."""
    moments = collect(layer, [x])[""]
    weight = layer.get_parameter("weight").detach().double()
    layer = layer.double()
    if getattr(layer, "bias", None) is not None:
        nn.init.zeros_(layer.get_parameter("bias"))
    y = layer(x.double()).detach()
    groups = len(moments.moments)
    rows = weight.reshape(groups, -1, moments.moments.shape[1])
    energies = ((rows @ moments.moments) * rows).sum(dim=2).flatten()
    dims = [0, *range(2, y.dim())]
    torch.testing.assert_close(energies, y.square().mean(dim=dims), rtol=1e-5, atol=1e-7)
    assert moments.count == y.numel() // y.shape[1]


@pytest.mark.parametrize("layer", CONVOLUTIONS, ids=str)
def test_moments_are_those_of_the_patches(layer: nn.Module) -> None:
    size = {nn.Conv1d: (9,), nn.Conv2d: (8, 7), nn.Conv3d: (3, 4, 5)}[type(layer)]  # type: ignore[index]
    same_energy(layer, torch.randn(3, 4, *size))


def test_moments_of_several_batches_are_their_mean() -> None:
    model = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2))
    x = torch.randn(3, 7, 5)
    found = collect(model, [x[:1], (x[1:],)])
    rows = x.reshape(-1, 5).double()
    torch.testing.assert_close(found["0"].moments[0], rows.T @ rows / 21, rtol=1e-5, atol=1e-7)
    assert list(found) == ["0", "2"]
    assert found["0"].count == 21
    torch.testing.assert_close(found["0"].norms[0], rows.square().mean(dim=0).sqrt())


def test_large_inputs_are_sampled_and_counted() -> None:
    layer = nn.Conv2d(1, 2, 3, padding=1)
    x = torch.randn(4, 1, 20, 20) * torch.arange(1.0, 5.0)[:, None, None, None]
    whole, part = collect(layer, [x])[""], collect(layer, [x], rows_per_batch=800)[""]
    assert (whole.count, part.count) == (1600, 800)
    torch.testing.assert_close(part.moments, whole.moments, rtol=0.3, atol=1.0)
    assert torch.equal(part.moments, collect(layer, [x], rows_per_batch=800)[""].moments)
    assert not torch.equal(part.moments, collect(layer, [x], rows_per_batch=800, seed=1)[""].moments)


def test_a_shared_weight_sees_the_inputs_of_all_its_layers() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
            self.second.weight = self.first.weight

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.second(2 * x) + self.first(x)
            return y

    x = torch.randn(9, 4)
    found = collect(Twice(), [x])
    assert list(found) == ["first"]
    rows = torch.cat([x, 2 * x]).double()
    torch.testing.assert_close(found["first"].moments[0], rows.T @ rows / 18, rtol=1e-5, atol=1e-6)


def test_the_model_is_left_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2)).train()
    model[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    collect(model, [torch.randn(8, 5)])
    assert [module.training for module in model] == [True, False, True, True]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_bad_input() -> None:
    model = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 2))
    with pytest.raises(InputError, match="No calibration batches"):
        collect(model, [])
    with pytest.raises(InputError, match=r"batch 2 is empty.*\(0, 5\)"):
        collect(model, [torch.randn(2, 5), torch.randn(0, 5)])
    with pytest.raises(InputError, match="batch 1 has NaN"):
        collect(model, [torch.full((2, 5), torch.nan)])
    with pytest.raises(InputError, match="gives '0' inputs that are NaN"):
        collect(model, [torch.full((2, 5), torch.inf)])
    with pytest.raises(InputError, match=r"cannot be run on calibration batch 1.*\[2, 6\]"):
        collect(model, [torch.randn(2, 6)])
    with pytest.raises(InputError, match="is on meta, the model on cpu"):
        collect(model, [torch.randn(2, 5, device="meta")])
    with pytest.raises(InputError, match="a tensor, a tuple"):
        collect(model, [3])
    with pytest.raises(InputError, match="no module of that name"):
        collect(model, [torch.randn(2, 5)], ["2"])
    with pytest.raises(InputError, match=r"'0'.*transposed"):
        collect(nn.Sequential(nn.ConvTranspose2d(1, 1, 2)), [torch.randn(1, 1, 3, 3)], ["0"])
