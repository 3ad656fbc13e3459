"""Labels: for every element of a value along the axes that may shrink, the unit it belongs to.

The labels of a value are an integer array of the value's rank. Along an axis from which nothing is removed
(batch, tokens, pixels) it has extent 1. A convolution's output, N x C x H x W, has labels 1 x C x 1 x 1; after
flattening, 1 x (C*H*W), each label H*W times; heads, N x T x H x D, have 1 x 1 x H x D. So slicing, permuting
and reshaping labels are what these operators do to values.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import sympy
import torch
from torch import fx

Labels = np.ndarray[Any, np.dtype[np.int64]]
Array = np.ndarray[Any, Any]


def arguments(node: fx.Node) -> Any:
    """Of the operator; what types they have is for its schema to say."""
    return node.args


def extents(node: fx.Node) -> tuple[int | sympy.Expr, ...]:
    """Shape of a node's value; sizes that may change are symbols. Compared as expressions: nothing is guarded."""
    return tuple(
        size.node.expr if isinstance(size, torch.SymInt) else int(size) for size in node.meta["val"].shape
    )


def along(labels: Labels, axis: int) -> Labels | None:
    """The labels of one axis, if they change along no other."""
    axis %= labels.ndim
    return labels.reshape(-1) if labels.size == labels.shape[axis] else None


def placed(labels: Labels, axis: int, rank: int) -> Labels:
    """One-dimensional labels as those of an axis of a value."""
    shape = [1] * rank
    shape[axis] = -1
    return labels.reshape(shape)


def expanded(labels: Array, sizes: Sequence[object], axes: Sequence[int]) -> Array | None:
    """The labels with these axes written out; None where such an axis has no fixed size."""
    shape = list(labels.shape)
    for axis in axes:
        size = sizes[axis]
        if not isinstance(size, int):
            return None
        shape[axis] = size
    return np.broadcast_to(labels, shape)


def reshaped(labels: Array, old: Sequence[Any], new: Sequence[Any]) -> Array | None:
    """Labels after a reshape from extents `old` to `new`; None where a labelled axis merges with a free size."""
    runs = _matching_runs(old, new)
    if runs is None:
        return None
    shape: list[int] = []
    written: list[int] = []
    for before, after in runs:
        if all(labels.shape[axis] == 1 for axis in before):
            shape += [1] * len(after)
        else:
            written += before
            shape += [new[axis] for axis in after]
    if not all(isinstance(size, int) for size in shape):
        return None
    full = expanded(labels, old, written)
    return None if full is None else full.reshape(shape)


def _matching_runs(old: Sequence[Any], new: Sequence[Any]) -> list[tuple[list[int], list[int]]] | None:
    """The shortest runs of axes, from left to right, of equal product before and after."""
    runs: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(old) or j < len(new):
        found = _next_run(old[i:], new[j:])
        if found is None:
            return None
        taken, made = found
        runs.append((list(range(i, i + taken)), list(range(j, j + made))))
        i, j = i + taken, j + made
    return runs


def _next_run(old: Sequence[Any], new: Sequence[Any]) -> tuple[int, int] | None:
    for total in range(1, len(old) + len(new) + 1):
        for taken in range(min(total, len(old)), -1, -1):
            made = total - taken
            if made <= len(new) and _product(old[:taken]) == _product(new[:made]):
                return taken, made
    return None


def _product(sizes: Sequence[Any]) -> Any:
    return sympy.expand(sympy.prod(sympy.sympify(size) for size in sizes))
