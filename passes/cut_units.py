"""Take units out of a graph: every value, parameter and literal size shrinks to what stays."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from sparsecomp.channels import Channels
from sparsecomp.channels.fixed import CONVOLUTIONS, TRANSPOSED, Floats, bias_of
from sparsecomp.channels.labels import Labels, arguments, extents
from sparsecomp.channels.moves import RESHAPES, SPLITS, split_axis
from sparsecomp.channels.removal import Removal
from sparsecomp.channels.rules import ELEMENTWISE
from sparsecomp.channels.views import constant
from sparsecomp.constants import constant_weight
from sparsecomp.cut_weight import Cut
from sparsecomp.program import attribute
from sparsecomp.slimming import slim_name

aten = torch.ops.aten

Kept = np.ndarray[Any, np.dtype[np.int64]]


def cut_units(graph: fx.GraphModule, channels: Channels, removal: Removal) -> dict[str, Cut]:
    """Edit `graph`, whose nodes `channels` knows by name.

        conv2d(x, w, b); batch_norm; relu   ->   the same with filters, constants and readers' columns cut
        reshape(x, [s0, 128])               ->   reshape(x, [s0, 96])

    What was a constant is added to the bias of whoever read it. Returns how each weight was cut, by the name of
    what is left.
    """
    editor = _Editor(graph, channels, removal)
    editor.run()
    return editor.cuts


class _Editor:
    def __init__(self, graph: fx.GraphModule, channels: Channels, removal: Removal) -> None:
        self.graph, self.gone = graph, np.zeros(channels.units, dtype=bool)
        self.gone[list(removal.gone)] = True
        self.labels: dict[str, Labels] = {node.name: labels for node, labels in channels.labels.items()}
        self.readings = {reading.node.name: reading for reading in channels.readings}
        self.cuts: dict[str, Cut] = {}
        self.shifts: dict[str, Floats] = {node.name: shift for node, shift in removal.shifts.items()}

    def run(self) -> None:
        # Sizes are read where they are still the old ones: results are cut after all operators.
        nodes = [node for node in self.graph.graph.nodes if node.op == "call_function"]
        for node in nodes:
            rule = CUTS.get(node.target)
            if rule is not None:
                rule(self, node)
        for node in nodes:
            self._shrink_meta(node)

    # What is known ----------------------------------------------------------------------------------------

    def kept(self, node: fx.Node, axis: int) -> Kept | None:
        """Indices of an axis that stay; None where all do."""
        labels = self.labels.get(node.name)
        if labels is None or labels.shape[axis] == 1:
            return None
        others = tuple(a for a in range(labels.ndim) if a != axis % labels.ndim)
        stay = ~self.gone[labels].all(others)
        return None if stay.all() else np.flatnonzero(stay)

    def size(self, node: fx.Node, axis: int) -> int | None:
        """Of an axis that shrinks, afterwards."""
        kept = self.kept(node, axis)
        return None if kept is None else len(kept)

    def _shrink_meta(self, node: fx.Node) -> None:
        if node.name in self.labels:
            value = node.meta["val"]
            sizes = [self.size(node, axis) or size for axis, size in enumerate(value.shape)]
            if tuple(sizes) != tuple(value.shape):
                node.meta["val"] = value.new_empty(sizes)
        elif node.target in SPLITS and self.labels.get(arguments(node)[0].name) is not None:
            self._shrink_parts(node)

    def _shrink_parts(self, node: fx.Node) -> None:
        source, counts, axis = arguments(node)[0], arguments(node)[1], split_axis(node)
        parts = node.meta["val"]
        sizes = [self.size(source, a) or size for a, size in enumerate(parts[0].shape)]
        made = []
        for index, part in enumerate(parts):
            cut = self.size(source, axis) is not None
            sizes[axis] = counts[index] if cut else part.shape[axis]
            made.append(part.new_empty(sizes))
        node.meta["val"] = made

    # What is done -----------------------------------------------------------------------------------------

    def replace_parameter(self, user: fx.Node, position: int, cut: Callable[[Tensor], Tensor]) -> None:
        """Let `user` read another parameter in place of the one behind this argument."""
        read = user.args[position]
        if not isinstance(read, fx.Node):
            return
        source = read if read.op == "get_attr" else read.args[0]
        assert isinstance(source, fx.Node)
        before = attribute(self.graph, str(source.target)).detach()
        after = cut(before)
        if after is before:
            return
        made = self.new_parameter(source, after.contiguous())
        self.cuts[str(made.target)] = Cut(str(source.target), cut)
        if read is source:
            user.update_arg(position, made)
        else:
            read.update_arg(0, made)
            read.meta["val"] = read.meta["val"].new_empty(
                tuple(reversed(after.shape)) if after.dim() == 2 else after.shape
            )

    def new_parameter(self, source: fx.Node, value: Tensor) -> fx.Node:
        """Registered beside `source`, under a name that its values give it, so that equal ones are shared."""
        owner, _, leaf = str(source.target).rpartition(".")
        module = self.graph.get_submodule(owner)
        leaf = slim_name(leaf, value)
        if not hasattr(module, leaf):
            module.register_buffer(leaf, value)
        with self.graph.graph.inserting_before(source):
            node = self.graph.graph.get_attr(f"{owner}.{leaf}" if owner else leaf)
        node.meta = dict(source.meta)
        node.meta["val"] = source.meta["val"].new_empty(value.shape)
        return node

    def set_bias(self, node: fx.Node, position: int, rows: Kept | None) -> None:
        """Cut to `rows`, with the shift of the layer added."""
        shift = self.shifts.get(node.name)
        bias = bias_of(node)
        if bias is not None:
            self.replace_parameter(
                node, position, lambda value: _shifted(_select(value, 0, rows), shift, rows)
            )
        elif shift is not None:
            weight = next(a for a in node.all_input_nodes if constant_weight(self.graph, a) is not None)
            source = weight if weight.op == "get_attr" else arguments(weight)[0]
            dtype = source.meta["val"].dtype
            value = _shifted(torch.zeros(len(shift) if rows is None else len(rows), dtype=dtype), shift, rows)
            owner = str(source.target).rpartition(".")[0]
            name = slim_name("bias", value)
            module = self.graph.get_submodule(owner)
            if not hasattr(module, name):
                module.register_buffer(name, value)
            with self.graph.graph.inserting_before(node):
                made = self.graph.graph.get_attr(f"{owner}.{name}" if owner else name)
            made.meta["val"] = source.meta["val"].new_empty(value.shape)
            self._add_bias(node, position, made)

    def _add_bias(self, node: fx.Node, position: int, bias: fx.Node) -> None:
        if node.target not in (aten.mm.default, aten.matmul.default):
            padded = list(node.args) + [None] * (position + 1 - len(node.args))
            padded[position] = bias
            node.args = tuple(padded)
            return
        with self.graph.graph.inserting_after(node):
            total = self.graph.graph.call_function(aten.add.Tensor, (node, bias))
        node.replace_all_uses_with(total, delete_user_cb=lambda user: user is not total)
        total.meta = dict(node.meta)
        self.labels[total.name] = self.labels[node.name]
        self._shrink_meta(total)


def _select(value: Tensor, dimension: int, kept: Kept | None) -> Tensor:
    return value if kept is None else value.index_select(dimension, torch.from_numpy(kept))


def _shifted(value: Tensor, shift: Floats | None, rows: Kept | None) -> Tensor:
    if shift is None:
        return value
    added = shift if rows is None else shift[rows]
    return (value.double() + torch.from_numpy(added)).to(value.dtype)


def _elementwise(cut: _Editor, node: fx.Node) -> None:
    """Constants shrink along the axes of the result that do."""
    for position, operand in enumerate(node.args):
        value = constant(cut.graph, operand)
        if value is None or not isinstance(operand, fx.Node):
            continue
        rank, shrunk = len(extents(node)), value
        for axis in range(value.dim()):
            place = axis + rank - value.dim()
            kept = cut.kept(node, place)
            if kept is not None and value.shape[axis] > 1:
                shrunk = _select(shrunk, axis, kept)
        if shrunk is not value:
            source = operand
            while source.op != "get_attr":
                source = arguments(source)[0]
            node.update_arg(position, cut.new_parameter(source, shrunk.contiguous()))


def _batch_norm(cut: _Editor, node: fx.Node) -> None:
    kept = cut.kept(arguments(node)[0], 1)
    for position in range(1, 5):
        cut.replace_parameter(node, position, lambda value: _select(value, 0, kept))


def _product(cut: _Editor, node: fx.Node) -> None:
    """linear, addmm, mm, matmul, and convolutions whose groups are 1."""
    reading = cut.readings.get(node.name)
    weight_at, bias_at = (2, 0) if node.target is aten.addmm.default else (1, 2)
    matrix = constant_weight(cut.graph, arguments(node)[weight_at])
    if node.name not in cut.labels or matrix is None:
        return
    rows = cut.kept(node, 1 if node.target in (*CONVOLUTIONS, *TRANSPOSED) else len(extents(node)) - 1)
    columns = None
    if reading is not None:
        gone = cut.gone[reading.labels]
        columns = np.flatnonzero(~gone) if gone.any() else None
        outputs, inputs = reading.outputs, reading.inputs
    else:
        outputs = matrix.dimension(0 if node.target in (aten.linear.default, *CONVOLUTIONS) else 1)
        inputs = 1 - outputs
    cut.set_bias(node, bias_at, rows)
    cut.replace_parameter(
        node, weight_at, lambda weight: _select(_select(weight, outputs, rows), inputs, columns)
    )


def _convolution(cut: _Editor, node: fx.Node) -> None:
    groups = arguments(node)[6] if len(node.args) > 6 else 1
    if groups == 1:
        _product(cut, node)
        return
    reading = cut.readings.get(node.name)
    rows = cut.kept(node, 1)
    if reading is None:  # depthwise: a channel is a group
        cut.set_bias(node, 2, rows)
        cut.replace_parameter(node, 1, lambda weight: _select(weight, 0, rows))
        if rows is not None:
            node.update_arg(6, cut.size(arguments(node)[0], 1))
        return
    gone = cut.gone[reading.labels].reshape(groups, -1)
    cut.set_bias(node, 2, rows)
    cut.replace_parameter(node, 1, lambda weight: _of_groups(weight, gone, cut.gone[reading.results]))
    node.update_arg(6, int((~gone.all(1)).sum()))


def _of_groups(weight: Tensor, gone: np.ndarray[Any, Any], lost: np.ndarray[Any, Any]) -> Tensor:
    """Rows and columns that stay, group by group. gone: groups x inputs; lost: outputs."""
    if not gone.any() and not lost.any():
        return weight
    rows = lost.reshape(len(gone), -1)
    size = rows.shape[1]
    parts = []
    for group in range(len(gone)):
        part = _select(weight[group * size : (group + 1) * size], 0, np.flatnonzero(~rows[group]))
        if not gone[group].all():
            parts.append(_select(part, 1, np.flatnonzero(~gone[group])))
    return torch.cat(parts)


def _embedding(cut: _Editor, node: fx.Node) -> None:
    kept = cut.kept(node, len(extents(node)) - 1) if node.name in cut.labels else None
    cut.replace_parameter(node, 0, lambda weight: _select(weight, 1, kept))


def _literal_sizes(cut: _Editor, node: fx.Node) -> None:
    """Sizes that are written into a reshape or an expand."""
    sizes: Sequence[Any] = arguments(node)[1]
    if node.target is aten.flatten.using_ints or node.name not in cut.labels:
        return
    made = [
        size if isinstance(size, fx.Node) or size == -1 else cut.size(node, axis) or size
        for axis, size in enumerate(sizes)
    ]
    node.update_arg(1, made)


def _slice(cut: _Editor, node: fx.Node) -> None:
    source, axis, *bounds = (*arguments(node), *(0,) * (2 - len(node.args)))[: max(2, len(node.args))]
    kept, total = cut.kept(source, axis), extents(source)[axis]
    if kept is None:
        return
    start, end, _ = slice(*(bounds[:2] or (None,))).indices(int(total))
    node.args = (source, axis, int((kept < start).sum()), int((kept < end).sum()))


def _select_index(cut: _Editor, node: fx.Node) -> None:
    source, axis, index = arguments(node)
    kept, total = cut.kept(source, axis), extents(source)[axis]
    if kept is not None:
        node.update_arg(2, int((kept < index % int(total)).sum()))


def _split(cut: _Editor, node: fx.Node) -> None:
    source, axis = arguments(node)[0], split_axis(node)
    kept = cut.kept(source, axis) if source.name in cut.labels else None
    if kept is None:
        return
    ends = np.cumsum([int(part.shape[axis]) for part in node.meta["val"]])
    counts = np.diff(np.searchsorted(kept, ends), prepend=0)
    node.target, node.kwargs = aten.split_with_sizes.default, {}
    node.args = (source, [int(count) for count in counts], axis)


CUTS: Mapping[object, Callable[[_Editor, fx.Node], None]] = {
    **dict.fromkeys(ELEMENTWISE, _elementwise),
    **dict.fromkeys((*RESHAPES, aten.expand.default), _literal_sizes),
    **dict.fromkeys(SPLITS, _split),
    **dict.fromkeys(CONVOLUTIONS, _convolution),
    **dict.fromkeys(TRANSPOSED, _product),
    **dict.fromkeys(
        (aten.linear.default, aten.addmm.default, aten.mm.default, aten.matmul.default), _product
    ),
    aten._native_batch_norm_legit_no_training.default: _batch_norm,
    aten.batch_norm.default: _batch_norm,
    aten.embedding.default: _embedding,
    aten.slice.Tensor: _slice,
    aten.select.int: _select_index,
}
"""Operators that have something to cut besides their operands."""
