"""Second moments of the inputs of layers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sparsecomp.sparsify.calibration import collect

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
