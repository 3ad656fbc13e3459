"""Remove operators that change nothing: copies, dropout in evaluation mode, conversions to what is there."""

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
DROPOUTS = (aten.dropout.default, aten.dropout_.default)
CONVERSIONS = (aten.to.dtype, aten.to.device, aten.to.dtype_layout)


@dataclass(frozen=True)
class RemoveCopies:
    """y = clone(x); z = f(y)                 ->   z = f(x)
    y = dropout(x, 0.1, False); z = f(y)   ->   z = f(x)
    y = to(x, float32); z = f(y)           ->   z = f(x)
    y = pad(x, [0, 0]); z = f(y)           ->   z = f(x)

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
    if node.target is operator.getitem or node.target in (*DROPOUTS, *PADS):
        return True  # padding by nothing may be removed
    schema = getattr(node.target, "_schema", None)
    return schema is not None and any(result.alias_info for result in schema.returns)


def is_returned(node: fx.Node) -> bool:
    """Whether the node, or something that may be a view of it, is an output."""
    return any(user.op == "output" or (_may_view(user) and is_returned(user)) for user in node.users)


def _removable(node: fx.Node) -> bool:
    copies = node.target is aten.clone.default and node.kwargs.get("memory_format") in KEEPS_FORMAT
    drops_nothing = node.target in DROPOUTS and node.args[2] is False
    pads_nothing = node.target in PADS and not any(node.args[1])  # type: ignore[arg-type]
    return (copies or drops_nothing or pads_nothing or _converts_nothing(node)) and not is_returned(node)


def _converts_nothing(node: fx.Node) -> bool:
    """Whether `to` names the type and the place its tensor has already, and asks for no other memory format."""
    if node.target not in CONVERSIONS or node.kwargs.get("memory_format") not in KEEPS_FORMAT:
        return False
    before, after = node.args[0].meta["val"], node.meta["val"]  # type: ignore[union-attr]
    same = before.dtype == after.dtype and before.device == after.device and before.layout == after.layout
    return same and not any(isinstance(argument, torch.memory_format) for argument in node.args)
