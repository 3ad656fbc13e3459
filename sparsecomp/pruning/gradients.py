"""Gradients of a loss for single samples: what the Fisher matrix is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from sparsecomp.errors import InputError
from sparsecomp.pruning.statistics import Statistics
from sparsecomp.train.weights import Weight

Loss = Callable[[Any, Any], Tensor]
"""Of a model's output and the labels: a scalar."""
MEMORY = 4 << 30
"""Bytes of the gradients that are kept, at most."""


class Gradients:
    """Squared gradients of single samples, summed, and the first of them whole."""

    def __init__(self, weights: Mapping[str, Weight], loss: Loss, samples: int, keep: int) -> None:
        """
        Args:
            weights: By name of the layer.
            loss: Of the model's output and the labels.
            samples: How many are taken, at most.
            keep: Of these, how many gradients are kept.

        Raises:
            InputError: what is to be kept would not fit.
        """
        size = 4 * keep * sum(weight.parameter.numel() for weight in weights.values())
        if size > MEMORY:
            fits = int(keep * MEMORY / size)
            raise InputError(
                f"{keep} gradients of these layers are {size / 2**30:.1f} GiB, of at most {MEMORY / 2**30:g}: keep "
                f"{fits}, or collect fewer layers at a time."
            )
        self.weights, self.loss, self.samples, self.keep = weights, loss, samples, keep
        self.count = 0
        self.squares = {
            name: torch.zeros(weight.shape, dtype=torch.double, device=weight.parameter.device)
            for name, weight in weights.items()
        }
        self.kept: dict[str, list[Tensor]] = {name: [] for name in weights}

    def add(self, model: nn.Module, call: Any, labels: Any, number: int) -> None:
        """The samples of a batch one by one: rows of every tensor that is as long as the batch.

        Raises:
            InputError: the loss is no finite scalar, or does not depend on the weights.
        """
        size = _batch_size((call, labels), number)
        trained = {name: weight.parameter.requires_grad for name, weight in self.weights.items()}
        for weight in self.weights.values():
            weight.parameter.requires_grad_(True)
        try:
            for index in range(min(size, self.samples - self.count)):
                (args, kwargs), label = _sample((call, labels), index, size)
                with torch.enable_grad():
                    self._take(self.loss(model(*args, **kwargs), label), number)
        finally:
            for name, weight in self.weights.items():
                weight.parameter.requires_grad_(trained[name])

    def _take(self, value: Any, number: int) -> None:
        if not isinstance(value, Tensor) or value.numel() != 1 or not bool(value.isfinite()):
            raise InputError(
                f"the loss of a sample of batch {number} is {value!r}: it must be a finite scalar tensor."
            )
        if value.grad_fn is None:
            raise InputError(
                f"the loss of batch {number} does not depend on the weights: compute it from the output."
            )
        parameters = [weight.parameter for weight in self.weights.values()]
        found = torch.autograd.grad(value.sum(), parameters, allow_unused=True)
        for (name, weight), gradient in zip(self.weights.items(), found, strict=True):
            matrix = weight.matrix(
                torch.zeros_like(weight.parameter) if gradient is None else gradient
            ).detach()
            self.squares[name].add_(matrix.double().square())
            if self.count < self.keep:
                self.kept[name].append(matrix.float().clone())
        self.count += 1

    def joined(self, name: str, found: Statistics) -> Statistics:
        """The layer's statistics with its mean squared gradients and those that were kept."""
        kept = self.kept.pop(name)
        gradients = torch.stack(kept) if kept else None
        return replace(found, fisher=self.squares[name] / max(1, self.count), gradients=gradients)


def _batch_size(call: Any, number: int) -> int:
    for leaf in pytree.tree_leaves(call):
        if isinstance(leaf, Tensor) and leaf.dim():
            return len(leaf)
    raise InputError(
        f"calibration batch {number} has no tensor with a batch dimension: samples cannot be told apart."
    )


def _sample(call: Any, index: int, size: int) -> Any:
    def cut(tensor: Tensor) -> Tensor:
        return tensor[index : index + 1] if tensor.dim() and len(tensor) == size else tensor

    return pytree.tree_map_only(Tensor, cut, call)
