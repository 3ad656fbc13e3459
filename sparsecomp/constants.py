"""Constants in a graph: parameters and buffers, read directly or turned round, and what is computed from them."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from sparsecomp.program import attribute

aten = torch.ops.aten

TRANSPOSES = (aten.t.default, aten.transpose.int, aten.permute.default)


@dataclass(frozen=True)
class Weight:
    """A constant as an operator reads it; transposed: the two dimensions of a matrix change places."""

    name: str
    transposed: bool
    value: Tensor
    """As the model stores it."""

    def dimension(self, axis: int) -> int:
        """Of the parameter, for an axis of what is multiplied."""
        return 1 - axis if self.transposed else axis


def constant_weight(graph: fx.GraphModule, argument: object) -> Weight | None:
    """The parameter behind an argument: read directly, or a matrix turned round; None where it is computed."""
    if not isinstance(argument, fx.Node):
        return None
    if argument.op == "get_attr":
        return Weight(str(argument.target), False, attribute(graph, str(argument.target)).detach())
    source = argument.args[0] if argument.args else None
    if argument.target not in TRANSPOSES or not isinstance(source, fx.Node) or source.op != "get_attr":
        return None
    value = attribute(graph, str(source.target)).detach()
    return Weight(str(source.target), _swaps(argument), value) if value.dim() == 2 else None


def _swaps(node: fx.Node) -> bool:
    """Whether a transposition of a matrix turns it round."""
    if node.target is aten.t.default:
        return True
    if node.target is aten.permute.default:
        dims: Any = node.args[1]
        return bool(dims[0] % 2 == 1)
    first, second = node.args[1:3]
    return bool(first % 2 != second % 2)  # type: ignore[operator]


def readers(constant: fx.Node) -> Iterator[fx.Node]:
    """Operators that read a parameter, directly or turned round."""
    for user in constant.users:
        if user.target in TRANSPOSES:
            yield from readers(user)
        else:
            yield user


def constant_tensor(graph: fx.GraphModule, argument: object) -> Tensor | None:
    """The parameter or buffer that an argument is."""
    if isinstance(argument, fx.Node) and argument.op == "get_attr":
        return attribute(graph, str(argument.target)).detach()
    return None


def is_constant(node: fx.Node, attributes: bool = True) -> bool:
    """Whether the value is computed from numbers, parameters and buffers alone, the same every time.

    attributes: without them a value counts that is computed from numbers only, which no update of the weights can
        change.
    """
    if node.op == "get_attr":
        return attributes
    target = node.target
    deterministic = target is operator.getitem or (
        isinstance(target, torch._ops.OpOverload)
        and torch.Tag.nondeterministic_seeded not in target.tags
        and not target._schema.is_mutable
    )
    return (
        node.op == "call_function"
        and deterministic
        and all(is_constant(source, attributes) for source in node.all_input_nodes)
    )


def evaluate(graph: fx.GraphModule, node: fx.Node) -> Any:
    """The value of a node that is constant."""
    if node.op == "get_attr":
        return attribute(graph, str(node.target))
    args = fx.map_arg(node.args, lambda source: evaluate(graph, source))
    kwargs = fx.map_arg(node.kwargs, lambda source: evaluate(graph, source))
    with torch.no_grad():
        return node.target(*args, **kwargs)  # type: ignore[operator]
