"""How far outputs are from those they should equal."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

TOLERANCE = 1e-4
"""Largest relative error at which compiled outputs are accepted."""
HALF_TOLERANCE = 1e-2
"""The same, where weights are float16 or bfloat16."""


def tolerance(dtypes: Iterable[torch.dtype]) -> float:
    """Of outputs that depend on weights of these dtypes."""
    halves = (torch.float16, torch.bfloat16)
    return HALF_TOLERANCE if any(dtype in halves for dtype in dtypes) else TOLERANCE


def relative_error(actual: Any, expected: Any) -> float:
    """max|y - y0| / max|y0|, the largest over corresponding tensors; inf where they do not correspond.

    Non-finite values must agree exactly; tensors of integers, and numbers and strings that are no tensors, must be equal.
    """
    left, left_structure = pytree.tree_flatten(actual)
    right, right_structure = pytree.tree_flatten(expected)
    if left_structure != right_structure:
        return float("inf")
    return max((_tensor_error(y, y0) for y, y0 in zip(left, right, strict=True)), default=0.0)


def _object_error(y: Any, y0: Any) -> float:
    """Of objects that pytree does not look into, a dataclass or a cache say: of what they hold."""
    if isinstance(y0, (type, Callable)) or not hasattr(y0, "__dict__"):  # type: ignore[arg-type]
        return 0.0
    return relative_error(vars(y), vars(y0)) if type(y) is type(y0) else float("inf")


def _tensor_error(y: Any, y0: Any) -> float:
    if isinstance(y0, bool | int | float | complex | str | bytes):
        return 0.0 if y == y0 or (y != y and y0 != y0) else float("inf")  # noqa: PLR0124  not a number
    if not isinstance(y0, Tensor):
        return _object_error(y, y0)
    if not isinstance(y, Tensor) or y.shape != y0.shape or y.dtype != y0.dtype:
        return float("inf")
    if y0.is_complex():
        y, y0 = torch.view_as_real(y.resolve_conj()), torch.view_as_real(y0.resolve_conj())
    if not y0.is_floating_point() or y0.numel() == 0:
        return 0.0 if torch.equal(y, y0) else float("inf")
    finite = y0.isfinite()
    if not torch.equal(finite, y.isfinite()) or not torch.equal(
        y[~finite].nan_to_num(), y0[~finite].nan_to_num()
    ):
        return float("inf")
    largest = y0[finite].abs().max().item() if finite.any() else 0.0
    difference = (y[finite] - y0[finite]).abs().max().item() if finite.any() else 0.0
    return difference / largest if largest else difference
