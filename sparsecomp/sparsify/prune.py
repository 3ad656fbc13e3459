"""Prune one weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from sparsecomp.errors import InputError
from sparsecomp.sparsify.candidate import Candidate
from sparsecomp.sparsify.pruned import Pruned, output_error
from sparsecomp.sparsify.selection import kept_groups
from sparsecomp.sparsify.statistics import Statistics

Method = Literal["obs", "wanda", "magnitude", "fisher"]
METHODS: tuple[Method, ...] = get_args(Method)


@dataclass(frozen=True)
class Layout:
    """How a weight is tiled."""

    shape: tuple[int, int]
    taps: int
    groups: int


def prune_weight(
    weight: Tensor,
    candidate: Candidate,
    statistics: Statistics | None = None,
    method: Method = "obs",
) -> Pruned:
    """Make a weight as sparse as the candidate says.

    Args:
        weight: Floating-point, outputs first: of a linear layer outputs x inputs, of a convolution outputs x inputs
            of one group x taps. It is left as it is. What a model stores inputs first must be transposed before.
        candidate: Structure and sparsity.
        statistics: Of the layer, from `collect`.
        method: What is removed, and whether the rest makes up for it:
            "magnitude": the groups of smallest root mean square. Needs no statistics.
            "wanda": of smallest |w| ||x||, row by row (Sun et al. 2023, section 3, equation 1).

    Raises:
        InputError: the method is unknown, or the weight is no such tensor, not finite, or not of these statistics.
    """
    check_weight(weight, statistics)
    if method not in METHODS:
        raise InputError(f"method {method!r} is not known. Use one of {', '.join(METHODS)}.")
    used, note = _possible(method, statistics)
    layout = _layout(weight, statistics)
    matrix = weight.detach().reshape(layout.shape)
    worth = _worth(matrix.double(), statistics if used == "wanda" else None)
    tiling = candidate.structure.tiling(layout)
    scores = tiling.sums(worth) / tiling.sizes(layout.shape).to(worth.device)
    groups = torch.ones_like(scores, dtype=torch.bool)
    if not candidate.is_dense:
        groups = kept_groups(scores, candidate.structure, candidate.sparsity, by_row=used == "wanda")
    mask = tiling.spread(groups, layout.shape)
    result = matrix.masked_fill(~mask, 0.0)
    error = output_error(matrix, result, statistics)
    return Pruned(result.reshape(weight.shape), mask.reshape(weight.shape), error, candidate, used, note)


def _possible(method: str, statistics: Statistics | None) -> tuple[str, str]:
    if method == "magnitude":
        return method, ""
    if statistics is None:
        return "magnitude", f"{method} needs calibration data"
    return "wanda", "" if method == "wanda" else f"{method} is not there yet"


def check_weight(weight: Tensor, statistics: Statistics | None) -> None:
    """Raises InputError unless it is a finite weight of a layer, of that layer's size."""
    if (
        not isinstance(weight, Tensor)
        or not weight.is_floating_point()
        or weight.dim() < 2
        or not weight.numel()
    ):
        found = (
            f"{tuple(weight.shape)} {weight.dtype}" if isinstance(weight, Tensor) else type(weight).__name__
        )
        raise InputError(f"a weight must be floating-point, outputs x inputs (x taps), not {found}.")
    if not bool(weight.isfinite().all()):
        raise InputError(f"a weight of shape {tuple(weight.shape)} has NaN or infinite elements.")
    if statistics is not None:
        groups, columns = statistics.moments.shape[:2]
        if columns != weight[0].numel() or len(weight) % groups:
            raise InputError(
                f"the statistics are of a layer with {columns} inputs in {groups} groups, the weight is "
                f"{tuple(weight.shape)}: transposed?"
            )


def _layout(weight: Tensor, statistics: Statistics | None) -> Layout:
    groups = 1 if statistics is None else len(statistics.moments)
    return Layout((len(weight), weight[0].numel()), weight[0, 0].numel(), groups)


def _worth(matrix: Tensor, statistics: Statistics | None) -> Tensor:
    """Of each weight: w^2, times the mean square of its input where statistics are given."""
    worth = matrix.square()
    if statistics is None:
        return worth
    groups, columns = statistics.norms.shape
    inputs = statistics.norms.square().to(matrix.device)
    return (worth.reshape(groups, -1, columns) * inputs[:, None]).reshape(matrix.shape)
