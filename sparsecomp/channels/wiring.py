"""The wiring of a graph while it is read: labels of values, couplings, who reads what, and what is pinned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import networkx as nx
import numpy as np
import torch
from torch import fx

from sparsecomp.channels.labels import Labels, along, expanded, extents
from sparsecomp.constants import readers
from sparsecomp.program import attribute

aten = torch.ops.aten

Role = Literal["produces", "scales", "reads"]


@dataclass(frozen=True)
class Place:
    """A dimension of a parameter and the label of each of its indices.

    `rows` confines it to a range of the first dimension, that of one group of a grouped convolution.
    """

    parameter: str
    dimension: int
    labels: Labels
    role: Role
    rows: tuple[int, int] | None = None


@dataclass(frozen=True)
class Reading:
    """An operator that multiplies a labelled axis by columns of a weight and adds up.

    `labels`: one per input channel. The weight, read as outputs x inputs/groups x ..., has its inputs in
    dimension `inputs` and its outputs in `outputs`.
    """

    node: fx.Node
    source: fx.Node
    parameter: str
    labels: Labels
    results: Labels
    inputs: int
    outputs: int
    groups: int = 1


class Wiring:
    """Filled in by the rules, operator by operator; nodes of `couplings` are labels, edges say who couples."""

    def __init__(self, graph: fx.GraphModule) -> None:
        self.graph = graph
        self.couplings = nx.Graph()
        self.pins: dict[int, str] = {}
        self.labels: dict[fx.Node, Labels | tuple[Labels | None, ...] | None] = {}
        """Of every value; several for operators of several results; None: nothing can be removed from it."""
        self.reasons: dict[fx.Node, str] = {}
        """Why nothing can be removed from a value."""
        self.places: list[Place] = []
        self.readings: list[Reading] = []
        self._sharing = _sharing(graph)

    # What rules ask ---------------------------------------------------------------------------------------

    def of(self, node: object) -> Labels | None:
        labels = self.labels.get(node) if isinstance(node, fx.Node) else None
        return labels if isinstance(labels, np.ndarray) else None

    def vector(self, node: fx.Node, axis: int) -> Labels | None:
        """The labels of an axis; pinned where they change along others too."""
        labels = self.of(node)
        if labels is None:
            return None
        found = along(labels, axis)
        if found is None or found.size != extents(node)[axis]:
            self.pin(labels, "channels that are spread over several dimensions are multiplied")
            return None
        return found

    def shared(self, parameter: str) -> str:
        """Why a parameter cannot be cut, if other operators or names share it."""
        return self._sharing.get(id(attribute(self.graph, parameter)), "")

    # What rules say ---------------------------------------------------------------------------------------

    def fresh(self, size: int) -> Labels:
        start = self.couplings.number_of_nodes()
        made = np.arange(start, start + size)
        self.couplings.add_nodes_from(made.tolist())
        return made

    def couple(self, left: Labels, right: Labels, by: str) -> None:
        """Element by element, as they broadcast."""
        a, b = np.broadcast_arrays(left, right)
        differ = a != b
        pairs = zip(a[differ].tolist(), b[differ].tolist(), strict=True)
        self.couplings.add_edges_from(pairs, by=by)

    def merge(self, labels: Labels, by: str) -> None:
        """All into one unit."""
        flat = labels.reshape(-1)
        self.couple(flat[1:], flat[:-1], by)

    def pin(self, labels: Labels | tuple[Labels | None, ...] | None, reason: str) -> None:
        """These must stay; the first reason counts."""
        for part in labels if isinstance(labels, tuple) else (labels,):
            if part is not None:
                for label in np.unique(part).tolist():
                    self.pins.setdefault(label, reason)

    def pin_inputs(self, node: fx.Node, reason: str) -> None:
        for source in node.all_input_nodes:
            self.pin(self.labels.get(source), reason)

    def place(self, parameter: str, dimension: int, labels: Labels, role: Role) -> None:
        self.places.append(Place(parameter, dimension, labels, role))

    def written_out(self, node: fx.Node, axis: int) -> Labels | None:
        """The value's labels with this axis written out; where it has none, new ones that are pinned."""
        labels, sizes = self.of(node), extents(node)
        size = sizes[axis]
        if not isinstance(size, int):
            return None
        if labels is None:
            shape = [1] * len(sizes)
            shape[axis] = size
            labels = self.fresh(size).reshape(shape)
            self.pin(labels, self.reasons.get(node, "a constant"))
        return expanded(labels, sizes, [axis])


def operand_name(node: fx.Node) -> str:
    """How a reason calls a value."""
    return f"the input {node.name!r}" if node.op == "placeholder" else f"%{node.name}"


def _sharing(graph: fx.GraphModule) -> dict[int, str]:
    """Tensor -> why it is not cut, for those that several operators read."""
    found: dict[int, dict[fx.Node, str]] = {}
    for node in graph.graph.nodes:
        if node.op == "get_attr":
            key = id(attribute(graph, str(node.target)))
            found.setdefault(key, {}).update(dict.fromkeys(readers(node), str(node.target)))
    return {
        key: f"several operators share {', '.join(sorted(set(names.values())))}"
        for key, names in found.items()
        if len(names) > 1
    }
