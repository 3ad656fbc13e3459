"""Calls that ask for more than numbers: transformed or traced by PyTorch, or made with tensors that hold no data.

Kernels compute numbers and nothing else. Nor can PyTorch run such calls on the model as it was: that would unpack its
weights inside of the transformation.
"""

from __future__ import annotations

from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd import forward_ad
from torch.utils import _pytree as pytree

from sparsecomp.errors import InferenceOnlyError


def refuse_transforms() -> None:
    """
    Raises:
        InferenceOnlyError: operators do more now than compute.
    """
    if torch._C._functorch.peek_interpreter_stack() is not None:
        _refuse("transformed by torch.func or torch.vmap")
    if forward_ad._current_level >= 0:
        _refuse("differentiated in forward mode")
    if torch._C._get_tracing_state() is not None:
        _refuse("traced by torch.jit")


def refuse_fakes(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """
    Raises:
        InferenceOnlyError: a tensor of the call has a shape but no data.
    """
    if any(isinstance(leaf, FakeTensor) for leaf in pytree.tree_leaves((args, kwargs))):
        _refuse("traced, or called with tensors that have a shape but no data (FakeTensor)")


def _refuse(what: str) -> None:
    raise InferenceOnlyError(
        f"a compiled module computes numbers and cannot be {what}: do that with the model it was made from."
    )
