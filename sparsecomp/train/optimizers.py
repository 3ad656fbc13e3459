"""What is asked of a PyTorch optimiser: how far it steps, and what it remembers of a weight."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from sparsecomp.errors import InputError


def check_optimizer(optimizer: object) -> Optimizer:
    if not isinstance(optimizer, Optimizer):
        raise InputError(
            f"step takes the torch optimiser that was just stepped, not {type(optimizer).__name__}."
        )
    return optimizer


def step_sizes(optimizer: Optimizer) -> dict[Tensor, float]:
    """How far one unit of a constant gradient moves each parameter per step in the long run.

    That is the learning rate; with heavy-ball momentum m and dampening d, lr (1 - d) / (1 - m), because the
    velocity of a constant gradient g tends to (1 - d) / (1 - m) g. A proximal step of this size has the
    minimisers of the whole objective as fixed points; with lr alone, momentum 0.9 would weaken the penalty ten
    times. Adam and its kin average their gradients (dampened), so the learning rate stands.

    Raises:
        InputError: a group has no finite learning rate.
    """
    sizes: dict[Tensor, float] = {}
    for group in optimizer.param_groups:
        size = _step_size(group)
        sizes.update(dict.fromkeys(group["params"], size))
    return sizes


def _step_size(group: dict[str, Any]) -> float:
    rate, momentum, dampening = (float(group.get(key, 0) or 0) for key in ("lr", "momentum", "dampening"))
    if "lr" not in group or not 0 <= rate < float("inf") or not 0 <= momentum < 1:
        raise InputError(
            f"the optimiser has a learning rate of {group.get('lr')!r} and a momentum of {momentum}: a proximal "
            "step needs a finite learning rate and a momentum below 1."
        )
    return rate * (1 - dampening) / (1 - momentum) if momentum else rate


def forget(optimizer: Optimizer, parameter: Tensor, mask: Tensor) -> None:
    """Clear what the optimiser remembers (momentum, squares) of the entries where the mask is False."""
    for value in optimizer.state.get(parameter, {}).values():
        if isinstance(value, Tensor) and value.shape == parameter.shape:
            value.masked_fill_(~mask.to(value.device), 0)


@torch.no_grad()
def zero(parameter: Tensor, mask: Tensor, optimizer: Optimizer | None = None) -> None:
    """Set the entries where the mask is False to exact zeros, in the optimiser's memory as well."""
    parameter.masked_fill_(~mask, 0)
    if optimizer is not None:
        forget(optimizer, parameter, mask)
