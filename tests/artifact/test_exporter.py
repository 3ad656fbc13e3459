"""What is exported runs from C, with the same numbers."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sparsecomp import ArtifactError, SparseModule
from tests.artifact.nets import FEATURES, Tokens, compiled_of, pruned

EXAMPLE = Path(__file__).parent.parent.parent / "docs" / "export" / "example.c"
BUILD = ["cc", "-O2", "example.c", "model.c", "-L.", "-lmodel", "-Wl,-rpath,$ORIGIN", "-o", "example"]

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(FEATURES, 64), nn.GELU(), nn.Linear(64, 24), nn.LayerNorm(24))


def convolutions() -> nn.Module:
    layers = (nn.Conv2d(4, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 8, 3, stride=2))
    return nn.Sequential(*layers)


def run_in_c(folder: Path, x: Tensor, items: int, shape: tuple[int, ...]) -> Tensor:
    """Through the example of the docs, which knows nothing of Python."""
    done = subprocess.run(
        ["./example", str(items)], input=x.numpy().tobytes(), capture_output=True, cwd=folder, check=True
    )
    return torch.frombuffer(bytearray(done.stdout), dtype=torch.float32).reshape(shape)


def built(compiled: SparseModule, folder: Path) -> None:
    compiled.export(folder)
    shutil.copy(EXAMPLE, folder)
    subprocess.run(BUILD, cwd=folder, check=True)


def test_tokens(tmp_path: Path) -> None:
    compiled = compiled_of(pruned(mlp()), torch.randn(3, 5, FEATURES), target="cpu")
    built(compiled, tmp_path)
    for tokens in (15, 1, 200):
        x = torch.randn(tokens, 1, FEATURES)
        found = run_in_c(tmp_path, x, tokens, (tokens, 1, 24))
        assert torch.allclose(
            found, compiled(x.reshape(1, tokens, FEATURES)).reshape(tokens, 1, 24), atol=1e-6
        )


def test_images_and_damaged_weights(tmp_path: Path) -> None:
    compiled = compiled_of(pruned(convolutions()), x := torch.randn(3, 4, 15, 15), target="cpu")
    built(compiled, tmp_path)
    expected = compiled(x)
    assert torch.equal(run_in_c(tmp_path, x, 3, tuple(expected.shape)), expected)
    weights = (tmp_path / "model.weights").read_bytes()
    flipped = bytearray(weights)
    flipped[len(weights) // 2] ^= 16
    for damaged in (bytes(flipped), weights[:-1], weights + b"x", b"x" + weights[1:], b""):
        (tmp_path / "model.weights").write_bytes(damaged)
        with pytest.raises(subprocess.CalledProcessError):
            run_in_c(tmp_path, x, 3, tuple(expected.shape))


def test_operators_left_to_pytorch_are_named(tmp_path: Path) -> None:
    class Sorted(Tokens):
        def forward(self, x: Tensor, half: bool = False) -> Tensor:
            return super().forward(x, half).sort(-1).values

    compiled = compiled_of(pruned(Sorted()), torch.randn(2, 5, FEATURES), target="cpu")
    with pytest.raises(ArtifactError, match=r"only a model that is one region.*aten\.sort"):
        compiled.export(tmp_path)
    with pytest.raises(ArtifactError, match="'reference' has no native code"):
        compiled_of(pruned(mlp()), torch.randn(3, 5, FEATURES)).export(tmp_path)
