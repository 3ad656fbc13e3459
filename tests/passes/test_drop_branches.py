"""A branch that gives the same for every input falls away with its layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tests.passes.programs import Wired, operators
from tests.passes.test_slim import slimmed, zero


def block(m: Any, x: Tensor) -> Tensor:
    """A block of a residual network whose second convolution may be zero."""
    x = m.stem(x).relu()
    y = m.norm2(m.conv2(m.norm1(m.conv1(x)).relu()))
    return m.head((x + y).relu())  # type: ignore[no-any-return]


def network(function: Any = block) -> Any:
    return Wired(
        function,
        stem=nn.Conv2d(3, 4, 3),
        conv1=nn.Conv2d(4, 6, 3, padding=1),
        norm1=nn.BatchNorm2d(6),
        conv2=nn.Conv2d(6, 4, 3, padding=1, bias=False),
        norm2=nn.BatchNorm2d(4),
        head=nn.Conv2d(4, 2, 1),
    )


def test_a_zero_branch_disappears() -> None:
    model = network()
    model.conv2.weight.data.zero_()
    program, slimming = slimmed(model, torch.randn(2, 3, 8, 8))
    assert operators(program) == ["aten.conv2d", "aten.relu", "aten.relu", "aten.conv2d"]
    assert len(slimming.branches) == 1
    stem, head = 4 * 27 + 4, 2 * 4 + 2
    assert slimming.parameters[1] == stem + head
    assert slimming.flops[1] == 2 * 2 * 36 * (4 * 27 + 2 * 4)


def test_a_constant_branch_becomes_its_constant() -> None:
    model = network()
    model.conv2.weight.data.zero_()
    model.norm2.bias.data.normal_()
    program, _ = slimmed(model, torch.randn(2, 3, 8, 8))
    assert operators(program) == ["aten.conv2d", "aten.relu", "aten.add.Tensor", "aten.relu", "aten.conv2d"]


def test_a_branch_with_padding_and_a_constant_stays() -> None:
    """conv1 gives its bias everywhere; conv2 sees zeros beside it, so what it gives differs at the border."""
    model = network()
    model.conv1.weight.data.zero_()
    model.norm1.bias.data.fill_(1.0)
    program, slimming = slimmed(model, torch.randn(2, 3, 8, 8))
    assert slimming.branches == ()
    assert operators(program).count("aten.conv2d") == 4


def test_a_returned_sum_is_a_tensor_of_its_own() -> None:
    model = network(lambda m, x: x[:, :2] + m.head(m.stem(x)).mean((2, 3), keepdim=True))
    zero(model.head.weight, 0, 1)
    zero(model.head.bias, 0, 1)
    program, slimming = slimmed(model, x := torch.randn(2, 3, 8, 8))
    assert len(slimming.branches) == 1
    (result,) = program(x.double())
    result.zero_()
    assert x.all()


def test_a_transformer_layer_whose_attention_is_zero() -> None:
    model: Any = Wired(
        lambda m, x: m.norm(x + m.b(m.a(x).relu())),
        a=nn.Linear(6, 9),
        b=nn.Linear(9, 6),
        norm=nn.LayerNorm(6),
    )
    zero(model.b.weight, *range(6))
    program, _ = slimmed(model, torch.randn(2, 5, 6))
    assert operators(program) == ["aten.add.Tensor", "aten.layer_norm"]
