"""Rules of the operators that multiply: layers, which make new channels of those they read, and attention."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import fx

from sparsecomp.channels.labels import Labels, arguments, extents, placed
from sparsecomp.channels.wiring import Place, Reading, Wiring, operand_name
from sparsecomp.constants import Weight, constant_weight

aten = torch.ops.aten


def _layer(
    wiring: Wiring,
    node: fx.Node,
    source: fx.Node,
    weight: Weight,
    bias: object,
    axis: int,
    inputs: int,
    groups: int = 1,
) -> Labels | None:
    """A weight with `inputs` as the dimension it reads and 1 - inputs as that of its results (axes of the
    operator's own view of it); results lie along `axis`."""
    name = weight.name
    reads, makes = weight.dimension(inputs), weight.dimension(1 - inputs)
    incoming = wiring.vector(source, axis)
    size = extents(node)[axis]
    assert isinstance(size, int)
    reason = wiring.shared(name) or _bias_reason(wiring, bias, size)
    if isinstance(bias, fx.Node):
        wiring.pin(wiring.labels.get(bias), "a bias that is computed")
    results = wiring.fresh(size)
    if incoming is not None:
        if reason:
            wiring.pin(incoming, reason)
        _read(wiring, name, incoming, reads, groups, size)
        wiring.readings.append(Reading(node, source, name, incoming, results, reads, makes, groups))
    if groups > 1 and incoming is None:
        reason = reason or "a grouped convolution of channels that stay"
    if reason:
        wiring.pin(results, reason)
    wiring.place(name, makes, results, "produces")
    if isinstance(bias, fx.Node) and not reason:
        wiring.place(str(bias.target), 0, results, "produces")
    return placed(results, axis, len(extents(node)))


def _bias_reason(wiring: Wiring, bias: object, size: int) -> str:
    """Why a bias cannot be cut, if it cannot."""
    if bias is None:
        return ""
    if not isinstance(bias, fx.Node) or bias.op != "get_attr" or extents(bias) != (size,):
        return "its bias is computed"
    return wiring.shared(str(bias.target))


def _read(wiring: Wiring, name: str, incoming: Labels, reads: int, groups: int, size: int) -> None:
    if groups == 1:
        wiring.place(name, reads, incoming, "reads")
        return
    rows = size // groups
    for group, labels in enumerate(np.split(incoming, groups)):
        confined = (group * rows, (group + 1) * rows)
        wiring.places.append(Place(name, reads, labels, "reads", confined))


def _computed(wiring: Wiring, node: fx.Node) -> Labels | None:
    reason = "the weight is computed, not a constant"
    wiring.pin_inputs(node, reason)
    wiring.reasons[node] = reason
    return None


def linear(wiring: Wiring, node: fx.Node) -> Labels | None:
    weight = constant_weight(wiring.graph, arguments(node)[1])
    source = arguments(node)[0]
    if weight is None or weight.value.dim() != 2 or not isinstance(source, fx.Node) or node.kwargs:
        return _computed(wiring, node)
    bias = arguments(node)[2] if len(node.args) > 2 else None
    return _layer(wiring, node, source, weight, bias, len(extents(node)) - 1, inputs=1)


def addmm(wiring: Wiring, node: fx.Node) -> Labels | None:
    bias, source, factor = arguments(node)
    weight = constant_weight(wiring.graph, factor)
    if weight is None or node.kwargs or not isinstance(source, fx.Node):
        return _computed(wiring, node)
    return _layer(wiring, node, source, weight, bias, 1, inputs=0)


def matmul(wiring: Wiring, node: fx.Node) -> Labels | None:
    source, factor = arguments(node)
    weight = constant_weight(wiring.graph, factor)
    if not isinstance(source, fx.Node) or not isinstance(factor, fx.Node):
        return _computed(wiring, node)
    if weight is not None and weight.value.dim() == 2 and len(extents(source)) >= 2:
        return _layer(wiring, node, source, weight, None, len(extents(node)) - 1, inputs=0)
    return _attend(wiring, node, [source, factor])


def convolution(wiring: Wiring, node: fx.Node) -> Labels | None:
    weight = constant_weight(wiring.graph, arguments(node)[1])
    source = arguments(node)[0]
    if weight is None or weight.transposed or not isinstance(source, fx.Node) or node.kwargs:
        return _computed(wiring, node)
    if len(extents(source)) != weight.value.dim():
        return _computed(wiring, node)
    groups: Any = arguments(node)[6] if len(node.args) > 6 else 1
    bias = arguments(node)[2] if len(node.args) > 2 else None
    if groups > 1 and weight.value.shape[1] == 1:
        return _depthwise(wiring, node, source, weight.name, bias)
    return _layer(wiring, node, source, weight, bias, 1, inputs=1, groups=groups)


def _depthwise(wiring: Wiring, node: fx.Node, source: fx.Node, name: str, bias: object) -> Labels | None:
    """Every output channel is of the unit of the one channel it reads."""
    incoming, size = wiring.vector(source, 1), extents(node)[1]
    assert isinstance(size, int)
    if incoming is None:
        wiring.reasons[node] = "a depthwise convolution of channels that stay"
        return None
    reason = wiring.shared(name) or _bias_reason(wiring, bias, size)
    results = incoming.repeat(size // len(incoming))
    wiring.place(name, 0, results, "scales")
    if isinstance(bias, fx.Node) and not reason:
        wiring.place(str(bias.target), 0, results, "scales")
    if reason:
        wiring.pin(incoming, reason)
    return placed(results, 1, len(extents(node)))


def transposed_convolution(wiring: Wiring, node: fx.Node) -> Labels | None:
    """Its weight is stored inputs x outputs x height x width."""
    weight = constant_weight(wiring.graph, arguments(node)[1])
    source = arguments(node)[0]
    groups = arguments(node)[6] if len(node.args) > 6 else 1
    if weight is None or weight.transposed or not isinstance(source, fx.Node) or node.kwargs:
        return _computed(wiring, node)
    if groups != 1 or len(extents(source)) != weight.value.dim():
        wiring.pin_inputs(node, "a grouped transposed convolution")
        wiring.reasons[node] = "a grouped transposed convolution"
        return None
    bias = arguments(node)[2] if len(node.args) > 2 else None
    return _layer(wiring, node, source, weight, bias, 1, inputs=0)


def embedding(wiring: Wiring, node: fx.Node) -> Labels | None:
    weight = constant_weight(wiring.graph, arguments(node)[0])
    if weight is None or weight.transposed:
        return _computed(wiring, node)
    wiring.pin(wiring.of(arguments(node)[1]), "they are looked up")
    results = wiring.fresh(weight.value.shape[1])
    reason = wiring.shared(weight.name)
    if reason:
        wiring.pin(results, reason)
    wiring.place(weight.name, 1, results, "produces")
    return placed(results, len(extents(node)) - 1, len(extents(node)))


def attention(wiring: Wiring, node: fx.Node) -> Labels | None:
    """A head is one unit: its queries, keys, values and results."""
    mask = arguments(node)[3] if len(node.args) > 3 else node.kwargs.get("attn_mask")
    if isinstance(mask, fx.Node) and any(size != 1 for size in extents(mask)[1:-2]):
        wiring.pin_inputs(node, "the attention mask differs from head to head")
    return _attend(wiring, node, [a for a in arguments(node)[:3] if isinstance(a, fx.Node)])


def _attend(wiring: Wiring, node: fx.Node, sources: list[fx.Node]) -> Labels | None:
    """Products of activations: all that meets in one matrix is one unit, those of the batch axes stay apart."""
    rank = len(extents(node))
    heads: Labels | None = None
    for source in sources:
        labels = wiring.of(source)
        if labels is None or labels.ndim != rank or rank < 3:
            wiring.pin_inputs(node, f"{operand_name(node)} multiplies activations")
            wiring.reasons[node] = f"computed by {operand_name(node)}"
            return None
        first = labels[..., :1, :1]
        wiring.couple(labels, first, operand_name(node))
        if heads is not None:
            wiring.couple(heads, first, operand_name(node))
        heads = first if heads is None else np.maximum(*np.broadcast_arrays(heads, first))
    assert heads is not None
    grouped = [extents(source)[:-2] for source in sources]
    if any(sizes != grouped[0] for sizes in grouped):
        wiring.pin(heads, "several queries share a key")
    return heads


RULES: Mapping[object, Callable[[Wiring, fx.Node], Labels | None]] = {
    aten.linear.default: linear,
    aten.addmm.default: addmm,
    aten.mm.default: matmul,
    aten.matmul.default: matmul,
    aten.bmm.default: matmul,
    aten.conv1d.default: convolution,
    aten.conv2d.default: convolution,
    aten.conv3d.default: convolution,
    aten.conv1d.padding: convolution,
    aten.conv2d.padding: convolution,
    aten.conv_transpose1d.default: transposed_convolution,
    aten.conv_transpose2d.input: transposed_convolution,
    aten.conv_transpose3d.input: transposed_convolution,
    aten.embedding.default: embedding,
    aten.scaled_dot_product_attention.default: attention,
}
