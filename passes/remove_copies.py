"""Remove copies that change nothing: dropout in evaluation mode leaves one behind, padding by nothing is one."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from sparsecomp.program import Program

aten = torch.ops.aten

KEEPS_FORMAT = (None, torch.preserve_format)
PADS = (aten.pad.default, aten.constant_pad_nd.default)


@dataclass(frozen=True)
class RemoveCopies:
    """y = clone(x); z = f(y)         ->   z = f(x)
    y = pad(x, [0, 0]); z = f(y)   ->   z = f(x)

    Nothing in a functional graph writes to a tensor, so a copy is its original. Copies that change the memory
    format stay, and so do those that are returned, themselves or through views, since a caller may write to
    them.
    """

    name: ClassVar[str] = "remove-copies"

    def __call__(self, program: Program) -> Program:
        graph = program.edit()
        copies = [node for node in graph.graph.nodes if _removable(node)]
        if not copies:
            return program
        for node in copies:
            node.replace_all_uses_with(node.args[0])
            graph.graph.erase_node(node)
        return program.with_graph(graph)


def _may_view(node: fx.Node) -> bool:
    """Whether the node's result may share memory with its first operand, by its schema."""
    if node.target is operator.getitem or node.target in PADS:  # padding by nothing may be removed
        return True
    schema = getattr(node.target, "_schema", None)
    return schema is not None and any(result.alias_info for result in schema.returns)


def _returned(node: fx.Node) -> bool:
    """Whether the node, or something that may be a view of it, is an output."""
    return any(user.op == "output" or (_may_view(user) and _returned(user)) for user in node.users)


def _removable(node: fx.Node) -> bool:
    copies = node.target is aten.clone.default and node.kwargs.get("memory_format") in KEEPS_FORMAT
    pads_nothing = node.target in PADS and not any(node.args[1])  # type: ignore[arg-type]
    return (copies or pads_nothing) and not _returned(node)
