"""The mean of images against PyTorch in float64."""

from __future__ import annotations

import pytest
import torch

from sparsecomp.codegen.cpu.mean import MeanKernel, mean
from tests.codegen.kernels import MACHINES, Output, compiled, in_parts, surrounded


@pytest.mark.parametrize("machine", [0, 1, 2])
@pytest.mark.parametrize(
    ("height", "width"), [(1, 1), (7, 7), (3, 16), (1, 33), (9, 140)], ids=lambda size: str(size)
)
def test_mean(height: int, width: int, machine: int) -> None:
    channels, row = 6, width + 2
    source_plane, target_plane = height * row + 3, 20
    planes = torch.full((channels, source_plane), torch.nan)
    x = torch.randn(channels, height, width) + 1
    planes[:, : height * row].view(channels, height, row)[:, :, :width] = x
    y = Output(channels, target_plane)
    spec = MeanKernel(channels, source_plane, height, width, row, target_plane)
    for parts in (1, 4, 9):
        y.tensor.fill_(torch.nan)
        in_parts(compiled(mean, spec, MACHINES[machine]), [surrounded(planes), y.tensor], parts)
        y.check()
        torch.testing.assert_close(y.tensor[:, 0].double(), x.double().mean((1, 2)), rtol=1e-6, atol=1e-6)
        assert bool(y.tensor[:, 1:].isnan().all())
