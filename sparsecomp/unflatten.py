"""A structure's leaves -> the structure; PyTorch's own makes plain tuples of `torch.Size`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree


def has_sizes(spec: pytree.TreeSpec) -> bool:
    """Whether `spec.unflatten` would give another structure than was flattened."""
    return spec.type is torch.Size or any(map(has_sizes, spec.children()))


def unflatten(spec: pytree.TreeSpec, leaves: Sequence[Any]) -> Any:
    """Inverse of `tree_flatten`."""
    return _with_sizes(spec, iter(leaves)) if has_sizes(spec) else spec.unflatten(leaves)


def _with_sizes(spec: pytree.TreeSpec, leaves: Iterator[Any]) -> Any:
    if spec.is_leaf():
        return next(leaves)
    children = [_with_sizes(child, leaves) for child in spec.children()]
    if spec.type is torch.Size:
        return torch.Size(children)
    return pytree.SUPPORTED_NODES[spec.type].unflatten_fn(children, spec.context)
