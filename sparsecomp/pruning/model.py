"""Prune a whole model, layer by layer, each on the activations that the pruned layers before it give."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sparsecomp.errors import InputError
from sparsecomp.example import unchanged
from sparsecomp.pruning.calibration import collect, evaluating, labelled, run_batch
from sparsecomp.pruning.candidate import Candidate
from sparsecomp.pruning.gradients import Loss
from sparsecomp.pruning.layers import prunable_layers
from sparsecomp.pruning.prune import Method, prune_weight
from sparsecomp.pruning.pruned import Pruned
from sparsecomp.pruning.statistics import Statistics
from sparsecomp.train.weights import Weight

KEPT_GRADIENTS = 64
"""For blocks of the Fisher matrix."""


def prune_model(
    model: nn.Module,
    choices: Mapping[str, Candidate],
    batches: Sequence[Any] = (),
    method: Method = "obs",
    *,
    repair: bool = False,
    loss: Loss | None = None,
) -> dict[str, Pruned]:
    """Prune layers in place, in the order in which they run, and re-estimate batch norm; by name of the layer.

    Args:
        model: Its weights are changed; see `prune_layers`.
        choices: By name of the layer. What is not named stays as it is.
        batches: Calibration data, as for `collect`, read several times. None: by magnitude, norms stay.
        method: As for `prune_weight`.
        repair: As for `prune_weight`.
        loss: For "fisher" and "woodfisher"; batches are then pairs of inputs and labels.

    Raises:
        InputError: as `collect` and `prune_weight`, or a choice is of no layer.
    """
    found = dict(prune_layers(model, choices, batches, method, repair=repair, loss=loss))
    if batches and found:
        reestimate_batch_norms(model, batches if loss is None else [inputs for inputs, _ in batches])
    return found


def prune_layers(
    model: nn.Module,
    choices: Mapping[str, Candidate],
    batches: Sequence[Any] = (),
    method: Method = "obs",
    *,
    repair: bool = False,
    loss: Loss | None = None,
) -> Iterator[tuple[str, Pruned]]:
    """Prune layers in place, one by one, in the order in which they run on the first batch.

    Each layer's statistics are collected after all before it are pruned, as in Frantar and Alistarh, "SparseGPT",
    2023, section 4. Whoever stops between two layers and calls again with the rest of the choices gets the same
    result. Layers that share their input (queries, keys, values) are calibrated in one run. With a loss all
    statistics are those of the model as it is at first: gradients are of the network, not of a layer. Layers that no
    batch reaches, and transposed convolutions, are pruned by magnitude and say so.

    Raises:
        InputError: as `collect` and `prune_weight`, or a choice is of no layer.
    """
    weights = _chosen(model, choices)
    calibrated = batches if method != "magnitude" else ()
    first = None if not batches else batches[0] if loss is None else labelled(batches[0], 1)[0]
    order = execution_order(model, weights, first)
    known: dict[str, Statistics] = {}
    if calibrated and weights and loss is not None:
        keep = KEPT_GRADIENTS if method == "woodfisher" else 0
        known = collect(model, calibrated, tuple(weights), loss=loss, keep_gradients=keep, is_strict=False)
    for names in order:
        if calibrated and loss is None:
            known = collect(model, calibrated, names, is_strict=False)
        for name in names:
            value = layer_weight(weights[name])
            pruned = prune_weight(value, choices[name], known.get(name), method, repair=repair)
            set_layer_weight(weights[name], pruned.weight)
            yield name, pruned


def layer_weight(weight: Weight) -> Tensor:
    """The parameter with outputs first, as `prune_weight` takes it: outputs x inputs x taps."""
    value = weight.parameter.detach()
    return value.transpose(0, 1).contiguous() if weight.transposed else value


def set_layer_weight(weight: Weight, value: Tensor) -> None:
    """Inverse of `layer_weight`, in place."""
    with torch.no_grad():
        weight.parameter.copy_(value.transpose(0, 1) if weight.transposed else value)


def _chosen(model: nn.Module, choices: Mapping[str, Candidate]) -> dict[str, Weight]:
    weights = prunable_layers(model, tuple(choices)) if choices else {}
    for name in choices:
        if name not in weights:
            raise InputError(
                f"{name!r} is no linear layer or convolution, or shares its weight with one that is named."
            )
    return {name: weight for name, weight in weights.items() if not choices[name].is_dense}


def execution_order(model: nn.Module, weights: Mapping[str, Weight], batch: Any) -> list[tuple[str, ...]]:
    """The layers as they run first on a batch, those with the same input together; unreached ones come last.

    batch: None keeps the order of the mapping, each layer alone.
    """
    if batch is None or not weights:
        return [(name,) for name in weights]
    order: list[tuple[list[str], Tensor]] = []
    with evaluating(model), unchanged(model), torch.no_grad(), _noted(weights, order):
        run_batch(model, batch, 1)
    reached = {name for names, _ in order for name in names}
    return [tuple(names) for names, _ in order] + [(name,) for name in weights if name not in reached]


@contextmanager
def _noted(weights: Mapping[str, Weight], order: list[tuple[list[str], Tensor]]) -> Iterator[None]:
    seen: set[str] = set()

    def note(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = args[0] if args else next(iter(kwargs.values()))
        if name not in seen:
            seen.add(name)
            if order and order[-1][1] is x:
                order[-1][0].append(name)
            else:
                order.append(([name], x))

    hooks = [
        holder.register_forward_pre_hook(
            lambda module, args, kwargs, name=name: note(name, args, kwargs), with_kwargs=True
        )
        for name, weight in weights.items()
        for holder in weight.held.holders
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def reestimate_batch_norms(model: nn.Module, batches: Sequence[Any]) -> int:
    """Set the running statistics of batch norms to those of the batches, all weighed alike; how many norms there are.

    Pruning shifts the means and variances of activations (Frantar et al., "Optimal Brain Compression", 2022, section
    6, "statistics correction" of batch norms). Everything else stays in evaluation mode.
    """
    norms = [
        m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats
    ]
    if not norms:
        return 0
    momenta = [norm.momentum for norm in norms]
    with evaluating(model), torch.no_grad():
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a cumulative average
            norm.train()
        for number, batch in enumerate(batches, 1):
            run_batch(model, batch, number)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return len(norms)
