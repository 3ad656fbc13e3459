"""Small networks and the steps that tests of training share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsecomp import InputError, SparsecompError

OPTIMIZERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "momentum": lambda net: torch.optim.SGD(net.parameters(), 0.05, momentum=0.9, weight_decay=1e-2),
    "nesterov": lambda net: torch.optim.SGD(net.parameters(), 0.05, momentum=0.9, nesterov=True),
    "adam": lambda net: torch.optim.Adam(net.parameters(), 0.01, amsgrad=True),
    "adamw": lambda net: torch.optim.AdamW(net.parameters(), 0.01, weight_decay=0.1),
    "rmsprop": lambda net: torch.optim.RMSprop(net.parameters(), 0.01, momentum=0.5),
}


class SmallNet(nn.Module):
    """1 x 8 x 8 images -> 10 scores."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, 3)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(8, 12, 3, groups=2)
        self.fc1 = nn.Linear(12 * 16, 20)
        self.fc2 = nn.Linear(20, 10)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.conv2(self.relu1(self.conv1(x))).relu().flatten(1)
        y: Tensor = self.fc2(self.fc1(hidden).relu())
        return y


class Shared(nn.Module):
    """Two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(self.first(x))
        return y


def advance(net: nn.Module, optimizer: torch.optim.Optimizer, batch: int = 4) -> None:
    """One step on random data; the gradients stay."""
    optimizer.zero_grad()
    x, y = torch.randn(batch, 1, 8, 8), torch.randint(0, 10, (batch,))
    torch.autograd.backward(F.cross_entropy(net(x), y))
    optimizer.step()


def message(run: Callable[[], object]) -> str:
    with pytest.raises(InputError) as caught:
        run()
    assert isinstance(caught.value, SparsecompError)
    return str(caught.value)


def says(text: str, *parts: str) -> None:
    missing = [part for part in parts if part not in text]
    assert not missing, f"{missing} not in: {text}"


def values(net: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in net.state_dict().items()}


def same(first: dict[str, Any], second: dict[str, Any]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def minimiser(penalty: Callable[[Tensor], Tensor], w: Tensor, rate: float = 1.0) -> Tensor:
    """Of 1/2 ||x - w||^2 + rate penalty(x), by gradient descent on a smoothed norm."""
    x = w.clone().requires_grad_()
    solver = torch.optim.LBFGS(
        [x], max_iter=2000, tolerance_grad=1e-11, tolerance_change=1e-15, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        solver.zero_grad()
        value = (x - w).square().sum() / 2 + rate * penalty(x)
        torch.autograd.backward(value)
        return value

    for _ in range(5):
        before = x.detach().clone()
        solver.step(closure)  # type: ignore[no-untyped-call]
        if torch.allclose(x.detach(), before, rtol=0.0, atol=1e-9):
            break
    return x.detach()
