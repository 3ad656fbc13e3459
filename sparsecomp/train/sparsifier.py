"""What gradual pruning and RigL have in common: masks of whole groups, layer by layer, and steps counted."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sparsecomp.errors import InputError
from sparsecomp.pattern import RowBlocks
from sparsecomp.train.distribution import layer_sparsities
from sparsecomp.train.masks import Masks
from sparsecomp.train.optimizers import check_optimizer
from sparsecomp.train.pattern import Pattern
from sparsecomp.train.weights import Weight, find_weights


class Sparsifier(ABC):
    """Changes masks at some steps and applies them after all. Subclasses say when and how.

    `groups` holds, by name of the parameter, which groups are kept: bool, groups down x groups across.
    """

    def __init__(
        self,
        model: nn.Module,
        sparsity: float,
        pattern: str | RowBlocks | Pattern,
        distribution: str,
        layers: Sequence[str] | None,
        skip: Sequence[str],
    ) -> None:
        self.pattern = Pattern.parse(pattern)
        only = self.pattern.only_sparsity
        if only is not None and (abs(sparsity - only) > 1e-9 or distribution != "uniform"):
            raise InputError(
                f"{self.pattern} leaves a sparsity of {only:g} in every layer: ask for that and for 'uniform', "
                f"not for {sparsity:g} and {distribution!r}."
            )
        self.weights = find_weights(model, layers, skip)
        shapes = {name: _shape(weight) for name, weight in self.weights.items()}
        self.layer_sparsities = layer_sparsities(shapes, sparsity, distribution)
        self.groups: dict[str, Tensor] = {}
        self.steps = 0

    def start(self, model: nn.Module, groups: Mapping[str, Tensor]) -> None:
        """The first masks; from here on the model is changed."""
        self.groups = dict(groups)
        self.masks = Masks(model, self._masks())

    @property
    def sparsity(self) -> float:
        """The share of the weights that is zero."""
        return self.masks.sparsity

    def step(self, optimizer: Optimizer) -> bool:
        """Call it after `optimizer.step()`, as often; true where the masks changed."""
        check_optimizer(optimizer)
        self.masks.apply(optimizer)
        self.steps += 1
        is_due = self.is_due(self.steps)
        if is_due:
            with torch.no_grad():
                self.groups = {name: self.regrouped(weight) for name, weight in self.weights.items()}
            self.masks.replace(self._masks())
            self.masks.apply(optimizer)
        return is_due

    @abstractmethod
    def is_due(self, step: int) -> bool:
        """Whether the masks change after this step; the first is 1."""

    @abstractmethod
    def regrouped(self, weight: Weight) -> Tensor:
        """The groups that are kept from now on."""

    def state_dict(self) -> dict[str, Any]:
        """Plain tensors and numbers, to save beside the model's and the optimiser's."""
        groups = {name: kept.clone() for name, kept in self.groups.items()}
        return {"steps": self.steps, "pattern": str(self.pattern), "groups": groups}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where the state was saved, and applies its masks to the model.

        Raises:
            InputError: it is of other layers, shapes or another pattern; nothing is changed then.
        """
        if not isinstance(state, Mapping) or not {"steps", "pattern", "groups"} <= set(state):
            raise InputError("the state must be what state_dict() gave: steps, pattern and groups.")
        if state["pattern"] != str(self.pattern):
            raise InputError(f"the state is of pattern {state['pattern']!r}, not {str(self.pattern)!r}.")
        groups = state["groups"]
        if set(groups) != set(self.groups):
            raise InputError(f"the state is of {sorted(groups)!r}, not of {sorted(self.groups)!r}.")
        for name, kept in groups.items():
            if kept.shape != self.groups[name].shape or kept.dtype is not torch.bool:
                raise InputError(
                    f"the state has {tuple(kept.shape)} groups of {name!r}, here are {tuple(self.groups[name].shape)}."
                )
        self.steps = int(state["steps"])
        self.groups = {name: groups[name].to(kept.device) for name, kept in self.groups.items()}
        self.masks.replace(self._masks())
        self.masks.apply()

    def _masks(self) -> dict[str, Tensor]:
        return {name: self.pattern.mask(self.weights[name], kept) for name, kept in self.groups.items()}

    def __str__(self) -> str:
        lines = [
            f"{name}: {int(kept.sum())} of {kept.numel()} groups kept ({self.pattern})"
            for name, kept in self.groups.items()
        ]
        return "\n".join([f"step {self.steps}, {self.sparsity:.1%} zeros", *lines])


def kept_count(sparsity: float, groups: int) -> int:
    """At least one: a layer without weights would cut the network."""
    return min(groups, max(1, round((1 - sparsity) * groups)))


def _shape(weight: Weight) -> tuple[int, ...]:
    """Outputs, inputs of one group, sizes of the kernel."""
    stored = tuple(weight.parameter.shape)
    return (stored[1], stored[0], *stored[2:]) if weight.transposed else stored
