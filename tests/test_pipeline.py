"""Passes are applied in order, checked, timed and recorded."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from torch import nn

from sparsecomp.errors import InvalidProgramError
from sparsecomp.pipeline import run
from sparsecomp.program import Program
from tests.passes.programs import analysed, captured


@dataclass(frozen=True)
class Untouched:
    name: ClassVar[str] = "untouched"

    def __call__(self, program: Program) -> Program:
        return program


@dataclass(frozen=True)
class ForgetsLayers:
    """Leaves facts of layers that are none any more."""

    name: ClassVar[str] = "forgets-layers"

    def __call__(self, program: Program) -> Program:
        return replace(program, layers={})


@dataclass(frozen=True)
class DropsRelu:
    name: ClassVar[str] = "drops-relu"

    def __call__(self, program: Program) -> Program:
        graph = program.edit()
        (relu,) = (node for node in graph.graph.nodes if node.target is torch.ops.aten.relu.default)
        relu.replace_all_uses_with(relu.args[0])
        return program.with_graph(graph)


def small() -> Program:
    return analysed(nn.Sequential(nn.Linear(4, 4), nn.ReLU()).eval(), torch.randn(2, 4))


def test_passes_run_in_order_and_are_recorded() -> None:
    program = small()
    started: list[str] = []
    after, steps = run((Untouched(), DropsRelu(), Untouched()), program, started.append)
    assert started == ["untouched", "drops-relu", "untouched"]
    assert [(step.name, step.changed) for step in steps] == [
        ("untouched", "nothing"),
        ("drops-relu", "graph nodes -1"),
        ("untouched", "nothing"),
    ]
    assert all(step.seconds >= 0 for step in steps)
    assert "relu" in str(program)
    assert "relu" not in str(after)


def test_what_a_pass_found_is_counted() -> None:
    model, x = nn.Sequential(nn.Linear(4, 4)).eval(), torch.randn(2, 4)
    found = analysed(model, x)

    @dataclass(frozen=True)
    class Finds:
        name: ClassVar[str] = "finds"

        def __call__(self, program: Program) -> Program:
            return replace(program, layers=found.layers, facts=found.facts)

    _, (step,) = run((Finds(),), replace(found, layers={}, facts={}))
    assert step.changed == "layers +1, facts +1"


def test_a_pass_that_breaks_the_program_is_named() -> None:
    with pytest.raises(
        InvalidProgramError, match="after pass forgets-layers: facts or choices of call sites"
    ):
        run((Untouched(), ForgetsLayers()), small())


def test_no_passes_change_nothing() -> None:
    program = captured(nn.Linear(4, 4).eval(), torch.randn(2, 4))
    assert run((), program) == (program, [])
