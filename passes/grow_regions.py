"""Grow regions: which primitives, and which work between them, run as one call."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import fx

from sparsecomp.epilogue import STEPS, split_steps
from sparsecomp.primitives import EPILOGUE, OPERANDS, PRIMITIVES, ROWS_LINEAR
from sparsecomp.program import FoundWork, Program
from sparsecomp.work import CachedAttention, Norm


@dataclass(frozen=True)
class _Groups:
    """Regions while they grow."""

    program: Program
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


def group_members(program: Program, apart: bool = False) -> list[list[str]]:
    """Call sites of each region, in the graph's order. A region has at least one primitive, and if they are to be
    `apart` no more than one."""
    if apart:
        return [[node.name] for node in program.graph.graph.nodes if node.target in PRIMITIVES]
    groups = _Groups(program)
    for node in program.graph.graph.nodes:
        if node.target in PRIMITIVES or node.name in program.works:
            groups.add(node, _group_for(node, groups))
    return [
        [node.name for node in members]
        for members in groups.members
        if any(node.target in PRIMITIVES for node in members)
    ]


def _group_for(node: fx.Node, groups: _Groups) -> int | None:
    """The region that the node joins: that of a producer, else of a sibling."""
    sources = activations(node, groups.program.works)
    producers = [groups.of[source] for source in sources if source in groups.of]
    siblings = [groups.of[user] for source in sources for user in source.users if user in groups.of]
    for group in dict.fromkeys([*producers, *siblings]):
        if _fits(node, groups.members[group], groups.program) and not _leaves_and_returns(
            node, group, groups
        ):
            return group
    return None


def _leaves_and_returns(node: fx.Node, group: int, groups: _Groups) -> bool:
    """Whether a path from the region to the node passes through something outside: a call could not
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


def _fits(node: fx.Node, members: list[fx.Node], program: Program) -> bool:
    """Whether they work on the same items, which lie in the same way."""
    orders = {_tokens_first(member, program) for member in (node, *members)}
    items = _items(node, program)
    return not {True, False} <= orders and all(_items(member, program) == items for member in members)


def _items(node: fx.Node, program: Program) -> Hashable:
    """What the region's items are: tokens of these leading extents, or images of this batch."""
    shape = node.meta["val"].shape
    work = program.works.get(node.name)
    tokens = work.op.channel == -1 if work else node.target is ROWS_LINEAR
    leading = tuple(str(extent) for extent in (shape[:-1] if tokens else shape[:1]))
    return tokens, leading


def _tokens_first(node: fx.Node, program: Program) -> bool | None:
    """Whether the node's kernel is one for few tokens; None where there are both."""
    choice, work = program.choices.get(node.name), program.works.get(node.name)
    if work is not None:
        return None if isinstance(work.op.work, Norm) else isinstance(work.op.work, CachedAttention)
    return choice is not None and choice.how is not None and choice.how.tokens_first


def activations(node: fx.Node, works: Mapping[str, FoundWork]) -> list[fx.Node]:
    """Tensors of the items that the node reads: its inputs and the tensors of its epilogue."""
    work = works.get(node.name)
    if work is None:
        return [node.args[0], *operands(node, "tensor")]  # type: ignore[list-item]
    names = (*work.op.activations, *work.op.tensors)
    return [source for name in names for source in node.all_input_nodes if source.name == name]


def operands(node: fx.Node, kind: str) -> list[fx.Node]:
    """Of a primitive's epilogue: those of its steps that take a "vector", or a "tensor"."""
    steps = [step for step in split_steps(str(node.args[EPILOGUE])) if STEPS[step] != "none"]
    found: list[Any] = list(node.args[OPERANDS])  # type: ignore[arg-type]
    return [operand for step, operand in zip(steps, found, strict=True) if STEPS[step] == kind]
