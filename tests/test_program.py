"""A program prints, runs, and is edited on a copy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn

from sparsecomp.errors import InvalidProgramError
from sparsecomp.program import Program, attribute
from tests.passes.programs import analysed, captured, chosen


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.head = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.cat([self.conv(x), self.conv(x).relu()], dim=2)
        y: torch.Tensor = self.head(x.mean((2, 3)))
        return y


@pytest.fixture
def net() -> nn.Module:
    return Net().eval()


def test_prints_one_line_an_operator(net: nn.Module, golden: Callable[[str], None]) -> None:
    golden(str(captured(net, torch.randn(2, 3, 5, 5))))


def test_runs_as_the_model(net: nn.Module) -> None:
    x = torch.randn(2, 3, 5, 5)
    (y,) = captured(net, x)(x)
    assert not y.requires_grad
    assert torch.allclose(y, net(x))


def test_the_weight_of_a_layer_is_a_matrix(net: nn.Module) -> None:
    program = analysed(net, torch.randn(2, 3, 5, 5))
    shapes = {layer.name: tuple(program.weight(site).shape) for site, layer in program.layers.items()}
    assert shapes == {"conv": (4, 27), "head": (2, 4)}


def test_editing_leaves_the_program_as_it_was(net: nn.Module) -> None:
    program = captured(net, torch.randn(2, 3, 5, 5))
    before, edited = str(program), program.edit()
    (cat,) = (node for node in edited.graph.nodes if node.target is torch.ops.aten.cat.default)
    cat.replace_all_uses_with(cat.args[0][0])
    after = program.with_graph(edited)
    assert str(program) == before
    assert str(after).count("aten.conv2d") == 1  # the other was read by nothing any more
    assert attribute(after.graph, "conv.weight") is attribute(program.graph, "conv.weight")
    after.check()


def test_a_malformed_graph_is_found(net: nn.Module) -> None:
    program = captured(net, torch.randn(2, 3, 5, 5))
    graph = program.edit()
    first, second = (node for node in graph.graph.nodes if node.target is torch.ops.aten.conv2d.default)
    first.append(next(node for node in graph.graph.nodes if node.op == "placeholder"))
    assert second is not first
    with pytest.raises(InvalidProgramError, match="the graph is malformed"):
        replace(program, graph=graph).check()


def test_choices_of_strangers_are_found(net: nn.Module) -> None:
    program = chosen(net, torch.randn(2, 3, 5, 5))
    choice = next(iter(program.choices.values()))
    with pytest.raises(InvalidProgramError, match=r"no layers: \['nowhere'\]"):
        replace(program, choices={"nowhere": choice}).check()


def test_attribute_reads_through_modules() -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(2, 2)))
    assert attribute(model, "0.0.bias") is model[0][0].bias  # type: ignore[index]
    with pytest.raises(AttributeError):
        attribute(model, "0.1.bias")


def test_an_empty_program_is_sound() -> None:
    program = captured(nn.Identity(), torch.randn(2, 3))
    assert isinstance(program, Program)
    program.check()
