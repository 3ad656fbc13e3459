"""Prune one weight."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import torch
from torch import Tensor

from sparsecomp.errors import InputError
from sparsecomp.pruning.candidate import Candidate
from sparsecomp.pruning.fisher import FisherSurgery
from sparsecomp.pruning.hessian import DAMPING, Hessian
from sparsecomp.pruning.obs import Surgery
from sparsecomp.pruning.pruned import Pruned, output_energy, relative_error
from sparsecomp.pruning.repair import least_squares
from sparsecomp.pruning.selection import kept_groups
from sparsecomp.pruning.statistics import Statistics
from sparsecomp.train.pattern import Pattern
from sparsecomp.train.tiling import Tiling

Method = Literal["obs", "wanda", "magnitude", "fisher", "woodfisher"]
METHODS: tuple[Method, ...] = get_args(Method)


def prune_weight(
    weight: Tensor,
    candidate: Candidate,
    statistics: Statistics | None = None,
    method: Method = "obs",
    *,
    repair: bool = False,
    damping: float = DAMPING,
) -> Pruned:
    """Make a weight as sparse as the candidate says.

    Where a method cannot be used, a simpler one is, and `Pruned.note` says why: without statistics magnitude; without
    the gradients that a method needs, with inputs of which no damping makes a Hessian, or with blocks of rows that
    reach over convolution groups, Wanda (and for OBS least squares after it). One group of weights at least is kept.

    Args:
        weight: Floating-point, outputs first: of a linear layer outputs x inputs, of a convolution outputs x inputs
            of one group x taps. It is left as it is. What a model stores inputs first must be transposed before.
        candidate: Structure and sparsity.
        statistics: Of the layer, from `collect`.
        method: What is removed, and whether the rest makes up for it:

            - "magnitude": the groups of smallest root mean square. Needs no statistics.
            - "wanda": of smallest |w| ||x||; single weights row by row (Sun et al. 2023, section 3, equation 1).
            - "obs": least output error, the rest is changed to make up for it: group by group, each removed with all
              others adapted (`exact_obs`), in larger layers in rounds (`rounds`), in the largest in one pass over
              the columns (`sparsegpt`). `Pruned.method` says which.
            - "fisher": of smallest F_ii w_i^2, F_ii the mean squared gradient (LeCun et al. 1989; Theis et al. 2018).
            - "woodfisher": as "obs", with blocks of the Fisher matrix in place of the inputs' moments.

        repair: Set what is kept to least squares on the inputs after (`repair`). "obs" does so in all but the largest
            layers; with it these go in rounds too, a minute for 768 x 3072.
        damping: Of the Hessian or the Fisher matrix, over the mean of its diagonal.

    Raises:
        InputError: the method or damping cannot be, or the weight is no such tensor, not finite, or not of these
            statistics.
    """
    (pruned,) = prune_each(weight, (candidate,), statistics, method, repair=repair, damping=damping)
    return pruned


def prune_each(
    weight: Tensor,
    candidates: Sequence[Candidate],
    statistics: Statistics | None = None,
    method: Method = "obs",
    *,
    repair: bool = False,
    damping: float = DAMPING,
) -> Iterator[Pruned]:
    """`prune_weight` by each candidate in turn, in less time: the Hessian is inverted once, and the order in which the
    exact way removes the groups of a structure is the same for all sparsities.

    Raises:
        InputError: as `prune_weight`.
    """
    check_weight(weight, statistics)
    if method not in METHODS:
        raise InputError(f"method {method!r} is not known. Use one of {', '.join(METHODS)}.")
    if not 0 <= damping < float("inf"):
        raise InputError(f"damping must be a finite share of at least 0, not {damping!r}.")
    layer = _Layer(weight, statistics, repair, damping)
    for candidate in candidates:
        mask, result, used, note = _Call(layer, candidate).run(method)
        result = torch.where(mask, result, 0.0).to(weight.dtype)
        error = relative_error(result.double() - layer.matrix, layer.energy, statistics)
        if not candidate.is_dense and bool(mask.all()):
            note = "; ".join(filter(None, (note, "too small to lose a group")))
        yield Pruned(result.reshape(weight.shape), mask.reshape(weight.shape), error, candidate, used, note)


Result = tuple[Tensor, Tensor, str, str]
"""Mask, weights, what was done and why another method was used."""


@dataclass(frozen=True, eq=False)
class _Layer:
    """The weight, and what is the same for all candidates. Also tells a pattern how to tile it."""

    weight: Tensor
    statistics: Statistics | None
    repair: bool
    damping: float

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.weight), self.weight[0].numel()

    @property
    def taps(self) -> int:
        return self.weight[0, 0].numel()

    @property
    def groups(self) -> int:
        return 1 if self.statistics is None else len(self.statistics.moments)

    @cached_property
    def matrix(self) -> Tensor:
        return self.weight.detach().reshape(self.shape).double()

    @cached_property
    def energy(self) -> float:
        return output_energy(self.matrix, self.statistics)

    @property
    def grouped(self) -> Tensor:
        return self.matrix.reshape(self.groups, -1, self.shape[1])

    @cached_property
    def hessian(self) -> Hessian | None:
        assert self.statistics is not None
        return Hessian.of(self.statistics.moments.to(self.weight.device), self.damping)

    @cached_property
    def _surgeries(self) -> dict[Pattern, Surgery]:
        return {}

    def surgery(self, structure: Pattern, hessian: Hessian) -> Surgery:
        """Of the newest structure only: its arrays may be large."""
        if structure not in self._surgeries:
            self._surgeries.clear()
            self._surgeries[structure] = Surgery(
                self.grouped, hessian, structure.tiling(self), structure.n_of_m
            )
        return self._surgeries[structure]


@dataclass(frozen=True, eq=False)
class _Call:
    """One candidate."""

    layer: _Layer
    candidate: Candidate

    @property
    def tiling(self) -> Tiling:
        return self.candidate.structure.tiling(self.layer)

    def run(self, method: str) -> Result:
        found, matrix = self.layer.statistics, self.layer.matrix
        if self.candidate.is_dense:
            return torch.ones_like(matrix, dtype=torch.bool), matrix, "dense", ""
        if method == "magnitude":
            return self._chosen(matrix, matrix.square(), method)
        if found is None:
            return self._chosen(matrix, matrix.square(), "magnitude", f"{method} needs calibration data")
        if method == "obs":
            return self._obs(matrix, found)
        if method == "fisher" and found.fisher is not None:
            return self._chosen(matrix, matrix.square() * found.fisher.to(matrix.device), method)
        if method == "woodfisher" and found.gradients is not None:
            limits = self.candidate.structure.n_of_m
            surgery = FisherSurgery(self.tiling, self.candidate.sparsity, limits, self.layer.damping)
            mask, result = surgery.run(matrix, found.gradients.to(matrix.device))
            return mask, self._repaired(matrix, mask, result), method, ""
        return self._wanda(
            matrix, found, "" if method == "wanda" else f"{method} needs gradients: labels and a loss"
        )

    def _obs(self, matrix: Tensor, found: Statistics) -> Result:
        hessian, damping = self.layer.hessian, self.layer.damping
        if hessian is None:
            return self._wanda(matrix, found, "no damping makes the inputs' Hessian invertible")
        note = "" if hessian.damping == damping else f"damped by {hessian.damping:g}: the Hessian is singular"
        surgery = self.layer.surgery(self.candidate.structure, hessian)
        if surgery.fits:
            mask, result, how = surgery.run(self.candidate.sparsity, self.layer.repair)
            return mask.reshape(matrix.shape), result.reshape(matrix.shape), f"obs, {how}", note
        mask, _, _, _ = self._wanda(matrix, found)
        grouped = self.layer.grouped
        result = least_squares(grouped, mask.reshape(grouped.shape), hessian).reshape(matrix.shape)
        return mask, result, "wanda, repaired", "blocks of rows reach over convolution groups"

    def _wanda(self, matrix: Tensor, found: Statistics, note: str = "") -> Result:
        """|w| ||x||, squared, row by row."""
        inputs = found.norms.square().to(matrix.device).double()[:, None]
        worth = matrix.square().reshape(self.layer.groups, -1, matrix.shape[1]) * inputs
        return self._chosen(matrix, worth.reshape(matrix.shape), "wanda", note)

    def _chosen(self, matrix: Tensor, worth: Tensor, used: str, note: str = "") -> Result:
        """Groups of the least mean worth go."""
        pattern, tiling = self.candidate.structure, self.tiling
        scores = tiling.sums(worth) / tiling.sizes(self.layer.shape).to(worth.device)
        single = tiling.rows == tiling.columns == 1
        kept = kept_groups(scores, pattern, self.candidate.sparsity, by_row=used == "wanda" and single)
        mask = tiling.spread(kept, self.layer.shape)
        return mask, self._repaired(matrix, mask, matrix * mask), used, note

    def _repaired(self, matrix: Tensor, mask: Tensor, result: Tensor) -> Tensor:
        if not self.layer.repair or self.layer.statistics is None:
            return result
        hessian, shape = self.layer.hessian, self.layer.grouped.shape
        if hessian is None:
            return result
        solved = least_squares(matrix.reshape(shape), mask.reshape(shape), hessian).reshape(matrix.shape)
        dead = hessian.dead[:, None].expand(-1, shape[1], -1).reshape(matrix.shape)
        return torch.where(dead, result, solved)


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
    if statistics is None:
        return
    groups, columns = statistics.moments.shape[:2]
    if columns != weight[0].numel() or len(weight) % groups:
        raise InputError(
            f"the statistics are of a layer with {columns} inputs in {groups} groups, the weight is "
            f"{tuple(weight.shape)}: transposed?"
        )
    if not bool(statistics.moments.isfinite().all()):
        raise InputError("the statistics have NaN or infinite moments: collect them again on finite data.")
