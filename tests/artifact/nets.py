"""Small models of every kind that a file must hold."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.prune import prune
from sparsecomp import SparseModule, compile_sparse

FEATURES = 32


class Tokens(nn.Module):
    """Linear layers, a norm, a buffer that the state dict has and one that it has not, tied biases."""

    scale: Tensor
    shift: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(FEATURES, 64)
        self.outer = nn.Sequential(nn.Linear(64, FEATURES), nn.LayerNorm(FEATURES))
        self.again = nn.Linear(FEATURES, FEATURES)
        self.again.bias = self.outer.get_parameter("0.bias")
        self.unused = nn.Parameter(torch.randn(3))
        self.register_buffer("scale", torch.rand(FEATURES))
        self.register_buffer("shift", torch.rand(FEATURES), persistent=False)
        self.offsets = torch.tensor([1.0, 2.0])  # a plain attribute

    def forward(self, x: Tensor, half: bool = False) -> Tensor:
        y: Tensor = self.outer(F.gelu(self.inner(x))) * self.scale + self.shift + self.offsets.sum()
        z: Tensor = self.again(y) / 2 if half else self.again(y) + x
        return z


class Images(nn.Module):
    """Convolutions, batch norm, a residual; weights in channels-last order."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.first = nn.Conv2d(16, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.second = nn.Conv2d(16, 32, 3, stride=2)
        with torch.no_grad():
            self.norm.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
            self.norm.running_mean.normal_()  # type: ignore[union-attr]

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.stem(x))
        y = F.relu(self.norm(self.first(y)) + y)
        return F.adaptive_avg_pool2d(self.second(y), 1).flatten(1)


class Pair(NamedTuple):
    first: Tensor
    second: Tensor


class Containers(nn.Module):
    """Takes and returns every container."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(FEATURES, FEATURES)

    def forward(self, parts: dict[str, list[Tensor]], *more: Tensor, name: str = "x", **rest: Any) -> Any:
        y = self.layer(parts["a"][0]) + parts["a"][1]
        for tensor in (*more, *rest.values()):
            y = y + tensor
        named = OrderedDict(y=y, name=name)
        return {"named": named, "pair": Pair(y, y + 1), "list": [y, None, 3], 7: (y,), "shape": y.shape}


def pruned(model: nn.Module, sparsity: float = 0.9) -> nn.Module:
    assert prune(model, "unstructured", sparsity)
    return model.eval()


def compiled_of(model: nn.Module, *args: Any, target: str = "reference", **kwargs: Any) -> SparseModule:
    """Compiled on this call, every layer converted; the target "reference" measures nothing."""
    return compile_sparse(model, args, kwargs, target=target, min_speedup=0.0)
