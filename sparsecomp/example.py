"""Calls made on trial: the example a model is compiled on, and calls a further graph is compiled for."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from sparsecomp.errors import InputError

Call = tuple[tuple[Any, ...], dict[str, Any]]


def copied_call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
    """The call on copies of its arguments: a model may change them, caches say, and a trial must not."""
    detached = pytree.tree_map_only(Tensor, Tensor.detach, (args, kwargs))
    try:
        copied: Call = copy.deepcopy(detached)
    except Exception:  # noqa: BLE001  an argument that cannot be copied is left to the model
        return args, kwargs
    return copied


def run_example(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    try:
        return model(*args, **kwargs)
    except Exception as error:
        shapes = pytree.tree_map_only(Tensor, lambda t: f"{list(t.shape)} {t.dtype}", (list(args), kwargs))
        raise InputError(
            f"{type(model).__name__} cannot be run on these inputs: {type(error).__name__}: {error}\n"
            f"It was called with args={shapes[0]}, kwargs={shapes[1]}. Pass example_inputs=(x, ...) as the "
            "positional arguments of the model's forward, example_kwargs={...} as its keyword arguments."
        ) from error
