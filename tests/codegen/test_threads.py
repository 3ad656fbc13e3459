"""Threads that run a list of calls together."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = """
import torch
from torch import nn
from sparsecomp import compile_sparse

torch.manual_seed(0)
layers = [layer for width in (24, 40, 24, 40) for layer in (nn.LazyConv2d(width, 3, padding=1), nn.LazyBatchNorm2d(), nn.ReLU())]
model = nn.Sequential(*layers)
x = torch.randn(1, 8, 9, 11)
model(x)
model.eval()
for parameter in model.parameters():
    if parameter.dim() > 1:
        parameter.data[torch.rand_like(parameter) < 0.8] = 0
torch.set_num_threads({threads})
compiled = compile_sparse(model, (x,), min_speedup=0.0)
assert len(compiled.report.sparse_layers) == 4
with torch.no_grad():
    expected = model(x)
    for _ in range(200):
        assert torch.allclose(compiled(x), expected, atol=1e-5)
    batch = torch.randn(3, 8, 9, 11)
    assert torch.allclose(compiled(batch), model(batch), atol=1e-5)
"""


MORE = [(2, "2"), (5, "5"), (5, "3")]


@pytest.mark.parametrize(
    ("threads", "limit"), [(2, "1"), *(pytest.param(*pair, marks=pytest.mark.slow) for pair in MORE)]
)
def test_they_wait_for_each_other_however_many_there_are(threads: int, limit: str) -> None:
    """Fewer than were asked for, and more than processors. Each call reads what all have written in the last."""
    environment = os.environ | {"OMP_THREAD_LIMIT": limit}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(threads=threads)],
        check=False,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
