"""Models that slimming must take care with: shared weights, operations in place, views. Right, or refused with a
reason; and the model that was handed in is left as it was."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparsecomp import compile_sparse
from tests.passes.test_slim import zero

Forward = Callable[[Any, Tensor], Any]


class Net(nn.Module):
    """Filters 1 and 4 of `a` are dead, and nothing reads its channel 2."""

    def __init__(self, forward: Forward, shared: bool = False) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 6, 3, padding=1)
        self.b = nn.Conv2d(6, 6, 3, padding=1)
        self.c = nn.Conv2d(6, 6, 3, padding=1)
        zero(self.a.weight, 1, 4)
        zero(self.a.bias, 1, 4)
        zero(self.b.weight, 2, dim=1)
        if shared:
            self.c.weight = self.b.weight
        self.run = forward

    def forward(self, x: Tensor) -> Any:
        return self.run(self, x)


def add_in_place(net: Any, x: Tensor) -> Any:
    y = net.a(x).relu_()
    y.add_(1.0)
    return net.b(y.mul_(2.0))


def write_to_a_view(net: Any, x: Tensor) -> Any:
    y = net.a(x)
    y[:, 4].fill_(1.0)  # a dead channel is no longer dead
    y[:, :2] += 1.0
    return net.b(y.relu())


def write_through_a_transposition(net: Any, x: Tensor) -> Any:
    y = net.a(x)
    y.transpose(0, 1)[1].add_(0.5)
    return net.b(y)


def write_to_what_is_added(net: Any, x: Tensor) -> Any:
    y = net.a(x)
    z = net.b(y)
    z += y
    return net.c(z)


def permuted_view(net: Any, x: Tensor) -> Any:
    y = net.a(x).permute(0, 2, 3, 1)
    return net.b(y.permute(0, 3, 1, 2).flip(1))


def strided_view(net: Any, x: Tensor) -> Any:
    y = net.a(x)
    return net.b(torch.cat([y[:, ::2], y[:, 1::2]], dim=1))


def view_as_groups(net: Any, x: Tensor) -> Any:
    y = net.a(x)
    n, c, h, w = y.shape
    return net.b(
        y.view(n, 2, c // 2, h, w).sum(1, keepdim=True).expand(n, 2, c // 2, h, w).reshape(n, c, h, w)
    )


def unfolded(net: Any, x: Tensor) -> Any:
    return net.b(net.a(x).unfold(1, 2, 2).flatten(-1).sum(-1).repeat(1, 2, 1, 1))


def one_after_the_other(net: Any, x: Tensor) -> Any:
    return net.c(net.b(net.a(x)).relu())


FORWARDS = (
    *(add_in_place, write_to_a_view, write_through_a_transposition, write_to_what_is_added),
    *(permuted_view, strided_view, view_as_groups, unfolded, one_after_the_other),
)


@pytest.mark.parametrize(
    ("forward", "shared"), [*((forward, False) for forward in FORWARDS), (one_after_the_other, True)]
)
def test_outputs_are_those_of_the_model(forward: Forward, shared: bool) -> None:
    model: Any = Net(forward, shared).eval()
    before = copy.deepcopy(model.state_dict())
    x = torch.randn(2, 3, 6, 6)
    compiled = compile_sparse(model, (x,), target="reference", min_speedup=0.0)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), model(x.clone()), rtol=1e-4, atol=1e-5)
    assert compiled.report.rung == "whole graph"
    slimming = compiled.report.slimming
    assert slimming is not None
    assert not slimming.refused
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
        assert torch.equal(compiled.state_dict()[name], tensor), name


@pytest.mark.parametrize("shared", [False, True])
def test_what_crosses_a_shared_weight_stays_with_its_reason(shared: bool) -> None:
    model = Net(one_after_the_other, shared).eval()
    compiled = compile_sparse(model, (torch.randn(2, 3, 6, 6),), target="reference", min_speedup=0.0)
    assert compiled.report.slimming is not None
    group = next(group for group in compiled.report.slimming.groups if group.name == "a.weight")
    assert group.gone == (0 if shared else 3)
    assert group.kept == ({"several operators share c.weight": 3} if shared else {})


def test_a_model_that_writes_to_its_input_says_so() -> None:
    def write_to_the_input(net: Any, x: Tensor) -> Any:
        x += 1.0
        return net.b(net.a(x))

    model, x = Net(write_to_the_input).eval(), torch.randn(2, 3, 6, 6)
    kept = x.clone()
    compiled = compile_sparse(model, (x,), target="reference", min_speedup=0.0)
    assert torch.equal(x, kept)
    assert any("writes to its input" in note for note in compiled.report.notes), compiled.report.notes
    with torch.no_grad():
        torch.testing.assert_close(compiled(x.clone()), model(x.clone()))
