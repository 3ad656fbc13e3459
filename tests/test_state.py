"""What a model keeps between calls is not frozen into a graph, and compiling leaves no trace in it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparsecomp
from sparsecomp.compare import relative_error
from sparsecomp.state import changed, state_of


class Stateful(nn.Module):
    """A linear layer, and something that is done with it."""

    def __init__(self, step: Callable[[Any, Tensor], Tensor], **attributes: Any) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 64)
        self.register_buffer("hidden", torch.zeros(8, 64))
        self.register_buffer("count", torch.zeros(()))
        self.step = step
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.step(self, self.linear(x))
        return result


def recurrent(model: Any, y: Tensor) -> Tensor:
    model.hidden = torch.tanh(y + model.hidden)
    hidden: Tensor = model.hidden
    return hidden


def counting(model: Any, y: Tensor) -> Tensor:
    model.count = model.count + 1
    result: Tensor = y * model.count
    return result


def remembering(model: Any, y: Tensor) -> Tensor:
    result: Tensor = y if model.before is None else y + model.before
    model.before = y
    return result


def first_kept(model: Any, y: Tensor) -> Tensor:
    if model.before is None:
        model.before = y
        return y
    result: Tensor = y - model.before
    return result


def in_a_tuple(model: Any, y: Tensor) -> Tensor:
    model.steps = (model.steps[0] + 1,)
    result: Tensor = y * model.steps[0]
    return result


class Memory:
    """An object that a model holds."""

    hidden: Any = 0.0


def in_an_object(model: Any, y: Tensor) -> Tensor:
    model.memory.hidden = torch.tanh(y + model.memory.hidden)
    hidden: Tensor = model.memory.hidden
    return hidden


@pytest.mark.parametrize(
    ("step", "attributes"),
    [
        (recurrent, {}),
        (counting, {}),
        (remembering, {"before": None}),
        (first_kept, {"before": None}),
        (in_a_tuple, {"steps": (0,)}),
        (in_an_object, {"memory": Memory()}),
    ],
)
def test_what_a_call_leaves_to_the_next_reaches_it(step: Any, attributes: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = Stateful(step, **attributes).eval()
    other = copy.deepcopy(model)
    compiled = sparsecomp.compile_sparse(model, (torch.randn(8, 64),), min_speedup=0)
    assert compiled.report.rung != "whole graph"
    assert any("every call changes" in note for note in compiled.report.notes)
    with torch.no_grad():
        for _ in range(3):
            x = torch.randn(8, 64)
            assert relative_error(compiled(x), other(x)) < 1e-4


def look(model: Any, y: Tensor) -> Tensor:
    model.seen = y
    return torch.relu(y)


def look_in_a_dictionary(model: Any, y: Tensor) -> Tensor:
    model.seen["y"] = y
    return torch.relu(y)


def look_in_a_list(model: Any, y: Tensor) -> Tensor:
    model.seen.append(y)
    return torch.relu(y)


@pytest.mark.parametrize(("step", "seen"), [(look, None), (look_in_a_dictionary, {}), (look_in_a_list, [])])
def test_what_is_only_kept_to_be_looked_at_is_said_not_to_be(step: Any, seen: Any) -> None:
    torch.manual_seed(0)
    model = Stateful(step, seen=seen).eval()
    x = torch.randn(8, 64)
    compiled = sparsecomp.compile_sparse(model, (x,), min_speedup=0)
    assert model.seen in (None, {}, [])
    assert compiled.report.rung == "whole graph"
    assert "calls do not update seen: no output depends on it" in compiled.report.notes
    assert relative_error(compiled(x), torch.relu(model.linear(x))) < 1e-5


def test_a_cache_that_the_first_call_fills_is_no_state() -> None:
    def cached(model: Any, y: Tensor) -> Tensor:
        if model.table is None:
            model.table = torch.arange(64.0)
        result: Tensor = y + model.table
        return result

    model = Stateful(cached, table=None).eval()
    x = torch.randn(8, 64)
    compiled = sparsecomp.compile_sparse(model, (x,), min_speedup=0)
    assert compiled.report.rung == "whole graph"
    assert not compiled.report.notes
    assert relative_error(compiled(x), model(x)) < 1e-5


def test_state_is_who_holds_what() -> None:
    model: Any = Stateful(recurrent, number=1, held=[torch.ones(2)], of={"a": [1]})
    before = state_of(model)
    assert not changed(before, state_of(model))
    model.hidden.add_(1)  # a graph does as much, or cannot be had
    assert not changed(before, state_of(model))
    model.held[0] = torch.ones(2)
    model.of["a"].append(2)
    model.number += 1
    model.hidden = model.hidden + 1
    assert changed(before, state_of(model)) == {"held", "of", "number", "hidden"}
