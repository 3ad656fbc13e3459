"""Masks that survive training: zeros that no optimiser brings back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sparsecomp.errors import InputError
from sparsecomp.train.optimizers import check_optimizer, zero
from sparsecomp.train.parameters import Held, find_parameter
from sparsecomp.train.weights import find_weights


class Masks:
    """Keeps parameters zero where a mask is False, through momentum, weight decay and any optimiser::

        masks = Masks(model)  # the zeros that the weights have now stay
        for x, y in data:
            loss(model(x), y).backward()
            optimizer.step()
            masks.step(optimizer)
            optimizer.zero_grad()

    A parameter that several modules share has one mask. `state_dict` and `load_state_dict` work as an
    optimiser's do.
    """

    def __init__(
        self,
        model: nn.Module,
        masks: Mapping[str, Tensor] | None = None,
        *,
        layers: Sequence[str] | None = None,
        skip: Sequence[str] = (),
    ) -> None:
        """The model is changed only when everything is right: then what is masked becomes zero.

        Args:
            model: Its parameters are kept sparse in place.
            masks: By name of a parameter, "conv1.weight": what is kept, True or 1, of the parameter's shape. None
                takes the zeros of all weights of linear layers and convolutions.
            layers: Of those, which; see `find_weights`.
            skip: Those to leave out.

        Raises:
            InputError: a name is unknown, a mask has another shape or other values, or the model cannot be
                masked.
        """
        if masks is None:
            weights = find_weights(model, layers, skip)
            self.held = {name: weight.held for name, weight in weights.items()}
            masks = {name: held.parameter != 0 for name, held in self.held.items()}
        else:
            self.held = _named(model, masks)
        self.kept = self._checked(masks)
        self.apply()

    @property
    def sparsity(self) -> float:
        """The share of the masked parameters' elements that is zero."""
        kept = sum(int(mask.count_nonzero()) for mask in self.kept.values())
        return 1 - kept / max(1, sum(mask.numel() for mask in self.kept.values()))

    def step(self, optimizer: Optimizer) -> None:
        """Call it after `optimizer.step()`: zeros are exact again, and what it remembers of them is cleared."""
        self.apply(check_optimizer(optimizer))

    def apply(self, optimizer: Optimizer | None = None) -> None:
        """Set to zero what is masked, in the model and in the optimiser's memory."""
        self.check_present()
        for name, held in self.held.items():
            self.kept[name] = self.kept[name].to(held.parameter.device)
            zero(held.parameter, self.kept[name], optimizer)

    def check_present(self) -> None:
        """Raises InputError if a parameter was replaced in its module."""
        for held in self.held.values():
            held.check_present()

    def replace(self, masks: Mapping[str, Tensor]) -> None:
        """Other masks of the same parameters, from the next step on; None of them is applied yet."""
        self.kept |= self._checked(masks)

    def state_dict(self) -> dict[str, Any]:
        return {"masks": {name: mask.clone() for name, mask in self.kept.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes the masks over and applies them at once.

        Raises:
            InputError: they are not of these parameters; nothing is changed then.
        """
        masks = state.get("masks") if isinstance(state, Mapping) else None
        if not isinstance(masks, Mapping) or set(masks) != set(self.kept):
            found = sorted(masks) if isinstance(masks, Mapping) else type(state).__name__
            raise InputError(f"the state is of masks {found!r}, not of {sorted(self.kept)!r}.")
        self.kept = self._checked(masks)
        self.apply()

    def _checked(self, masks: Mapping[str, Any]) -> dict[str, Tensor]:
        """bool masks, by the first name of each parameter."""
        first = {alias: held for held in self.held.values() for alias in held.names}
        checked: dict[str, Tensor] = {}
        for given, mask in masks.items():
            held = first[given]
            kept = _bool(given, mask, held.parameter)
            if held.name in checked and not torch.equal(checked[held.name], kept):
                names = ", ".join(map(repr, held.names))
                raise InputError(f"{names} are one parameter, but their masks differ: give one of them.")
            checked[held.name] = kept
        return checked

    def __str__(self) -> str:
        lines = [
            f"{name}: {int(mask.count_nonzero())} of {mask.numel()} kept" for name, mask in self.kept.items()
        ]
        return "\n".join([f"masks of {len(lines)} parameters, {self.sparsity:.1%} zeros", *lines])


def _named(model: nn.Module, masks: Mapping[str, Tensor]) -> dict[str, Held]:
    if not isinstance(model, nn.Module):
        raise InputError(f"model must be an nn.Module, not {type(model).__name__}.")
    if not isinstance(masks, Mapping):
        raise InputError(
            f"masks must be a mapping of parameter names to tensors, not {type(masks).__name__}."
        )
    found = [find_parameter(model, name) for name in masks]
    return {held.name: held for held in found}


def _bool(name: str, mask: Any, parameter: Tensor) -> Tensor:
    if not isinstance(mask, Tensor):
        raise InputError(f"the mask of {name!r} must be a tensor, not {type(mask).__name__}.")
    if mask.shape != parameter.shape:
        raise InputError(
            f"the mask of {name!r} has shape {tuple(mask.shape)}, the parameter {tuple(parameter.shape)}."
        )
    if mask.dtype is not torch.bool and not bool(((mask == 0) | (mask == 1)).all()):
        raise InputError(f"the mask of {name!r} must be True and False, or 1 and 0.")
    return mask.to(parameter.device, torch.bool).clone()
