"""Constants in a graph: parameters, and parameters looked at in another shape."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, fx

from sparsecomp.channels.labels import arguments
from sparsecomp.channels.wiring import TRANSPOSES
from sparsecomp.program import attribute

aten = torch.ops.aten

VIEWS = (
    *TRANSPOSES,
    aten.unsqueeze.default,
    aten.squeeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.reshape.default,
    aten.view.default,
    aten.expand.default,
)


@dataclass(frozen=True)
class Matrix:
    """A parameter as an operator multiplies by it; transposed: its two dimensions change places."""

    parameter: str
    value: Tensor
    transposed: bool = False

    def dimension(self, axis: int) -> int:
        """Of the parameter, for an axis of what is multiplied."""
        return 1 - axis if self.transposed else axis


def multiplied(graph: fx.GraphModule, argument: object) -> Matrix | None:
    """The parameter behind an argument: read directly, or a matrix turned round; None where it is computed."""
    if not isinstance(argument, fx.Node):
        return None
    if argument.op == "get_attr":
        return Matrix(str(argument.target), attribute(graph, str(argument.target)).detach())
    source = argument.args[0] if argument.args else None
    if argument.target in TRANSPOSES and isinstance(source, fx.Node) and source.op == "get_attr":
        value = attribute(graph, str(source.target)).detach()
        if value.dim() == 2:
            return Matrix(str(source.target), value, _swaps(argument))
    return None


def _swaps(node: fx.Node) -> bool:
    """Whether a transposition of a matrix turns it round."""
    if node.target is aten.t.default:
        return True
    if node.target is aten.permute.default:
        return bool(arguments(node)[1][0] % 2 == 1)
    return bool(arguments(node)[1] % 2 != arguments(node)[2] % 2)


def constant(graph: fx.GraphModule, argument: object) -> Tensor | None:
    """The value of a parameter, or of a view of one; None where anything else takes part."""
    found = _view(graph, argument, lambda value: value)
    return None if found is None else found[1]


def dimension_of(graph: fx.GraphModule, argument: object, axis: int) -> tuple[str, int] | None:
    """The parameter behind a view, and which of its dimensions this axis of the view walks, index by index."""
    found = _view(graph, argument, lambda value: torch.arange(value.numel()).reshape(value.shape))
    if found is None:
        return None
    parameter, places = found
    shape = tuple(attribute(graph, parameter).shape)
    moved = places.movedim(axis, 0).reshape(places.shape[axis], -1).numpy()
    for dimension, coordinates in enumerate(np.unravel_index(moved, shape)):
        steps = np.arange(len(moved))[:, None]
        if shape[dimension] == len(moved) and bool((coordinates == steps).all()):
            return parameter, dimension
    return None


def _view(
    graph: fx.GraphModule, argument: object, start: Callable[[Tensor], Tensor]
) -> tuple[str, Tensor] | None:
    """The parameter's name, and `start` of its value as the views on the way show it."""
    if not isinstance(argument, fx.Node):
        return None
    if argument.op == "get_attr":
        return str(argument.target), start(attribute(graph, str(argument.target)).detach())
    if argument.target not in VIEWS or argument.kwargs or len(argument.all_input_nodes) != 1:
        return None
    found = _view(graph, argument.args[0], start)
    if found is None:
        return None
    view: Callable[..., Tensor] = argument.target
    return found[0], view(found[1], *argument.args[1:])
