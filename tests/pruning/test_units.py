"""Whole channels, heads and neurons of coupled groups."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.ssl.nets import ResNet
from sparsecomp.errors import InputError
from sparsecomp.pruning.calibration import collect
from sparsecomp.pruning.hessian import Hessian
from sparsecomp.pruning.units import score_units, zero_units
from tests.pruning.layers import error


def net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 6, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(96, 4),
    ).eval()


def test_obs_scores_are_the_least_error_of_those_who_read() -> None:
    model, x = net(), torch.randn(40, 2, 8, 8)
    statistics = collect(model, [x])
    scored = {found.name: found for found in score_units(model, (x[:2],), statistics)}
    assert list(scored) == ["0.weight", "3.weight"]
    assert {found.method for found in scored.values()} == {"obs"}
    weight = model.get_parameter("3.weight").detach().flatten(1).double()
    moments = statistics["3"].moments
    hessian = Hessian.of(moments)
    assert hessian is not None
    root = torch.linalg.cholesky(hessian.matrix[0]).T
    for unit in range(8):
        kept = [column for column in range(72) if column // 9 != unit]
        full = torch.zeros_like(weight)
        full[:, kept] = torch.linalg.lstsq(root[:, kept], root @ weight.T).solution.T
        whole = float(torch.trace(weight @ moments[0] @ weight.T))
        expected = error(weight, full, hessian.matrix[0]) / whole
        assert scored["0.weight"].scores[unit] == pytest.approx(expected, rel=1e-5)


def test_zeroed_units_are_dead_and_the_others_untouched() -> None:
    model, x = net(), torch.randn(4, 2, 8, 8)
    before = copy.deepcopy(model)
    (first, _) = score_units(model, (x,), method="magnitude")
    units = first.lowest(0.5)
    assert len(units) == 4
    assert max(first.scores[u] for u in units) <= min(s for n, s in enumerate(first.scores) if n not in units)
    zero_units(model, first, units)
    channels = model[:3](x)  # type: ignore[index]
    assert bool((channels[:, list(units)] == 0).all())
    left = [unit for unit in range(8) if unit not in units]
    torch.testing.assert_close(channels[:, left], before[:3](x)[:, left])  # type: ignore[index]
    assert bool((model.get_parameter("3.weight")[:, list(units)] == 0).all())
    torch.testing.assert_close(
        model.get_parameter("3.weight")[:, left], before.get_parameter("3.weight")[:, left]
    )


def test_a_residual_network_and_fisher() -> None:
    model, x, y = ResNet().eval(), torch.randn(4, 1, 8, 8), torch.tensor([1, 2, 3, 4])
    plain = score_units(model, (x,), collect(model, [x]))
    labelled = score_units(model, (x,), collect(model, [(x, y)], loss=F.cross_entropy), "fisher")
    assert [found.method for found in labelled] == ["fisher"] * len(labelled)
    assert len(plain) == len(labelled)
    for found in (*plain, *labelled):
        assert len(found.scores) == len(found.group.units)
        assert min(found.scores) >= 0
        trial = copy.deepcopy(model)
        zero_units(trial, found, found.lowest(0.9))
        assert trial(x).isfinite().all()
        assert len(found.lowest(0.999)) == len(found.scores) - 1


def test_without_statistics_magnitude_and_it_is_said() -> None:
    model, x = net(), torch.randn(4, 2, 8, 8)
    assert {found.method for found in score_units(model, (x,))} == {"magnitude"}
    with pytest.raises(InputError, match="can be removed"):
        score_units(nn.Linear(3, 4), (torch.randn(2, 3),))
