"""Compute, once, the weights that a graph computes from constants."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from torch import fx

from sparsecomp.constants import TRANSPOSES, evaluate, is_constant
from sparsecomp.passes.find_layers import MATCHERS, weight_argument
from sparsecomp.program import Program


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
            if computed is None or computed.op != "call_function" or not is_constant(computed):
                continue
            if computed.target in TRANSPOSES or not any(_parameters(computed)):
                continue  # FindLayers reads through the one; the other is no weight of the model
            _fold(graph, computed)
            folded = True
        return program.with_graph(graph) if folded else program


def _fold(graph: fx.GraphModule, node: fx.Node) -> None:
    value = evaluate(graph, node).detach().contiguous()
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


def _parameters(node: fx.Node) -> Iterator[str]:
    for source in node.all_input_nodes:
        if source.op == "get_attr":
            yield str(source.target)
        else:
            yield from _parameters(source)
