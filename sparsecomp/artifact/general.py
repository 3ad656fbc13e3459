"""The most general graph of a model: one capture in which every size may change that can.

A module compiles a graph for each combination of sizes but the batch. From a file, where the model's own code is
gone, only a graph that was captured with these sizes free can serve other ones.
"""

from __future__ import annotations

import inspect
import logging
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from sparsecomp.artifact.saved_model import SavedModel
from sparsecomp.capture import capture
from sparsecomp.compare import TOLERANCE, relative_error
from sparsecomp.contract import Capture, TensorInput, size_code
from sparsecomp.example import seeded, unchanged
from sparsecomp.trial import on_trial

if TYPE_CHECKING:
    from sparsecomp.kept import Kept

LOG = logging.getLogger(__name__)
SIZES = (2, 3, 4, 8, 16, 32, 64, 128)
"""Tried for sizes that may change, until the contract agrees."""
OTHER_SIZES = (5, 23, 47, 80)
"""Tried for a comparison with the model, until it takes one."""


def general_graph(compiled: Kept) -> Capture | None:
    """The model captured once more, with all sizes free; None where that cannot be had or brings nothing."""
    first = compiled._variants[0].capture
    if isinstance(compiled._skeleton.module, SavedModel):
        return None  # it has what its file had
    try:
        args, kwargs = stand_in_call(first)
        with on_trial(), compiled._skeleton.filled(compiled._weight) as model, unchanged(model):
            found = capture(model, args, kwargs, _all_free(first, args, kwargs))
            if _free(found) <= _free(first) or not _holds(found, model):
                return None
    except Exception as error:  # noqa: BLE001  whatever tracing passes on: the file then covers fewer shapes
        LOG.info("no graph with all sizes free: %s", error)
        return None
    return found


def _holds(found: Capture, model: nn.Module) -> bool:
    """Whether the graph gives the model's results for sizes other than it was captured with."""
    errors = (_error(found, model, size) for size in OTHER_SIZES)
    first = next((error for error in errors if error is not None), None)
    return first is not None and first <= TOLERANCE


def _error(found: Capture, model: nn.Module, size: int) -> float | None:
    """Between graph and model; None where the model does not take such sizes."""
    try:
        args, kwargs = stand_in_call(found, size)
        expected = seeded(lambda: model(*args, **kwargs))
    except Exception:  # noqa: BLE001  whatever the user's code raises
        return None
    inputs = found.flatten(args, kwargs)
    return relative_error(seeded(lambda: found.unflatten(found.graph(*inputs))), expected)


def _free(found: Capture) -> int:
    leaves = [leaf for leaf in found.leaves if isinstance(leaf, TensorInput)]
    return sum(isinstance(size, str) for leaf in leaves for size in leaf.shape)


def _all_free(found: Capture, args: Any, kwargs: Any) -> dict[str, Any]:
    """As torch.export takes it: parameter -> structure of {axis: dimension}."""
    given = found.signature.bind(*args, **kwargs).arguments
    leaves = iter(found.leaves)
    free: dict[str, Any] = {}
    for name, spec in found.arguments.items():
        dims = []
        for _ in range(spec.num_leaves):
            leaf = next(leaves)
            tensor = isinstance(leaf, TensorInput) and len(leaf.shape)
            dims.append(dict.fromkeys(range(len(leaf.shape)), Dim.AUTO) if tensor else None)  # type: ignore[union-attr]
        if name in given:
            free[name] = spec.unflatten(dims)
    return free


def stand_in_call(found: Capture, size: int | None = None) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A call that the graph covers: random numbers, ones where integers or flags are asked for.

    Raises:
        ValueError: none of the sizes tried agrees with the contract.
    """
    for tried in (size,) if size else SIZES:
        leaves = [_leaf(leaf, found, tried) for leaf in found.leaves]
        rest, values = iter(leaves), OrderedDict[str, Any]()
        for name, spec in found.arguments.items():
            values[name] = spec.unflatten([next(rest) for _ in range(spec.num_leaves)])
        bound = inspect.BoundArguments(found.signature, values)
        if found.refuses(bound.args, bound.kwargs) is None:
            return bound.args, bound.kwargs
    raise ValueError("no sizes were found that the graph covers")


def _leaf(leaf: Any, found: Capture, size: int) -> Any:
    if not isinstance(leaf, TensorInput):
        return leaf.value
    sizes = {name: max(low, min(size, high or size)) for name, (low, high) in found.ranges.items()}
    shape = [n if isinstance(n, int) else eval(size_code(n), {}, sizes) for n in leaf.shape]
    if leaf.dtype.is_floating_point or leaf.dtype.is_complex:
        generator = torch.Generator().manual_seed(0)
        return torch.randn(shape, generator=generator).to(leaf.dtype)
    ones: Tensor = torch.ones(shape, dtype=leaf.dtype)
    return ones
