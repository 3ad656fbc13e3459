"""Parameters looked at in another shape."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, fx

from sparsecomp.constants import TRANSPOSES
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
