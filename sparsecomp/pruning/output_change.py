"""How far the outputs of a changed model are from those of the dense one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from sparsecomp.pruning.calibration import evaluating, run_batch


@torch.no_grad()
def output_change(dense: nn.Module, changed: nn.Module, batches: Sequence[Any]) -> float:
    """||y' - y||^2 / ||y||^2 over all floating-point outputs on all batches: what the error of a layer is, of the model.

    Args:
        dense: In any mode; both run in evaluation mode.
        changed: Of the same outputs.
        batches: Inputs, as for `collect`.
    """
    moved = energy = 0.0
    with evaluating(dense), evaluating(changed):
        for number, batch in enumerate(batches, 1):
            before = _floats(run_batch(dense, batch, number))
            after = _floats(run_batch(changed, batch, number))
            for y, z in zip(before, after, strict=True):
                moved += float((z.double() - y.double()).square().sum())
                energy += float(y.double().square().sum())
    return moved / energy if energy else moved


def _floats(output: Any) -> Iterator[Tensor]:
    leaves = pytree.tree_leaves(output)
    return (leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point())
