"""Grow regions over the primitives and make each one operator."""

from __future__ import annotations

import operator
from collections.abc import Hashable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import networkx as nx
from torch import fx

from sparsecomp.epilogue import STEPS, split_steps
from sparsecomp.layer import Layer
from sparsecomp.pattern import PackedRows
from sparsecomp.primitives import EPILOGUE, OPERANDS, PRIMITIVES, REGION, ROWS_LINEAR, VALUES
from sparsecomp.program import Body, Program, attribute, operator_name
from sparsecomp.region import Section, SectionOp


@dataclass(frozen=True)
class OutlineRegions:
    """Each region, a connected set of primitives over the same items, becomes one call.

        a = rows_linear(x, ...); b = rows_linear(a, ...)   ->   region([x], "r0")[0]

    Primitives join a region when one reads the other, or both read the same tensor, unless a path through an
    operator outside leads from the region back into it.
    """

    name: ClassVar[str] = "outline-regions"
    prefix: str = "region"
    """Names of regions are unique in a process: this, and a number."""

    def __call__(self, program: Program) -> Program:
        groups = group_primitives(program.graph.graph)
        if not groups:
            return program
        graph = program.edit()
        nodes = {node.name: node for node in graph.graph.nodes}
        bodies = {}
        for number, group in enumerate(groups):
            name = f"{self.prefix}.{number}"
            members = [nodes[site] for site in group]
            bodies[name] = _body(graph, program, members)
            _call(graph.graph, members, bodies[name], name)
        _sort(graph.graph)
        return replace(program.with_graph(graph), regions=bodies)


# Growing ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Groups:
    """Regions while they grow."""

    members: list[list[fx.Node]] = field(default_factory=list)
    of: dict[fx.Node, int] = field(default_factory=dict)

    def add(self, node: fx.Node, group: int | None) -> None:
        """To a region, or as the first of a new one."""
        if group is None:
            group = len(self.members)
            self.members.append([])
        self.members[group].append(node)
        self.of[node] = group

    def whole(self, node: fx.Node) -> list[fx.Node]:
        """What runs as one call with the node."""
        return self.members[self.of[node]] if node in self.of else [node]


def group_primitives(graph: fx.Graph) -> list[list[str]]:
    """Call sites of each region, in the graph's order."""
    groups = _Groups()
    for node in graph.nodes:
        if node.target in PRIMITIVES:
            groups.add(node, _group_for(node, groups))
    return [[node.name for node in members] for members in groups.members]


def _group_for(node: fx.Node, groups: _Groups) -> int | None:
    """The region that the primitive joins: that of a producer, else of a sibling."""
    sources = _activations(node)
    producers = [groups.of[source] for source in sources if source in groups.of]
    siblings = [groups.of[user] for source in sources for user in source.users if user in groups.of]
    for group in dict.fromkeys([*producers, *siblings]):
        alike = _items(groups.members[group][0]) == _items(node)
        if alike and not _leaves_and_returns(node, group, groups):
            return group
    return None


def _leaves_and_returns(node: fx.Node, group: int, groups: _Groups) -> bool:
    """Whether a path from the region to the primitive passes through something outside: a call could not
    both feed that and wait for it. Whatever else is in a region runs with the rest of it."""
    seen = {*groups.members[group], node}
    waiting = [source for source in node.all_input_nodes if source not in seen]
    while waiting:
        outside = waiting.pop()
        if outside in seen:
            continue
        for member in groups.whole(outside):
            seen.add(member)
            for source in member.all_input_nodes:
                if groups.of.get(source) == group:
                    return True
                waiting.append(source)
    return False


def _items(node: fx.Node) -> Hashable:
    """What the region's items are: tokens of these leading extents, or images of this batch."""
    shape = node.meta["val"].shape
    linear = node.target is ROWS_LINEAR
    return linear, tuple(str(extent) for extent in (shape[:-1] if linear else shape[:1]))


def _activations(node: fx.Node) -> list[fx.Node]:
    """Tensors of the items that the primitive reads: its input and the tensors of its epilogue."""
    return [node.args[0], *_operands(node, "tensor")]  # type: ignore[list-item]


def _operands(node: fx.Node, kind: str) -> list[fx.Node]:
    steps = [step for step in split_steps(str(node.args[EPILOGUE])) if STEPS[step] != "none"]
    operands: list[Any] = list(node.args[OPERANDS])  # type: ignore[arg-type]
    return [operand for step, operand in zip(steps, operands, strict=True) if STEPS[step] == kind]


# Outlining ----------------------------------------------------------------------------------------------


def _body(graph: fx.GraphModule, program: Program, members: list[fx.Node]) -> Body:
    inside = set(members)
    inputs = dict.fromkeys(
        source for node in members for source in _activations(node) if source not in inside
    )
    outputs = [node for node in members if any(user not in inside for user in node.users)]
    ended_by = {operator_name(user) for node in outputs for user in node.users if user not in inside}
    ops = tuple(
        SectionOp(
            node.name,
            program.layers[node.name],
            _activations(node)[0].name,
            node.name,
            str(node.args[EPILOGUE]),
            tuple(operand.name for operand in _operands(node, "tensor")),
        )
        for node in members
    )
    section = Section(tuple(node.name for node in inputs), ops, tuple(node.name for node in outputs))
    return Body(
        section,
        {node.name: _packed(graph, node, program.layers[node.name], program) for node in members},
        {
            node.name: tuple(
                attribute(graph, str(operand.target)).detach().clone()
                for operand in _operands(node, "vector")
            )
            for node in members
        },
        {node.name: program.choices[node.name].how for node in members},  # type: ignore[misc]
        tuple(sorted(ended_by)),
    )


def _packed(graph: fx.GraphModule, node: fx.Node, layer: Layer, program: Program) -> PackedRows:
    tensors = [attribute(graph, str(argument.target)) for argument in node.args[VALUES : VALUES + 3]]  # type: ignore[union-attr]
    how = program.choices[node.name].how
    assert how is not None
    return PackedRows(how.pattern, (layer.rows, layer.columns), *tensors)


def _call(graph: fx.Graph, members: list[fx.Node], body: Body, name: str) -> None:
    """Replace the members by one call, placed after all its inputs; `_sort` then moves its readers behind."""
    nodes = {node.name: node for node in graph.nodes}
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
