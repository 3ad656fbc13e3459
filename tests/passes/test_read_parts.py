"""What lies in a concatenation is read where it came from; what is returned, or is only a part of a part, stays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from sparsecomp.passes.read_parts import ReadParts
from tests.passes.programs import Wired, captured, operators, same_outputs

Function = Callable[..., Any]
EMPTY = torch.empty(0)
CAT, SLICE = "aten.cat", "aten.slice.Tensor"


def parts_read(function: Function, *inputs: Tensor, **parts: Any) -> list[str]:
    """Operators that are left; the outputs are the model's for this batch and another."""
    model = Wired(function, **parts).eval()
    program = ReadParts()(captured(model, *inputs))
    program.check()
    assert same_outputs(program, model, *inputs)
    assert same_outputs(program, model, *(torch.cat([x, x]) for x in inputs))
    return operators(program)


def x(tokens: int = 5) -> Tensor:
    return torch.randn(2, 3, tokens, 4)


def test_a_concatenation_with_nothing() -> None:
    left = parts_read(lambda m, a: torch.cat([m.empty, a], -2) + 1, x(), empty=EMPTY)
    assert CAT not in left


@pytest.mark.parametrize("dim", [2, -2])
def test_what_was_added_last(dim: int) -> None:
    left = parts_read(lambda m, a, b: torch.cat([a, b.relu()], dim)[:, :, -1:] + 1, x(), x(1))
    assert not {CAT, SLICE} & set(left)


def test_each_part() -> None:
    def function(m: Any, a: Tensor, b: Tensor) -> Tensor:
        both = torch.cat([a, b, a], 2)
        return both[:, :, :5] * both[:, :, 8:] + both[:, :, 5:8].sum()

    assert not {CAT, SLICE} & set(parts_read(function, x(), x(3)))


def test_all_of_it() -> None:
    assert SLICE not in parts_read(lambda m, a: a.relu()[:, :, 0:] + a.relu()[:, :, -9:], x())


STAY: dict[str, tuple[Function, tuple[Tensor, ...]]] = {
    "more than a part": (lambda m, a, b: torch.cat([a, b], 2)[:, :, 4:] + 1, (x(), x(1))),
    "less than a part": (lambda m, a, b: torch.cat([a, b], 2)[:, :, :4] + 1, (x(), x(1))),
    "every second": (lambda m, a, b: torch.cat([a, b], 2)[:, :, 0:5:2] + 1, (x(), x(1))),
    "another dimension": (lambda m, a, b: torch.cat([a, b], 2)[..., :1] + 1, (x(), x(1))),
    "another type": (lambda m, a, b: torch.cat([a, b.double()], 2)[:, :, :5] + 1, (x(), x(1))),
    "empty in one dimension alone": (lambda m, a: torch.cat([a[:, :, :0], a], 2) + 1, (x(),)),
    "returned": (lambda m, a, b: torch.cat([a, b], 2)[:, :, -1:], (x(), x(1))),
    "a view of it is returned": (
        lambda m, a, b: torch.cat([a, b], 2)[:, :, -1:].transpose(1, 2),
        (x(), x(1)),
    ),
}


@pytest.mark.parametrize("name", STAY)
def test_stays(name: str) -> None:
    function, inputs = STAY[name]
    assert CAT in parts_read(function, *inputs)


def test_leaves_others_alone() -> None:
    program = captured(Wired(lambda m, a: a.relu()), x())
    assert ReadParts()(program) is program
