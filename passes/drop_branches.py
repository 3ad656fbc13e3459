"""Branches that give the same for every input: a sum takes the constant, and their layers fall away."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import fx

from sparsecomp.channels import Channels
from sparsecomp.channels.fixed import Fixed, fixed_values
from sparsecomp.channels.labels import arguments, extents
from sparsecomp.channels.views import constant
from sparsecomp.passes.remove_copies import is_returned
from sparsecomp.slimming import slim_name

aten = torch.ops.aten


def drop_branches(graph: fx.GraphModule, channels: Channels) -> tuple[str, ...]:
    """Edit `graph`: add(x, branch), where the branch is constant, becomes x, or add(x, constant).

    Returns the names of the sums. Layers of the branch are left for dead code elimination. A sum that is
    returned keeps an operator of its own, since a caller may write to what it gets.
    """
    fixed = fixed_values(graph, channels)
    found = []
    for node in list(graph.graph.nodes):
        if node.target is not aten.add.Tensor or node.kwargs.get("alpha", 1) != 1:
            continue
        for position, branch in enumerate(node.args[:2]):
            known = fixed.get(branch) if isinstance(branch, fx.Node) else None
            other = node.args[1 - position]
            if known is None or not known.everywhere or not _is_value(graph, other):
                continue
            if _replaced(graph, node, position, known):
                found.append(node.name)
                break
    return tuple(found)


def _is_value(graph: fx.GraphModule, operand: object) -> bool:
    return isinstance(operand, fx.Node) and constant(graph, operand) is None


def _replaced(graph: fx.GraphModule, node: fx.Node, position: int, known: Fixed) -> bool:
    """Whether something was done: a constant that is no smaller than the branch is not worth its operator."""
    branch, other = arguments(node)[position], arguments(node)[1 - position]
    if not known.value.any() and extents(other) == extents(node) and not is_returned(node):
        if other.meta["val"].dtype != node.meta["val"].dtype:
            return False
        node.replace_all_uses_with(other)
        graph.graph.erase_node(node)
        return True
    if branch.op != "call_function" or extents(other) != extents(node):
        return False
    value = torch.from_numpy(np.ascontiguousarray(known.value)).to(branch.meta["val"].dtype)
    name = slim_name(f"{branch.name}_constant", value)
    if not hasattr(graph, name):
        graph.register_buffer(name, value)
    with graph.graph.inserting_before(node):
        made: Any = graph.graph.get_attr(name)
    made.meta["val"] = branch.meta["val"].new_empty(value.shape)
    node.update_arg(position, made)
    return True
