"""What a weight costs where the model will run, for a regulariser that removes first what is dear.

Gordon et al., "MorphNet: Fast & Simple Resource-Constrained Structure Learning", CVPR 2018, weigh a group lasso by
FLOPs. Here a group may also be weighed by the time that its layer was measured to take.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from sparsecomp.autotune import autotune
from sparsecomp.errors import InputError
from sparsecomp.front import analyze, compile_sparse
from sparsecomp.report import LayerReport, Report
from sparsecomp.target import Remote, Target

FLOPS = "flops"


def weight_costs(model: nn.Module, args: Sequence[Any], device: str | Target) -> dict[str, float]:
    """The cost of one weight of each layer over the mean of all weights; by name of the parameter.

    Args:
        model: Is copied and left as it is.
        args: Example inputs, of the shapes that will be run.
        device: "flops" counts multiply-adds. "cpu", or a `Target`, measures every layer there: a layer's time, by
            the fastest kernel for its weight as it is now, over its number of weights. So does
            "rpc://host:port/key", a device behind TVM's RPC tracker, as `autotune` does; what is measured there
            stays in the database.

    Raises:
        InputError: the model, the inputs or the device cannot be used, or nothing was measured.
    """
    try:
        trial = copy.deepcopy(model).eval()
    except Exception as error:
        raise InputError(
            f"costs are taken on a copy of the model, which cannot be copied: {error}."
        ) from error
    if device == FLOPS:
        return _relative(analyze(trial, args), lambda layer: float(layer.layer.dense_flops), device)
    if isinstance(device, str) and device.startswith(Remote.SCHEME):
        times = _remote_seconds(trial, args, device)
        return _relative(analyze(trial, args), lambda layer: times.get(layer.layer.name), device)
    target = Target.parse(device)
    if not target.traits.kernels:
        raise InputError(
            f"device {target.kind!r} measures nothing. Use {FLOPS!r}, or 'cpu' for this machine."
        )
    return _relative(compile_sparse(trial, args, target=target).report, _seconds, device)


def _seconds(layer: LayerReport) -> float | None:
    """Of the fastest way to run it."""
    candidates = layer.choice.candidates if layer.choice else ()
    return min((found.seconds for found in candidates if found.seconds is not None), default=None)


def _remote_seconds(model: nn.Module, args: Sequence[Any], device: str) -> dict[str, float]:
    """By layer, of the fastest default kernel, or of a better one where the device was tuned before."""
    calls = autotune(model, args, device=device, trials=1).calls
    return {name: call.tuned_seconds for call in calls if call.decided for name in call.layers}


def _relative(
    report: Report, cost: Callable[[LayerReport], float | None], device: str | Target
) -> dict[str, float]:
    """A weight that several layers read costs what they take together."""
    costs: dict[str, float] = {}
    sizes: dict[str, int] = {}
    for layer in report.layers:
        found = cost(layer)
        if found is not None:
            name = layer.layer.weight
            costs[name] = costs.get(name, 0.0) + found
            sizes[name] = layer.layer.rows * layer.layer.columns
    mean = sum(costs.values()) / max(1, sum(sizes.values()))
    if not mean:
        raise InputError(f"no layer could be measured on {str(device)!r}. {' '.join(report.notes)}".rstrip())
    return {name: costs[name] / sizes[name] / mean for name in costs}
