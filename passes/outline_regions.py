"""Make each region one operator."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import networkx as nx
from torch import Tensor, fx

from sparsecomp.layer import Layer
from sparsecomp.passes.grow_regions import activations, group_members, operands
from sparsecomp.pattern import PackedRows
from sparsecomp.primitives import EPILOGUE, PACKED, REGION, VALUES
from sparsecomp.program import Body, FoundWork, Program, attribute, operator_name
from sparsecomp.section import Section, SectionOp


@dataclass(frozen=True)
class OutlineRegions:
    """Each region, a connected set of primitives and of work between them over the same items, becomes one call.

        a = rows_linear(x, ...); b = rows_linear(a, ...)   ->   region([x], "r0")[0]

    Operators join a region when one reads the other, or both read the same tensor, unless a path through an
    operator outside leads from the region back into it.
    """

    name: ClassVar[str] = "outline-regions"
    prefix: str = "region"
    """Names of regions are unique in a process: this, and a number."""
    apart: bool = False
    """Whether each primitive is a region of its own."""

    def __call__(self, program: Program) -> Program:
        groups = group_members(program, self.apart)
        if not groups:
            return program
        graph = program.edit()
        nodes = {node.name: node for node in graph.graph.nodes}
        regions = {f"{self.prefix}.{i}": [nodes[site] for site in group] for i, group in enumerate(groups)}
        # All are described before any is replaced: sections name the nodes that are there now.
        bodies = {name: _body(graph, program, members) for name, members in regions.items()}
        for name, members in regions.items():
            _call(graph.graph, members, bodies[name], name, nodes)
        _sort(graph.graph)
        return replace(program.with_graph(graph), regions=bodies)


def _body(graph: fx.GraphModule, program: Program, members: list[fx.Node]) -> Body:
    inside, works = set(members), program.works
    read = {node: _read(node, works) for node in members}
    inputs = dict.fromkeys(source for node in members for source in read[node] if source not in inside)
    outputs = [node for node in members if any(user not in inside for user in node.users)]
    ended_by = {operator_name(user) for node in outputs for user in node.users if user not in inside}
    ops = tuple(
        works[node.name].op if node.name in works else _section_op(node, program.layers[node.name])
        for node in members
    )
    layers = [node for node in members if node.name not in works]
    section = Section(
        tuple(node.name for node in inputs),
        ops,
        tuple(node.name for node in outputs),
        program.choices[layers[0].name].how.tokens_first,  # type: ignore[union-attr]
    )
    return Body(
        section,
        {node.name: _packed(graph, node, program.layers[node.name], program) for node in layers},
        {node.name: _vectors(graph, node, works) for node in members},
        {node.name: program.choices[node.name].how for node in layers},  # type: ignore[misc]
        tuple(sorted(ended_by)),
    )


def _read(node: fx.Node, works: Mapping[str, FoundWork]) -> list[fx.Node]:
    """Whatever the node gets from others: activations, and what is read as PyTorch has it."""
    plain = works[node.name].op.plain if node.name in works else ()
    return activations(node, works) + [source for source in node.all_input_nodes if source.name in plain]


def _section_op(node: fx.Node, layer: Layer) -> SectionOp:
    tensors = tuple(operand.name for operand in operands(node, "tensor"))
    source: Any = node.args[0]
    return SectionOp(node.name, layer, source.name, node.name, str(node.args[EPILOGUE]), tensors)


def _vectors(graph: fx.GraphModule, node: fx.Node, works: Mapping[str, FoundWork]) -> tuple[Tensor, ...]:
    if node.name in works:
        return tuple(vector.clone() for vector in works[node.name].vectors)
    return tuple(
        attribute(graph, str(operand.target)).detach().clone() for operand in operands(node, "vector")
    )


def _packed(graph: fx.GraphModule, node: fx.Node, layer: Layer, program: Program) -> PackedRows:
    tensors = [attribute(graph, str(argument.target)) for argument in node.args[VALUES : VALUES + PACKED]]  # type: ignore[union-attr]
    how = program.choices[node.name].how
    assert how is not None
    return PackedRows(how.pattern, (layer.rows, layer.columns), *tensors)


def _call(graph: fx.Graph, members: list[fx.Node], body: Body, name: str, nodes: dict[str, fx.Node]) -> None:
    """Replace the members by one call; `_sort` then moves its readers behind it.

    `nodes`: by the names that sections know, what stands for them now; outputs of the region are put there.
    """
    inputs = [nodes[source] for source in body.section.inputs]
    with graph.inserting_before(members[-1]):
        call = graph.call_function(REGION, (inputs, name))
        call.meta["val"] = [nodes[site].meta["val"] for site in body.section.outputs]
        for position, site in enumerate(body.section.outputs):
            result = graph.call_function(operator.getitem, (call, position))
            result.meta["val"] = nodes[site].meta["val"]
            for user in list(nodes[site].users):
                if user not in members and user is not result:
                    user.replace_input_with(nodes[site], result)
            nodes[site] = result
    for node in reversed(members):
        graph.erase_node(node)


def _sort(graph: fx.Graph) -> None:
    """Order nodes so that each comes after its inputs, otherwise as they were."""
    order = {node: position for position, node in enumerate(graph.nodes)}
    dependence = nx.DiGraph()
    dependence.add_nodes_from(order)
    for node in order:
        dependence.add_edges_from((source, node) for source in node.all_input_nodes)
    previous: fx.Node | None = None
    for node in nx.lexicographical_topological_sort(dependence, key=order.__getitem__):
        if previous is not None:
            previous.append(node)
        previous = node
