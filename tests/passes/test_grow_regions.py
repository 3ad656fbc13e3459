"""Which operators run as one call: connected, over the same items, and never in a circle."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import networkx as nx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sparsecomp.passes.find_work import FindWork
from sparsecomp.passes.form_attention import FormAttention
from sparsecomp.passes.fuse_epilogues import FuseEpilogues
from sparsecomp.passes.grow_regions import group_members
from sparsecomp.passes.keep_token_shape import KeepTokenShape
from sparsecomp.passes.rewrite_sparse import RewriteSparse
from sparsecomp.pipeline import run
from sparsecomp.program import Program
from tests.passes.programs import Wired, chosen, let, rewritten, same_when_lowered, sparse

Function = Callable[..., Any]


def found(model: nn.Module, *inputs: Tensor) -> Program:
    """All that regions are grown from."""
    passes = (RewriteSparse(), KeepTokenShape(), FuseEpilogues(), FormAttention(), FindWork(inputs))
    return run(passes, chosen(model, *inputs))[0]


def check_no_circle(program: Program, groups: list[list[str]]) -> None:
    """Each region as one node, the rest as it is: there is still an order to run it in."""
    region_of = {site: number for number, group in enumerate(groups) for site in group}
    calls = nx.DiGraph()
    for node in program.graph.graph.nodes:
        own = region_of.get(node.name, node.name)
        sources = (region_of.get(source.name, source.name) for source in node.all_input_nodes)
        calls.add_edges_from((source, own) for source in sources if source != own)
    assert nx.is_directed_acyclic_graph(calls)


def layers() -> dict[str, nn.Module]:
    return {**{name: nn.Linear(16, 16) for name in "abcd"}, "n": nn.LayerNorm(16), "m": nn.LayerNorm(16)}


def softmax(x: Tensor) -> Tensor:
    """An operator that no region holds."""
    return torch.softmax(x, -1)


GROUPS: dict[str, tuple[Function, list[int]]] = {
    "a chain": (lambda s, x: s.b(s.n(s.a(x))), [3]),
    "siblings": (lambda s, x: (s.a(x), s.b(x)), [2]),
    "a norm before siblings": (lambda s, x: let(lambda y: s.a(y) - s.b(y), s.n(x)), [3]),
    "work alone is no region": (lambda s, x: s.a(softmax(s.m(s.n(x)))), [1]),
    "work at both ends": (lambda s, x: s.m(s.a(s.n(x))), [3]),
    "a residual around it": (lambda s, x: let(lambda y: s.n(s.b(s.a(y)) + y), s.c(x)), [4]),
    "what leaves and returns": (lambda s, x: let(lambda y: s.n(s.b(softmax(y)) + y), s.a(x)), [1, 2]),
    "another batch": (lambda s, x: (s.a(x), s.b(x[:1])), [1, 1]),
    "other tokens": (lambda s, x: s.b(s.a(x).transpose(0, 1)), [1, 1]),
    "two softmaxes in a circle": (
        lambda s, x: let(lambda p, q: (s.c(softmax(p)) + q, s.d(softmax(q)) + p), s.a(x), s.b(x)),
        [2, 1, 1],
    ),
    "a circle of two inputs": (
        lambda s, x: let(lambda p, q: s.n(softmax(q) + p) + s.m(softmax(p) + q), s.a(x), s.b(x * 2)),
        [3, 1],
    ),
}


@pytest.mark.parametrize("what", GROUPS)
def test_groups(what: str) -> None:
    function, expected = GROUPS[what]
    model, x = sparse(Wired(function, **layers())), torch.randn(3, 4, 16)
    program = found(model, x)
    groups = group_members(program)
    assert [len(group) for group in groups] == expected
    check_no_circle(program, groups)
    assert same_when_lowered(rewritten(model, x), model, x)


def test_members_are_in_the_order_of_the_graph() -> None:
    model = sparse(Wired(lambda s, x: s.c(s.n(s.a(x)) + s.b(x)), **layers()))
    program = found(model, torch.randn(3, 4, 16))
    order = [node.name for node in program.graph.graph.nodes]
    for group in group_members(program):
        assert group == sorted(group, key=order.index)


def test_a_mask_made_of_a_region_is_made_outside() -> None:
    """The attention that reads it cannot be in that region."""

    def function(s: Any, x: Tensor) -> Tensor:
        y = s.a(x)
        heads = y.view(3, 4, 4, 4).transpose(1, 2)
        scores = s.b(x)[:, None, :, :4]
        mixed = torch.nn.functional.scaled_dot_product_attention(heads, heads, heads, scores)
        z: Tensor = s.c(mixed.transpose(1, 2).reshape(x.shape))
        return z

    model, x = sparse(Wired(function, **layers())), torch.randn(3, 4, 16)
    program = found(model, x)
    assert [len(group) for group in group_members(program)] == [2, 2]
    assert same_when_lowered(rewritten(model, x), model, x)


@st.composite
def recipes(draw: st.DrawFn) -> list[tuple[str, int, int]]:
    """Operators, each with the positions of what it reads among the values before it."""
    kinds = ["a", "b", "c", "n", "m", "relu", "add", "add", "multiply", "softmax", "double"]
    return [
        (draw(st.sampled_from(kinds)), draw(st.integers(0, position)), draw(st.integers(0, position)))
        for position in range(draw(st.integers(4, 14)))
    ]


def follow(recipe: list[tuple[str, int, int]]) -> Function:
    def function(s: Any, x: Tensor) -> Any:
        values = [x]
        for kind, left, right in recipe:
            y, z = values[left], values[right]
            match kind:
                case "relu":
                    values.append(y.relu())
                case "add":
                    values.append(y + z)
                case "multiply":
                    values.append((y * z).tanh())
                case "softmax":
                    values.append(softmax(y))
                case "double":
                    values.append(y * 2)
                case _:
                    values.append(getattr(s, kind)(y))
        return tuple(values[-3:])

    return function


@settings(max_examples=15, deadline=None)
@given(recipes())
def test_random_graphs(recipe: list[tuple[str, int, int]]) -> None:
    model, x = sparse(Wired(follow(recipe), **layers())), torch.randn(3, 4, 16)
    program = found(model, x)
    check_no_circle(program, group_members(program))
    assert same_when_lowered(rewritten(model, x), model, x)
