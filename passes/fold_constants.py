"""Compute, once, the weights that a graph computes from constants."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from sparsecomp.passes.find_layers import MATCHERS, TRANSPOSES, weight_argument
from sparsecomp.program import Program, attribute


@dataclass(frozen=True)
class FoldConstants:
    """conv2d(x, mul(weight_orig, weight_mask))   ->   conv2d(x, weight)

    Pruning hooks (`torch.nn.utils.prune`), weight norm and other parametrizations recompute the weight at every
    call; its zeros are seen only in the result.
    """

    name: ClassVar[str] = "fold-constants"

    def __call__(self, program: Program) -> Program:
        graph = program.edit()
        folded = False
        for node in list(graph.graph.nodes):
            computed = weight_argument(node) if node.target in MATCHERS else None
            if computed is None or computed.op != "call_function" or not _is_constant(computed):
                continue
            if computed.target in TRANSPOSES:
                continue  # FindLayers reads through it
            _fold(graph, computed)
            folded = True
        return program.with_graph(graph) if folded else program


def _is_constant(node: fx.Node) -> bool:
    """Whether the value depends on parameters and buffers alone, and is the same every time."""
    if node.op == "get_attr":
        return True
    target = node.target
    deterministic = target is operator.getitem or (
        isinstance(target, torch._ops.OpOverload)
        and torch.Tag.nondeterministic_seeded not in target.tags
        and not target._schema.is_mutable
    )
    return (
        node.op == "call_function"
        and deterministic
        and bool(node.all_input_nodes)
        and all(_is_constant(source) for source in node.all_input_nodes)
    )


def _fold(graph: fx.GraphModule, node: fx.Node) -> None:
    value = _evaluate(graph, node).detach().contiguous()
    owner = next(_parameters(node)).rpartition(".")[0]
    module = graph.get_submodule(owner)
    name = "weight"
    while hasattr(module, name):
        name += "_folded"
    module.register_buffer(name, value)
    with graph.graph.inserting_before(node):
        constant = graph.graph.get_attr(f"{owner}.{name}" if owner else name)
    constant.meta = dict(node.meta)
    node.replace_all_uses_with(constant)


def _evaluate(graph: fx.GraphModule, node: fx.Node) -> Any:
    def value(source: fx.Node) -> Any:
        return attribute(graph, str(source.target)) if source.op == "get_attr" else _evaluate(graph, source)

    args = fx.map_arg(node.args, value)
    kwargs = fx.map_arg(node.kwargs, value)
    with torch.no_grad():
        return node.target(*args, **kwargs)  # type: ignore[operator]


def _parameters(node: fx.Node) -> Iterator[str]:
    for source in node.all_input_nodes:
        if source.op == "get_attr":
            yield str(source.target)
        else:
            yield from _parameters(source)
