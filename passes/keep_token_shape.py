"""Let layers on tokens work on the shape that their neighbours have, so that nothing stands between them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import fx

from sparsecomp.layer import Layer
from sparsecomp.passes.remove_copies import is_returned
from sparsecomp.primitives import ROWS_LINEAR
from sparsecomp.program import Program

aten = torch.ops.aten
RESHAPES = (aten.reshape.default, aten.view.default, aten._unsafe_view.default)


@dataclass(frozen=True)
class KeepTokenShape:
    """rows_linear(reshape(x, [-1, C]))   ->   reshape(rows_linear(x), [-1, M])
    reshape(reshape(y, a), b)          ->   reshape(y, b)
    reshape(y, its own shape)          ->   y

    Only reshapes that keep the last dimension are moved: a linear layer does not mind how tokens are arranged.
    """

    name: ClassVar[str] = "keep-token-shape"

    def __call__(self, program: Program) -> Program:
        graph = program.edit()
        layers, changed = dict(program.layers), False
        for node in list(graph.graph.nodes):
            if node.target is ROWS_LINEAR:
                moved = _move_behind(graph.graph, node, layers[node.name])
                layers[node.name] = moved or layers[node.name]
                changed |= moved is not None
            elif node.target in RESHAPES:
                changed |= _shorten(node)
        return replace(program.with_graph(graph), layers=layers) if changed else program


def same_shape(left: Sequence[Any], right: Sequence[Any]) -> bool:
    """Equal extents; symbolic ones must be the same expression."""
    return len(left) == len(right) and all(str(a) == str(b) for a, b in zip(left, right, strict=True))


def _move_behind(graph: fx.Graph, layer: fx.Node, known: Layer) -> Layer | None:
    """Let the layer read what is reshaped; returns what is then known of it, None where it cannot."""
    reshape = layer.args[0]
    if not isinstance(reshape, fx.Node) or reshape.target not in RESHAPES or not _keeps_channels(reshape):
        return None
    x = reshape.args[0]
    assert isinstance(x, fx.Node)
    before, made = x.meta["val"].shape, layer.meta["val"]
    example = _example_shape(before, known.input_shape)
    if len(before) < 2 or example is None:
        return None
    layer.args = (x, *layer.args[1:])
    layer.meta = {**layer.meta, "val": x.meta["val"].new_empty((*before[:-1], made.shape[-1]))}
    with graph.inserting_after(layer):
        behind = graph.call_function(aten.reshape.default, (layer, _target(reshape, made.shape[-1])))
    behind.meta["val"] = made
    layer.replace_all_uses_with(behind, delete_user_cb=lambda user: user is not behind)
    return replace(known, input_shape=example)


def _example_shape(shape: Sequence[Any], reshaped: tuple[int, ...]) -> tuple[int, ...] | None:
    """The shape on the example inputs, of a tensor whose reshaped form is known; one extent may be symbolic."""
    known = math.prod(extent for extent in shape if isinstance(extent, int))
    symbolic = sum(not isinstance(extent, int) for extent in shape)
    total = math.prod(reshaped)
    if symbolic > 1 or known == 0 or total % known or (not symbolic and total != known):
        return None
    return tuple(extent if isinstance(extent, int) else total // known for extent in shape)


def _target(reshape: fx.Node, channels: Any) -> list[Any]:
    """The reshape's shape, for as many channels."""
    shape: Any = reshape.args[1]
    return [*shape[:-1], channels]


def _shorten(reshape: fx.Node) -> bool:
    """Skip the reshapes before this one; drop it where nothing is left to do.

    One that is returned stays as it is: of the reshapes before it one may have made a copy, without which
    the caller would get a view of an input.
    """
    if is_returned(reshape):
        return False
    source: Any = reshape.args[0]
    changed = False
    while source.target in RESHAPES and _keeps_channels(source):
        source, changed = source.args[0], True
    if same_shape(source.meta["val"].shape, reshape.meta["val"].shape):
        reshape.replace_all_uses_with(source)
        return True
    if changed:
        reshape.args = (source, *reshape.args[1:])
    return changed


def _keeps_channels(reshape: fx.Node) -> bool:
    source: Any = reshape.args[0]
    before, after = source.meta["val"].shape, reshape.meta["val"].shape
    return bool(before and after and str(before[-1]) == str(after[-1]))
