"""The channels of a graph: labels of every value, joined to units."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import networkx as nx
import numpy as np
from torch import fx

from sparsecomp.channels.labels import Labels
from sparsecomp.channels.rules import RULES, unknown
from sparsecomp.channels.wiring import Place, Reading, Wiring, operand_name


@dataclass(frozen=True)
class Channels:
    """What belongs together in one graph. Labels are of units, numbered from 0."""

    units: int
    labels: Mapping[fx.Node, Labels]
    """Of every value that can shrink (see `labels.py`)."""
    places: tuple[Place, ...]
    """Where units cross parameters."""
    readings: tuple[Reading, ...]
    """Where units are multiplied and added up, which is where one that is dead can be left out."""
    pins: Mapping[int, str]
    """Unit -> why it must stay."""
    couplings: nx.Graph
    """As the operators made them: nodes are labels before they were joined, edges name the operator in `by`."""


def find_channels(graph: fx.GraphModule) -> Channels:
    """Read a captured graph, operator by operator.

    graph: flat and functional, with the values' shapes in `meta["val"]`, as `capture` makes it. Operators
        without a rule pin what they touch; nothing raises.
    """
    wiring = Wiring(graph)
    for node in graph.graph.nodes:
        match node.op:
            case "placeholder":
                wiring.reasons[node] = f"{operand_name(node)} keeps its size"
            case "get_attr":
                wiring.reasons[node] = f"the constant {node.target!r}"
            case "output":
                wiring.pin_inputs(node, "an output of the model")
            case _:
                wiring.labels[node] = RULES.get(node.target, unknown)(wiring, node)
    return _joined(wiring)


def _joined(wiring: Wiring) -> Channels:
    count = wiring.couplings.number_of_nodes()
    unit = np.zeros(count, dtype=np.int64)
    components = sorted(map(sorted, nx.connected_components(wiring.couplings)))
    for number, members in enumerate(components):
        unit[members] = number
    pins: dict[int, str] = {}
    for label, reason in wiring.pins.items():
        pins.setdefault(int(unit[label]), reason)
    labels = {node: unit[found] for node, found in wiring.labels.items() if isinstance(found, np.ndarray)}
    places = tuple(replace(place, labels=unit[place.labels]) for place in wiring.places)
    readings = tuple(
        replace(reading, labels=unit[reading.labels], results=unit[reading.results])
        for reading in wiring.readings
    )
    return Channels(len(components), labels, places, readings, pins, wiring.couplings)
