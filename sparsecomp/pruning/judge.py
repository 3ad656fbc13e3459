"""How good a pruned model is, on data that planning may look at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from sparsecomp.pruning.calibration import evaluating, labelled, run_batch
from sparsecomp.pruning.gradients import Loss
from sparsecomp.pruning.output_change import output_change


@dataclass(frozen=True, eq=False)
class Judge:
    """What the user's `sensitivity` says; else the mean `loss` over the labelled batches; else how far the outputs have
    moved from the dense model's. Smaller is better."""

    dense: nn.Module
    batches: Sequence[Any]
    """Pairs of inputs and labels where there is a loss."""
    sensitivity: Callable[[nn.Module], float] | None
    loss: Loss | None

    @property
    def measure(self) -> str:
        if self.sensitivity is not None:
            return "sensitivity"
        return "change of the outputs" if self.loss is None else "loss"

    @torch.no_grad()
    def __call__(self, model: nn.Module) -> float:
        if self.sensitivity is not None:
            return float(self.sensitivity(model))
        if self.loss is None:
            return output_change(self.dense, model, self.batches)
        pairs = [labelled(batch, number) for number, batch in enumerate(self.batches, 1)]
        with evaluating(model):
            losses = [float(self.loss(run_batch(model, x, n), y)) for n, (x, y) in enumerate(pairs, 1)]
        return sum(losses) / len(losses)
