"""Operators that only move elements, as functions of arrays over the labelled axes (see `labels.py`).

They serve labels and what is known of each labelled element alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import fx

from sparsecomp.channels.labels import Array, arguments, extents, reshaped

aten = torch.ops.aten

Moved = Array | tuple[Array, ...] | None
"""None: the result has no such array, because labelled axes merge with sizes that are free, say."""


def _reshape(node: fx.Node, array: Array) -> Moved:
    return reshaped(array, extents(arguments(node)[0]), extents(node))


def _expand(node: fx.Node, array: Array) -> Moved:
    return array.reshape([1] * (len(extents(node)) - array.ndim) + list(array.shape))


def _permute(node: fx.Node, array: Array) -> Moved:
    if node.target is aten.permute.default:
        return array.transpose(arguments(node)[1])
    axes = arguments(node)[1:3] if node.target is aten.transpose.int else (0, array.ndim - 1)
    return array.swapaxes(*axes)


def _unsqueeze(node: fx.Node, array: Array) -> Moved:
    return np.expand_dims(array, arguments(node)[1])


def _select(node: fx.Node, array: Array) -> Moved:
    _, axis, index = arguments(node)
    chosen = index if array.shape[axis] > 1 else 0
    return np.take(array, chosen, axis) if isinstance(chosen, int) else None


def _slice(node: fx.Node, array: Array) -> Moved:
    axis, *bounds = arguments(node)[1:] or (0,)
    if array.shape[axis] == 1:
        return array
    fixed = all(bound is None or isinstance(bound, int) for bound in bounds)
    if not fixed or bounds[2:] not in ([], [1]):
        return None
    index = [slice(None)] * array.ndim
    index[axis] = slice(*bounds[:2])
    return array[tuple(index)]


def _split(node: fx.Node, array: Array) -> Moved:
    axis = split_axis(node)
    parts = node.meta["val"]
    if array.shape[axis] == 1:
        return (array,) * len(parts)
    ends = np.cumsum([int(part.shape[axis]) for part in parts])[:-1]
    return tuple(np.split(array, ends, axis))


def _unbind(node: fx.Node, array: Array) -> Moved:
    axis = arguments(node)[1] if len(node.args) > 1 else 0
    count = len(node.meta["val"])
    return tuple(np.take(array, index if array.shape[axis] > 1 else 0, axis) for index in range(count))


def split_axis(node: fx.Node) -> int:
    found = arguments(node)[2] if len(node.args) > 2 else node.kwargs.get("dim", 0)
    assert isinstance(found, int)
    return found


SPLITS = (aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default)
RESHAPES = (aten.reshape.default, aten.view.default, aten.flatten.using_ints, aten._unsafe_view.default)
SQUEEZES = (aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims)

MOVES: Mapping[object, Callable[[fx.Node, Array], Moved]] = {
    **dict.fromkeys((*RESHAPES, *SQUEEZES), _reshape),
    **dict.fromkeys((aten.permute.default, aten.transpose.int, aten.t.default), _permute),
    **dict.fromkeys(SPLITS, _split),
    aten.expand.default: _expand,
    aten.unbind.int: _unbind,
    aten.unsqueeze.default: _unsqueeze,
    aten.select.int: _select,
    aten.slice.Tensor: _slice,
}
