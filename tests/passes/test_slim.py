"""What is dead goes, exactly; what cannot go says why."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from sparsecomp.passes.slim import Slim
from sparsecomp.program import Program
from sparsecomp.slimming import Slimming
from tests.passes.programs import captured


def slimmed(model: nn.Module, *inputs: Tensor, skip: tuple[str, ...] = ()) -> tuple[Program, Slimming]:
    """The program after the pass, whose outputs are the model's in float64."""
    model, inputs = model.double().eval(), tuple(x.double() if x.is_floating_point() else x for x in inputs)
    program = Slim(inputs, skip)(captured(model, *inputs))
    assert program.slimming is not None
    assert program.slimming.refused == ""
    with torch.no_grad():
        expected = model(*inputs)
    for found, wanted in zip(
        program(*inputs), [expected] if isinstance(expected, Tensor) else expected, strict=True
    ):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
    return program, program.slimming


def gone(slimming: Slimming) -> dict[str, int]:
    return {group.name: group.gone for group in slimming.groups if group.gone}


def kept(slimming: Slimming) -> dict[str, int]:
    return {reason: count for group in slimming.groups for reason, count in group.kept.items()}


def zero(parameter: Tensor | None, *rows: int, dim: int = 0) -> None:
    assert parameter is not None
    with torch.no_grad():
        parameter.index_fill_(dim, torch.tensor(rows, dtype=torch.long), 0.0)


def lenet(filters: int = 20, second: int = 50) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, filters, 5),
        nn.MaxPool2d(2),
        nn.Conv2d(filters, second, 5),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(second * 16, 500),
        nn.ReLU(),
        nn.Linear(500, 10),
    )


def test_changes(golden: Callable[[str], None]) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten(), nn.Linear(64, 5)
    )
    zero(model[0].weight, 1, 5)
    zero(model[3].weight, 2, dim=1)
    program, slimming = slimmed(model, torch.randn(2, 3, 8, 8))
    assert gone(slimming) == {"0.weight": 3}
    golden(f"{captured(model, torch.randn(2, 3, 8, 8).double())}\n\n{program}")


@pytest.mark.parametrize(
    ("first", "second", "ratios"),
    [(5, 19, (25.0, 7.6)), (3, 12, (15.0, 3.6)), (20, 50, (100.0, 100.0))],
)
def test_lenet_of_table_1(first: int, second: int, ratios: tuple[float, float]) -> None:
    """SSL, table 1: filters that stay in conv1 and conv2, FLOPs of the two as percentages."""
    model = lenet()
    zero(model[0].weight, *range(first, 20))
    zero(model[0].bias, *range(first, 20))
    zero(model[2].weight, *range(second, 50))
    program, slimming = slimmed(model, torch.randn(1, 1, 28, 28))
    assert gone(slimming) == {k: v for k, v in {"0.weight": 20 - first, "2.weight": 50 - second}.items() if v}
    shapes = [tuple(p.shape) for n, p in program.graph.named_buffers() if "weight" in n and p.dim() == 4]
    shapes = shapes or [(20, 1, 5, 5), (50, 20, 5, 5)]
    assert sorted(shapes) == sorted([(first, 1, 5, 5), (second, first, 5, 5)])
    conv1, conv2 = 20 * 25, 50 * 20 * 25
    assert (100 * first * 25 / conv1, 100 * second * first * 25 / conv2) == ratios
    dense = {"conv1": 24 * 24 * conv1, "conv2": 8 * 8 * conv2, "fc1": 800 * 500, "fc2": 5000}
    now = dense["conv1"] * ratios[0] / 100 + dense["conv2"] * ratios[1] / 100 + second * 16 * 500 + 5000
    assert slimming.flops == (2 * sum(dense.values()), 2 * round(now))
