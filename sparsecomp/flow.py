"""What a call runs, operator by operator: in which region, and what each one reads."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from torch import fx

from sparsecomp.primitives import REGION
from sparsecomp.program import Body, Program, operator_name
from sparsecomp.section import SectionOp, WorkOp


@dataclass(frozen=True)
class FlowOp:
    """One operator, or an input or the outputs of the model."""

    what: str
    """ "linear | bias gelu", "layer norm", "aten.embedding", "input", "output"."""
    layer: str = ""
    """Name of the layer, where it is one."""
    region: str = ""
    """The region it runs in; none for PyTorch."""
    reads: tuple[int, ...] = ()
    """Positions of the operators whose results it reads; all are before it."""

    def as_dict(self) -> dict[str, Any]:
        return {"what": self.what, "layer": self.layer, "region": self.region, "reads": list(self.reads)}


def flow_of(program: Program) -> tuple[FlowOp, ...]:
    """The operators of the program in the order in which they run. Parameters are left out, and what only takes a
    result out of a tuple."""
    flow = _Flow(program)
    for node in program.graph.graph.nodes:
        flow.add(node)
    return tuple(flow.ops)


class _Flow:
    def __init__(self, program: Program) -> None:
        self.program = program
        self.ops: list[FlowOp] = []
        self.made: dict[str, int] = {}
        """Node of the graph -> position of the operator that makes it."""
        self.results: dict[str, tuple[int, ...]] = {}
        """Node that calls a region -> positions of what makes its outputs."""

    def add(self, node: fx.Node) -> None:
        reads = tuple(self.made[read.name] for read in node.all_input_nodes if read.name in self.made)
        if node.op == "get_attr":
            return
        if node.target is REGION:
            self._add_region(node, self.program.regions[str(node.args[1])])
        elif node.target is operator.getitem and reads:
            self.made[node.name] = reads[0]
        elif node.target is operator.getitem and node.all_input_nodes[0].name in self.results:
            results = self.results[node.all_input_nodes[0].name]
            self.made[node.name] = results[cast(int, node.args[1])]
        else:
            layer = self.program.layers.get(node.name)
            self._append(node.name, FlowOp(_what(node), layer.name if layer else "", reads=reads))

    def _add_region(self, node: fx.Node, body: Body) -> None:
        name, section = str(node.args[1]).rpartition("/")[2], body.section
        sources = cast(Sequence[fx.Node], node.args[0])
        given = zip(section.inputs, sources, strict=True)
        made = {value: self.made[read.name] for value, read in given if read.name in self.made}
        for op in section.ops:
            at = len(self.ops)
            self.ops.append(replace(_inside(op, made), region=name))
            made[op.target] = at
        self.results[node.name] = tuple(made[output] for output in section.outputs)

    def _append(self, node: str, op: FlowOp) -> None:
        self.made[node] = len(self.ops)
        self.ops.append(op)


def _inside(op: SectionOp | WorkOp, made: Mapping[str, int]) -> FlowOp:
    own = op.layer.op if isinstance(op, SectionOp) else str(op.work)
    sources = (op.source,) if isinstance(op, SectionOp) else op.sources
    reads = dict.fromkeys(made[name] for name in (*sources, *op.tensors) if name in made)
    what = f"{own} | {op.epilogue}" if op.epilogue else own
    return FlowOp(what, op.layer.name if isinstance(op, SectionOp) else "", reads=tuple(reads))


def _what(node: fx.Node) -> str:
    return {"placeholder": "input", "output": "output"}.get(node.op) or operator_name(node)
