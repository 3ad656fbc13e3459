"""Prune whole channels, heads and feed-forward units: the coupled groups of a network's dependency graph.

A unit is everything that goes together (`sparsecomp.channels`): the filters that make a channel, its norms, and the
columns of all that read it. Zeroed here, it is taken out of the graph by `compile_sparse`, which makes the rest a
smaller dense network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from sparsecomp.capture import capture
from sparsecomp.channels import Group, Slice, coupled_groups
from sparsecomp.errors import CaptureError, InputError
from sparsecomp.example import unchanged
from sparsecomp.pruning.hessian import DAMPING, Hessian
from sparsecomp.pruning.layers import prunable_layers
from sparsecomp.pruning.selection import lowest, removed_count
from sparsecomp.pruning.statistics import Statistics
from sparsecomp.train.weights import Weight

UnitMethod = Literal["obs", "fisher", "magnitude"]


@dataclass(frozen=True)
class UnitScores:
    """How much each unit of a coupled group is worth; the least goes first."""

    group: Group
    scores: tuple[float, ...]
    method: str

    @property
    def name(self) -> str:
        return self.group.name

    def lowest(self, sparsity: float) -> tuple[int, ...]:
        """Numbers of the units to remove; one always stays."""
        count = removed_count(sparsity, len(self.scores))
        return tuple(
            lowest(torch.tensor(self.scores, dtype=torch.double), count).nonzero().flatten().tolist()
        )

    def __str__(self) -> str:
        return f"{self.name}: {len(self.scores)} units, {min(self.scores):.3g} to {max(self.scores):.3g} ({self.method})"


def score_units(
    model: nn.Module,
    args: Sequence[object],
    statistics: Mapping[str, Statistics] | None = None,
    method: UnitMethod = "obs",
) -> tuple[UnitScores, ...]:
    """The worth of every unit that can be removed, by coupled group.

    Args:
        model: Is only looked at.
        args: Example inputs, for the graph.
        statistics: From `collect`.
        method: "magnitude": the root mean square over all its parameters. "obs": by how much the output error of
            those who read it grows when the columns go and the others make up for them,
            sum_i W_iS ([H^-1]_SS)^-1 W_iS^T over the reader's output energy, summed over readers (Kurtic et al.,
            "ZipLM", 2023, equation 2). "fisher": sum of F_ii w_i^2 over its weights. Groups for which statistics
            are missing are scored by magnitude, and say so in `method`.

    Raises:
        InputError: the graph cannot be captured, or nothing can be removed.
    """
    try:
        with unchanged(model):
            groups = [g for g in coupled_groups(capture(model, tuple(args)).graph) if not g.pinned]
    except CaptureError as error:
        raise InputError(f"units need the model's graph, which cannot be captured: {error}") from error
    if not groups:
        raise InputError(
            "no channel, head or neuron of this model can be removed: all reach its inputs or outputs."
        )
    readers = _Readers(model, statistics or {})
    found = []
    for group in groups:
        scores = None if method == "magnitude" else readers.scores(group, method)
        used = method if scores is not None else "magnitude"
        found.append(UnitScores(group, tuple(_magnitudes(model, group) if scores is None else scores), used))
    return tuple(found)


def zero_units(model: nn.Module, scored: UnitScores, units: Sequence[int]) -> None:
    """Set all slices of these units to zero, in place: weights, biases, norms. Running statistics stay."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for number in units:
            for part in scored.group.units[number].slices:
                if part.parameter in parameters:
                    _slab(parameters[part.parameter], part).index_fill_(
                        part.dimension,
                        torch.tensor(part.indices, device=parameters[part.parameter].device),
                        0.0,
                    )


def _slab(parameter: Tensor, part: Slice) -> Tensor:
    return parameter if part.rows is None else parameter[part.rows[0] : part.rows[1]]


def _magnitudes(model: nn.Module, group: Group) -> list[float]:
    parameters = {name: p.detach() for name, p in model.named_parameters(remove_duplicate=False)}
    found = []
    for unit in group.units:
        squares, count = 0.0, 0
        for part in unit.slices:
            if part.parameter in parameters:
                index = torch.tensor(part.indices, device=parameters[part.parameter].device)
                values = _slab(parameters[part.parameter], part).index_select(part.dimension, index).double()
                squares, count = squares + float(values.square().sum()), count + values.numel()
        found.append((squares / max(1, count)) ** 0.5)
    return found


class _Readers:
    """The layers that read units, with what is known of their inputs."""

    def __init__(self, model: nn.Module, statistics: Mapping[str, Statistics]) -> None:
        self.weights = {weight.name: weight for weight in prunable_layers(model).values()}
        self.statistics = {f"{name}.weight".lstrip("."): found for name, found in statistics.items()}
        self.hessians: dict[str, Hessian | None] = {}

    def scores(self, group: Group, method: str) -> list[float] | None:
        """One per unit; None where a reader has no statistics, or is a convolution with groups."""
        found = []
        for unit in group.units:
            parts = unit.of_role("reads") if method == "obs" else unit.of_role("reads", "produces")
            known = [part for part in parts if part.parameter in self.weights]
            if not known or not all(self._is_known(part, method) for part in known):
                return None
            found.append(sum(self._obs(part) if method == "obs" else self._fisher(part) for part in known))
        return found

    def _is_known(self, part: Slice, method: str) -> bool:
        found = self.statistics.get(part.parameter)
        if found is None or part.rows is not None:
            return False
        if method == "fisher":
            return found.fisher is not None
        return len(found.moments) == 1 and self._hessian(part.parameter) is not None

    def _hessian(self, name: str) -> Hessian | None:
        if name not in self.hessians:
            self.hessians[name] = Hessian.of(self.statistics[name].moments, DAMPING)
        return self.hessians[name]

    def _obs(self, part: Slice) -> float:
        weight, hessian = self.weights[part.parameter], self._hessian(part.parameter)
        assert hessian is not None
        matrix = weight.matrix(weight.parameter.detach()).double().masked_fill(hessian.dead, 0.0)
        columns = self._columns(weight, part)
        square = hessian.inverse[0][columns[:, None], columns]
        own = matrix[:, columns]
        lost = (torch.linalg.solve(square, own, left=False) * own).sum()
        whole = ((matrix @ self.statistics[part.parameter].moments[0]) * matrix).sum()
        return float(lost / whole) if float(whole) else 0.0

    def _fisher(self, part: Slice) -> float:
        weight, fisher = self.weights[part.parameter], self.statistics[part.parameter].fisher
        assert fisher is not None
        worth = weight.stored(fisher * weight.matrix(weight.parameter.detach()).double().square())
        return float(worth.index_select(part.dimension, torch.tensor(part.indices)).sum())

    def _columns(self, weight: Weight, part: Slice) -> Tensor:
        """Of the matrix: each input channel has all its taps."""
        index = torch.tensor(part.indices)
        return (index[:, None] * weight.taps + torch.arange(weight.taps)).flatten()
