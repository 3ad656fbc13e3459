"""How much each candidate would cost each layer."""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Mapping, Sequence

from torch import nn

from sparsecomp.errors import InputError
from sparsecomp.pruning.candidate import Candidate
from sparsecomp.pruning.layers import prunable_layers
from sparsecomp.pruning.model import layer_weight, set_layer_weight
from sparsecomp.pruning.prune import Method, prune_each
from sparsecomp.pruning.statistics import Statistics

Sensitivity = dict[str, dict[Candidate, float]]
"""Layer -> candidate -> error."""


def error_between(errors: Mapping[float, float], sparsity: float) -> float:
    """Of a structure at a sparsity, from its errors at others.

    Between two that are known the root of the error is linear in the logarithm of the density (for OBS on 64 correlated inputs,
    densities a factor of 1.5 apart, within 2 % of what pruning gives but for errors below 0.01); below all, the error is
    in proportion to the sparsity; above all, that of the sparsest.

    Args:
        errors: Sparsity -> error, one at least.
        sparsity: In [0, 1).
    """
    levels = sorted(errors)
    at = bisect.bisect_left(levels, sparsity)
    if at == 0:
        return errors[levels[0]] * sparsity / levels[0]
    if at == len(levels):
        return errors[levels[-1]]
    low, high = levels[at - 1], levels[at]
    share = math.log((1 - sparsity) / (1 - low)) / math.log((1 - high) / (1 - low))
    root = (1 - share) * math.sqrt(errors[low]) + share * math.sqrt(errors[high])
    return root * root


def layer_errors(
    model: nn.Module,
    candidates: Sequence[Candidate],
    statistics: Mapping[str, Statistics] | None = None,
    method: Method = "obs",
    layers: Sequence[str] | None = None,
) -> Sensitivity:
    """The error of each candidate in each layer alone, on the dense model's activations.

    Args:
        model: Is left as it is.
        candidates: Dense ones have error 0.
        statistics: From `collect`: the relative error of the layer's output after pruning by `method`. Without them
            the relative energy of the weights that magnitude removes, which needs no data.
        method: As for `prune_weight`.
        layers: Names of layers, or of modules that hold them; by default all.

    Raises:
        InputError: as `prune_weight`, or a name is unknown.
    """
    given = statistics or {}
    return {
        name: {
            pruned.candidate: pruned.error
            for pruned in prune_each(layer_weight(weight), candidates, given.get(name), method)
        }
        for name, weight in prunable_layers(model, layers).items()
    }


def fisher_losses(
    model: nn.Module,
    candidates: Sequence[Candidate],
    statistics: Mapping[str, Statistics],
    method: Method = "fisher",
    layers: Sequence[str] | None = None,
) -> Sensitivity:
    """The rise of the loss that the gradients predict for each candidate in each layer alone.

    1/2 sum_i F_ii dw_i^2 with the change dw of the weights, F_ii their mean squared gradients: the second-order term
    of the loss at a minimum, with the diagonal of the empirical Fisher matrix as Hessian (Theis et al., "Faster gaze
    prediction with dense networks and Fisher pruning", 2018, equation 7).

    Args:
        model: Is left as it is.
        candidates: Dense ones have a rise of 0.
        statistics: From `collect` with labels and a loss.
        method: As for `prune_weight`.
        layers: Names of layers, or of modules that hold them; by default all.

    Raises:
        InputError: as `prune_weight`, or a layer has no squared gradients.
    """
    found: Sensitivity = {}
    for name, weight in prunable_layers(model, layers).items():
        own = statistics.get(name)
        if own is None or own.fisher is None:
            raise InputError(
                f"{name!r} has no squared gradients: collect them with labels, loss=F.cross_entropy say."
            )
        before = layer_weight(weight)
        found[name] = {}
        for pruned in prune_each(before, candidates, own, method):
            change = (pruned.weight - before).double().reshape(weight.shape)
            found[name][pruned.candidate] = float((own.fisher * change.square()).sum() / 2)
    return found


def measured_losses(
    model: nn.Module,
    candidates: Sequence[Candidate],
    loss: Callable[[nn.Module], float],
    statistics: Mapping[str, Statistics] | None = None,
    method: Method = "obs",
    layers: Sequence[str] | None = None,
) -> Sensitivity:
    """The rise of a loss with one layer pruned and all others dense, by layer and candidate.

    Args:
        model: Is left as it is: each weight is put back.
        candidates: Dense ones have a rise of 0.
        loss: Of the whole model on held-out data; smaller is better.
        statistics: From `collect`.
        method: As for `prune_weight`.
        layers: Names of layers, or of modules that hold them; by default all.
    """
    given = statistics or {}
    dense = loss(model)
    found: Sensitivity = {}
    for name, weight in prunable_layers(model, layers).items():
        before = layer_weight(weight).clone()
        found[name] = {}
        for pruned in prune_each(before, candidates, given.get(name), method):
            try:
                set_layer_weight(weight, pruned.weight)
                found[name][pruned.candidate] = 0.0 if pruned.candidate.is_dense else loss(model) - dense
            finally:
                set_layer_weight(weight, before)
    return found
