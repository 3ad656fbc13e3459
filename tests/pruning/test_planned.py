"""A plan with kernels, measured on this machine."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import sparsecomp


@pytest.mark.slow
def test_a_speed_is_planned_measured_and_compiled(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(256, 768), nn.ReLU(), nn.Linear(768, 256)).eval()
    x = torch.randn(64, 256)
    plan = sparsecomp.sparsify(
        model,
        [x],
        target_speedup=2.0,
        method="wanda",
        structures=("unstructured", "4x1"),
        levels=5,
        resume=tmp_path,
    )
    totals = plan.totals
    assert totals.measured_seconds is not None
    assert totals.dense_seconds is not None
    assert totals.eager_seconds is not None
    assert totals.predicted_seconds > 0
    assert "dense compiled" in str(plan)
    assert totals.sparsity > 0
    compiled = sparsecomp.compile_sparse(plan.model, (x,))
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), plan.model(x), rtol=1e-4, atol=1e-4)
    with pytest.raises(sparsecomp.InputError, match="out of reach: the most is"):
        sparsecomp.sparsify(
            model,
            [x],
            target_speedup=10_000.0,
            method="wanda",
            structures=("4x1",),
            levels=5,
            resume=tmp_path,
        )
