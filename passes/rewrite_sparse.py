"""Replace the operators of chosen layers by sparse primitives with packed weights."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from sparsecomp.layer import Layer
from sparsecomp.passes.find_layers import activation
from sparsecomp.pattern import IN_PLACE, PackedRows, RowBlocks, pack
from sparsecomp.primitives import ROWS_CONV2D, ROWS_LINEAR
from sparsecomp.program import Program, attribute

aten = torch.ops.aten

Packed = dict[tuple[str, bool, RowBlocks], PackedRows]
"""By parameter, whether it is read transposed, and pattern."""


@dataclass(frozen=True)
class RewriteSparse:
    """For each layer whose choice is a kernel:

        linear(x, w, b)    ->   rows_linear(x, pack(w), "bias", [b])
        addmm(b, x, w)     ->   rows_linear(x, pack(w^T), "bias", [b])
        conv2d(x, w, b)    ->   rows_conv2d(x, pack(w), "bias", [b])
        conv1d(x, w)       ->   squeeze(rows_conv2d(unsqueeze(x), pack(w)))

    The primitive keeps the operator's name, which is the layer's call site.
    """

    name: ClassVar[str] = "rewrite-sparse"
    packed: Packed = field(default_factory=dict, compare=False)
    """What was packed before, and what is packed now."""

    def __call__(self, program: Program) -> Program:
        chosen = {site: choice.how for site, choice in program.choices.items() if choice.how}
        if not chosen:
            return program
        graph = program.edit()
        registered: dict[tuple[str, bool, RowBlocks], tuple[fx.Node, ...]] = {}
        for node in list(graph.graph.nodes):
            if node.name not in chosen:
                continue
            layer, pattern = program.layers[node.name], chosen[node.name].pattern
            key = (layer.weight, layer.transposed, pattern)
            if key not in self.packed:
                self.packed[key] = _packed(program, node.name, pattern)
            if key not in registered:
                registered[key] = _register(graph, node.name, self.packed[key])
            _rewrite(graph.graph, node, layer, registered[key], pattern)
        return program.with_graph(graph)


def _packed(program: Program, site: str, pattern: RowBlocks) -> PackedRows:
    layer = program.layers[site]
    if pattern == IN_PLACE:  # the very tensor: who moves its data is followed
        return pack(attribute(program.graph, layer.weight), pattern)
    return pack(program.weight(site), pattern, layer.groups)


def _register(graph: fx.GraphModule, site: str, packed: PackedRows) -> tuple[fx.Node, ...]:
    """Buffers for the packed weights, read at the start of the graph, where all sites can reach them."""
    nodes = []
    first = next(iter(graph.graph.nodes))
    for part in ("values", "columns", "pointers", "order"):
        tensor: Tensor = getattr(packed, part)
        graph.register_buffer(f"{site}_{part}", tensor)
        with graph.graph.inserting_before(first):
            node = graph.graph.get_attr(f"{site}_{part}")
        node.meta["val"] = tensor.to("meta")  # metadata outlives the node: it must not hold the data
        nodes.append(node)
    return tuple(nodes)


def _rewrite(
    graph: fx.Graph, node: fx.Node, layer: Layer, packed: tuple[fx.Node, ...], pattern: RowBlocks
) -> None:
    x, bias = activation(node), _bias(node)
    if bias is not None and (bias.op != "get_attr" or tuple(bias.meta["val"].shape) != (layer.rows,)):
        _add_after(graph, node, layer, bias)
        bias = None
    flags = (pattern.rows, pattern.shared, pattern.live_first)
    weight: tuple[Any, ...] = (*packed, *flags, list(layer.weight_shape))
    epilogue: tuple[Any, ...] = ("bias", [bias]) if bias is not None else ("", [])
    if layer.op == "linear":
        node.target, node.args, node.kwargs = ROWS_LINEAR, (x, *weight, *epilogue), {}
        return
    geometry = (list(layer.stride), list(layer.padding), list(layer.dilation), layer.groups)
    if layer.op == "conv1d":
        x = _around_conv1d(graph, node, x)
    node.target, node.args, node.kwargs = ROWS_CONV2D, (x, *weight, *epilogue, *geometry), {}


def _bias(node: fx.Node) -> fx.Node | None:
    """Of linear(x, w, b), conv(x, w, b, ...) and addmm(b, x, w); products have none."""
    if node.target is aten.addmm.default:
        bias = node.args[0]
    elif node.target in (aten.mm.default, aten.matmul.default):
        bias = None
    else:
        bias = node.args[2] if len(node.args) > 2 else node.kwargs.get("bias")
    return bias if isinstance(bias, fx.Node) else None


def _add_after(graph: fx.Graph, node: fx.Node, layer: Layer, bias: fx.Node) -> None:
    """A bias that is computed or broadcast is added by an operator of its own; a convolution's per channel."""
    if layer.op != "linear":
        spatial = node.meta["val"].dim() - 2
        with graph.inserting_before(node):
            bias = graph.call_function(aten.reshape.default, (bias, [1, -1, *[1] * spatial]))
        bias.meta["val"] = node.meta["val"].new_empty([1, layer.rows, *[1] * spatial])
    with graph.inserting_after(node):
        total = graph.call_function(aten.add.Tensor, (node, bias))
    total.meta["val"] = node.meta["val"]
    node.replace_all_uses_with(total, delete_user_cb=lambda user: user is not total)


def _around_conv1d(graph: fx.Graph, node: fx.Node, x: fx.Node) -> fx.Node:
    """N x C x W in and out of a two-dimensional primitive of height 1; returns its input."""
    with graph.inserting_before(node):
        flat = graph.call_function(aten.unsqueeze.default, (x, 2))
        flat.meta["val"] = x.meta["val"].unsqueeze(2)
    with graph.inserting_after(node):
        squeezed = graph.call_function(aten.squeeze.dim, (node, 2))
    squeezed.meta["val"] = node.meta["val"]
    node.meta["val"] = node.meta["val"].unsqueeze(2)
    node.replace_all_uses_with(squeezed, delete_user_cb=lambda user: user is not squeezed)
    return flat
