"""Which primitives share a region, and that each region is one call."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sparsecomp import codegen
from sparsecomp.primitives import REGIONS
from sparsecomp.program import Program
from sparsecomp.target import Target
from tests.passes.programs import rewritten, same_outputs, sparse

KEPT: list[object] = []
"""Regions are found by name only as long as somebody holds them."""


def runs(program: Program, model: nn.Module, *inputs: Tensor) -> bool:
    streams = codegen.stream_store()
    for name, body in program.regions.items():
        runner = codegen.lower(body, Target("reference"), streams, lambda: 1)
        KEPT.append(runner)
        REGIONS[name] = runner
    return same_outputs(program, model, *inputs)


class Siblings(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.out = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.out(torch.softmax(self.q(x) - self.k(x) * 2, -1))
        return y


def test_siblings_share_a_region_and_softmax_ends_it() -> None:
    model, x = sparse(Siblings()), torch.randn(3, 16)
    program = rewritten(model, x)
    assert [len(body.section.ops) for body in program.regions.values()] == [2, 1]
    assert runs(program, model, x)


class Returning(nn.Module):
    """A path leaves the first layer, through a softmax, and comes back into the last."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        z: Tensor = self.last(y) + torch.softmax(y, -1)
        return z


def test_a_region_does_not_wait_for_what_it_feeds() -> None:
    model, x = sparse(Returning()), torch.randn(3, 16)
    program = rewritten(model, x)
    assert [len(body.section.ops) for body in program.regions.values()] == [1, 1]
    assert runs(program, model, x)


def test_a_chain_is_one_region() -> None:
    model = sparse(nn.Sequential(nn.Conv2d(8, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3, stride=2), nn.ReLU()))
    x = torch.randn(2, 8, 12, 12)
    program = rewritten(model, x)
    (body,) = program.regions.values()
    assert [str(op).split("|")[1].strip() for op in body.section.ops] == ["bias relu", "bias relu"]
    assert runs(program, model, x)


def test_nothing_to_do() -> None:
    program = rewritten(nn.Linear(4, 4).eval(), torch.randn(2, 4))
    assert not program.regions
