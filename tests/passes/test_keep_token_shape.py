"""Reshapes move away from between layers, and only those that keep tokens whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparsecomp.passes.keep_token_shape import KeepTokenShape
from sparsecomp.passes.rewrite_sparse import RewriteSparse
from sparsecomp.program import Program
from tests.passes.programs import (
    Wired,
    captured,
    chosen,
    operators,
    rewritten,
    same_outputs,
    sections,
    sparse,
)

LINEAR, RESHAPE = "sparsecomp.rows_linear", "aten.reshape"


def kept(model: nn.Module, *inputs: Tensor) -> Program:
    return KeepTokenShape()(RewriteSparse()(chosen(model, *inputs)))


def two_layers(function: Callable[..., Any]) -> nn.Module:
    return sparse(Wired(function, a=nn.Linear(16, 24), b=nn.Linear(24, 16)))


FLATTENED: dict[str, tuple[Callable[..., Any], list[str]]] = {
    "tokens are flattened and unflattened": (
        lambda s, x: s.a(x.reshape(-1, 16)).reshape(2, 3, 24).sin(),
        [LINEAR, "aten.sin"],
    ),
    "through two layers": (
        lambda s, x: s.b(s.a(x.reshape(-1, 16))).reshape(x.shape).sin(),
        [LINEAR, LINEAR, "aten.sin"],
    ),
    "between two layers": (
        lambda s, x: s.b(s.a(x).reshape(-1, 24)).sin(),
        [LINEAR, LINEAR, RESHAPE, "aten.sin"],
    ),
    "there and back": (lambda s, x: s.b(s.a(x).view(-1, 24).view(3, 2, 24).view(2, 3, 24)), [LINEAR, LINEAR]),
    "to the shape it has": (lambda s, x: s.a(x.reshape(x.shape)).sin(), [LINEAR, "aten.sin"]),
    "what is not contiguous": (
        lambda s, x: s.a(x.transpose(0, 1).reshape(-1, 16)).reshape(3, 2, 24).view(6, 24).sin(),
        ["aten.transpose.int", LINEAR, RESHAPE, "aten.sin"],
    ),
}


@pytest.mark.parametrize("what", FLATTENED)
def test_moves(what: str) -> None:
    function, expected = FLATTENED[what]
    model, x = two_layers(function), torch.randn(2, 3, 16)
    program = kept(model, x)
    found = [name for name in operators(program) if not name.startswith("aten.sym_size")]
    assert found == expected
    assert same_outputs(program, model, x)


def test_layers_learn_the_shape_they_read() -> None:
    model, x = two_layers(lambda s, x: s.b(s.a(x.reshape(-1, 16))).reshape(2, 3, 16)), torch.randn(2, 3, 16)
    program = kept(model, x)
    assert [layer.input_shape for layer in program.layers.values()] == [(2, 3, 16), (2, 3, 24)]


def test_batches_of_any_size() -> None:
    model = two_layers(lambda s, x: s.b(s.a(x.reshape(-1, 16))).reshape(x.shape[0], 3, 16))
    program = kept(model, torch.randn(2, 3, 16))
    assert [layer.input_shape for layer in program.layers.values()] == [(2, 3, 16), (2, 3, 24)]
    for batch in (2, 5):
        assert same_outputs(program, model, torch.randn(batch, 3, 16))


def test_a_residual_joins_the_region_of_flattened_tokens() -> None:
    model = two_layers(lambda s, x: s.b(s.a(x.reshape(-1, 16))).reshape(x.shape) + x)
    x = torch.randn(2, 3, 16)
    assert sections(rewritten(model, x)) == [["linear", "linear"]]


REFUSED: dict[str, Callable[..., Any]] = {
    "channels change": lambda s, x: s.b(s.a(x).reshape(2, 2, 36)[..., :24]),
    "tokens become channels": lambda s, x: s.a(x.reshape(6, 16).t().reshape(6, 16)),
    "one token without more": lambda s, x: s.a(x[0, 0].reshape(1, 16)),
    "what is returned": lambda s, x: (s.a(x), x.reshape(6, 16)),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refuses(what: str) -> None:
    model, x = two_layers(REFUSED[what]), torch.randn(2, 3, 16)
    before = RewriteSparse()(chosen(model, x))
    program = KeepTokenShape()(before)
    assert program is before
    assert same_outputs(program, model, x)


RETURNED: dict[str, Callable[..., Any]] = {
    "itself": lambda s, x: x.transpose(0, 1).reshape(-1, 16).reshape(3, 2, 16),
    "through a view": lambda s, x: x.transpose(0, 1).reshape(-1, 16).reshape(3, 2, 16)[:, 0],
}


@pytest.mark.parametrize("what", RETURNED)
def test_a_result_does_not_become_a_view_of_an_input(what: str) -> None:
    """The first reshape copies: without it a caller who writes to the result would write to the input."""
    model, x = Wired(RETURNED[what]).eval(), torch.randn(2, 3, 16)
    program = KeepTokenShape()(captured(model, x))
    (result,) = program(x)
    assert torch.equal(result, model(x))
    result.zero_()
    assert x.all()


def test_nothing_to_do() -> None:
    program = captured(nn.Linear(4, 4).eval(), torch.randn(2, 4))
    assert KeepTokenShape()(program) is program
