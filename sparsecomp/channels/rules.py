"""One rule per operator: what labels its result has, given those of its operands.

To teach the graph an operator: a function here or in `products.py`, and a line in a table. An operator in no
table pins whatever it touches.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import fx

from sparsecomp.channels import products
from sparsecomp.channels.labels import Labels, along, arguments, extents
from sparsecomp.channels.moves import MOVES
from sparsecomp.channels.views import constant, dimension_of
from sparsecomp.channels.wiring import Wiring, operand_name
from sparsecomp.program import operator_name

aten = torch.ops.aten

Result = Labels | tuple[Labels | None, ...] | None
Rule = Callable[[Wiring, fx.Node], Result]


def elementwise(wiring: Wiring, node: fx.Node) -> Result:
    """Any number of operands of one shape, up to broadcasting; constants are cut along."""
    operands = [a for a in (*node.args, *node.kwargs.values()) if isinstance(a, fx.Node)]
    labelled = [(a, labels) for a in operands if (labels := wiring.of(a)) is not None]
    if not labelled:
        return _explained(wiring, node)
    rank = len(extents(node))
    total: Labels | None = None
    for _, labels in labelled:
        grown = labels.reshape([1] * (rank - labels.ndim) + list(labels.shape))
        if total is not None:
            wiring.couple(total, grown, operand_name(node))
        total = grown if total is None else np.maximum(*np.broadcast_arrays(total, grown))
    assert total is not None
    for operand in operands:
        if wiring.of(operand) is None:
            _meet_unlabelled(wiring, node, operand, total)
        else:
            _check_written_out(wiring, node, operand, total)
    return total


def _meet_unlabelled(wiring: Wiring, node: fx.Node, operand: fx.Node, total: Labels) -> None:
    """What has no labels must broadcast along labelled axes, or be a constant that can be cut there."""
    sizes = _aligned(operand, total.ndim)
    axes = [axis for axis in range(total.ndim) if sizes[axis] != 1 and total.shape[axis] > 1]
    if not axes:
        return
    if constant(wiring.graph, operand) is None or operand in node.kwargs.values():
        wiring.pin(
            total, f"{operand_name(node)} joins them with {operand_name(operand)}, which keeps its size"
        )
        return
    for axis in axes:
        place = dimension_of(wiring.graph, operand, axis - total.ndim + len(extents(operand)))
        vector = along(total, axis)
        if place is None or wiring.shared(place[0]):
            reason = (
                wiring.shared(place[0]) if place else f"{operand_name(node)} reads a constant of another form"
            )
            wiring.pin(total, reason)
        elif vector is not None:
            wiring.place(*place, vector, "scales")


def _check_written_out(wiring: Wiring, node: fx.Node, operand: fx.Node, total: Labels) -> None:
    """An operand whose unit is the same all along an axis of real extent cannot be cut there."""
    labels = wiring.of(operand)
    assert labels is not None
    sizes = _aligned(operand, total.ndim)
    shape = [1] * (total.ndim - labels.ndim) + list(labels.shape)
    if any(shape[a] == 1 and sizes[a] != 1 and total.shape[a] > 1 for a in range(total.ndim)):
        wiring.pin(total, f"{operand_name(node)} joins channels with a dimension that has none")


def _aligned(operand: fx.Node, rank: int) -> list[Any]:
    sizes = list(extents(operand)) if "val" in operand.meta and hasattr(operand.meta["val"], "shape") else []
    return [1] * (rank - len(sizes)) + sizes


def _explained(wiring: Wiring, node: fx.Node) -> Result:
    """No labels, for the reason of the first operand that has none."""
    reasons = (wiring.reasons[a] for a in node.all_input_nodes if a in wiring.reasons)
    wiring.reasons[node] = next(reasons, f"computed by {operand_name(node)}")
    return None


def batch_norm(wiring: Wiring, node: fx.Node) -> Result:
    labels = wiring.of(arguments(node)[0])
    several = node.target is aten._native_batch_norm_legit_no_training.default
    if labels is None:
        _explained(wiring, node)
        return None
    vector = along(labels, 1)
    names = [str(a.target) for a in arguments(node)[1:5] if isinstance(a, fx.Node) and a.op == "get_attr"]
    computed = len(names) != sum(a is not None for a in arguments(node)[1:5])
    training = node.target is aten.batch_norm.default and arguments(node)[5] is not False
    shared = next(filter(None, map(wiring.shared, names)), "")
    if vector is None or computed or training or shared:
        wiring.pin(labels, shared or "a batch norm whose constants are computed")
    else:
        for name in names:
            wiring.place(name, 0, vector, "scales")
    return (labels, None, None) if several else labels


def window(wiring: Wiring, node: fx.Node) -> Result:
    """Pooling, resizing and padding: along the last axes only, which have no labels."""
    labels = wiring.of(arguments(node)[0])
    if labels is None:
        return _explained(wiring, node)
    if any(extent > 1 for extent in labels.shape[2:]) or len(extents(node)) != labels.ndim:
        return unknown(wiring, node)
    return labels


def pad(wiring: Wiring, node: fx.Node) -> Result:
    labels = wiring.of(arguments(node)[0])
    if labels is None:
        return _explained(wiring, node)
    padded = len(arguments(node)[1]) // 2
    if any(extent > 1 for extent in labels.shape[labels.ndim - padded :]):
        return unknown(wiring, node)
    return labels


def reduce(wiring: Wiring, node: fx.Node) -> Result:
    """mean, sum, amax over axes without labels."""
    labels = wiring.of(arguments(node)[0])
    if labels is None:
        return _explained(wiring, node)
    axes: Any = arguments(node)[1] if len(arguments(node)) > 1 else None
    if not axes or any(labels.shape[axis] > 1 for axis in axes):
        wiring.pin(labels, f"{operand_name(node)} mixes channels")
        wiring.reasons[node] = f"computed by {operand_name(node)}"
        return None
    keep = (arguments(node)[2] if len(arguments(node)) > 2 else node.kwargs.get("keepdim", False)) is True
    return labels if keep else np.squeeze(labels, tuple(axis % labels.ndim for axis in axes))


def softmax(wiring: Wiring, node: fx.Node) -> Result:
    labels = wiring.of(arguments(node)[0])
    if labels is not None and labels.shape[arguments(node)[1]] > 1:
        wiring.pin(labels, f"{operand_name(node)} mixes channels")
    return labels if labels is not None else _explained(wiring, node)


def move(wiring: Wiring, node: fx.Node) -> Result:
    labels = wiring.of(arguments(node)[0])
    if labels is None:
        return _explained(wiring, node)
    moved = MOVES[node.target](node, labels)
    return unknown(wiring, node) if moved is None else moved


def getitem(wiring: Wiring, node: fx.Node) -> Result:
    source, index = arguments(node)
    parts = wiring.labels.get(source)
    if isinstance(parts, tuple) and isinstance(index, int):
        return parts[index]
    return _explained(wiring, node)


def cat(wiring: Wiring, node: fx.Node) -> Result:
    sources: Any = arguments(node)[0]
    axis: Any = arguments(node)[1] if len(arguments(node)) > 1 else 0
    labels = [wiring.of(source) for source in sources]
    if all(part is None for part in labels):
        return _explained(wiring, node)
    if all(part is None or part.shape[axis] == 1 for part in labels):
        return elementwise_operands(wiring, node, sources)
    written = [part for source in sources if (part := wiring.written_out(source, axis)) is not None]
    shapes = {tuple(np.delete(part.shape, axis)) for part in written}
    if len(written) != len(sources) or len(shapes) != 1:
        return unknown(wiring, node)
    return np.concatenate(written, axis)


def elementwise_operands(wiring: Wiring, node: fx.Node, sources: list[fx.Node]) -> Result:
    """Values side by side along an axis without labels: coupled element by element."""
    total: Labels | None = None
    for source in sources:
        labels = wiring.of(source)
        if labels is not None:
            if total is not None:
                wiring.couple(total, labels, operand_name(node))
            total = labels if total is None else np.maximum(*np.broadcast_arrays(total, labels))
    if any(wiring.of(source) is None for source in sources):
        wiring.pin(total, f"{operand_name(node)} joins them with a value that keeps its size")
    return total


def unknown(wiring: Wiring, node: fx.Node) -> Result:
    """Pins whatever the operator touches."""
    reason = f"there is no rule for {operator_name(node)} here"
    wiring.pin_inputs(node, reason)
    wiring.reasons[node] = reason
    return None


def normalised(wiring: Wiring, node: fx.Node) -> Result:
    """Norms over channels: each result depends on all of them."""
    reason = f"{str(node.target).removeprefix('aten.').partition('.')[0].replace('_', ' ')} mixes channels"
    wiring.pin_inputs(node, reason)
    wiring.reasons[node] = reason
    return None


def size(wiring: Wiring, node: fx.Node) -> Result:
    """A size asked for: of an axis without labels it stays what it is."""
    labels, axis = wiring.of(arguments(node)[0]), arguments(node)[1]
    if labels is not None and labels.shape[axis] > 1:
        wiring.pin(labels, "its size is asked for")
    return None


ELEMENTWISE = (
    *(aten.relu.default, aten.relu6.default, aten.gelu.default, aten.silu.default, aten.sigmoid.default),
    *(aten.tanh.default, aten.hardswish.default, aten.hardsigmoid.default, aten.hardtanh.default),
    *(
        aten.clamp.default,
        aten.leaky_relu.default,
        aten.elu.default,
        aten.softplus.default,
        aten.mish.default,
    ),
    *(aten.neg.default, aten.abs.default, aten.exp.default, aten.sqrt.default, aten.rsqrt.default),
    *(aten.pow.Tensor_Scalar, aten.erf.default, aten.log_sigmoid.default, aten.clamp_min.default),
    *(aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor, aten.add.Scalar, aten.mul.Scalar),
    *(aten.sub.Scalar, aten.div.Scalar, aten.maximum.default, aten.minimum.default, aten.threshold.default),
    *(aten.clone.default, aten.contiguous.default, aten.to.dtype, aten.to.device, aten.alias.default),
    *(aten.detach.default, aten.dropout.default, aten.masked_fill.Scalar, aten._to_copy.default),
)
WINDOWS = (
    *(aten.max_pool1d.default, aten.max_pool2d.default, aten.avg_pool1d.default, aten.avg_pool2d.default),
    *(aten.adaptive_avg_pool1d.default, aten.adaptive_avg_pool2d.default, aten._adaptive_avg_pool2d.default),
    *(aten.upsample_nearest2d.vec, aten.upsample_bilinear2d.vec, aten.upsample_nearest2d.default),
    *(aten.upsample_bilinear2d.default, aten.upsample_nearest1d.vec),
)
NORMS = (
    *(aten.layer_norm.default, aten.native_layer_norm.default, aten.rms_norm.default),
    *(aten.group_norm.default, aten.native_group_norm.default, aten.instance_norm.default),
)

RULES: Mapping[object, Rule] = {
    **dict.fromkeys(ELEMENTWISE, elementwise),
    **dict.fromkeys(WINDOWS, window),
    **dict.fromkeys(MOVES, move),
    **dict.fromkeys(NORMS, normalised),
    **dict.fromkeys((aten.mean.dim, aten.sum.dim_IntList, aten.amax.default), reduce),
    **dict.fromkeys((aten.softmax.int, aten._softmax.default), softmax),
    **dict.fromkeys((aten.pad.default, aten.constant_pad_nd.default), pad),
    aten._native_batch_norm_legit_no_training.default: batch_norm,
    aten.batch_norm.default: batch_norm,
    aten.cat.default: cat,
    aten.sym_size.int: size,
    operator.getitem: getitem,
    **products.RULES,
}
"""Operators whose coupling is known. A new one is one function and one line."""
