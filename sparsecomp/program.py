"""A program: the graph, what is known of its layers, what was decided for them. Every stage runs and prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, fx

from sparsecomp.choice import Choice
from sparsecomp.errors import InvalidProgramError
from sparsecomp.facts import Facts
from sparsecomp.layer import Layer
from sparsecomp.pattern import PackedRows
from sparsecomp.region import RowsKernelChoice
from sparsecomp.section import Section, WorkOp
from sparsecomp.slimming import Slimming


@dataclass(frozen=True)
class Body:
    """What a region stands for: its section, and the weights, operands and choices of its sites."""

    section: Section
    packed: Mapping[str, PackedRows]
    """Site -> canonical weights; may lack those that were packed for another region already."""
    vectors: Mapping[str, tuple[Tensor, ...]]
    """Site -> per-channel operands of its epilogue."""
    how: Mapping[str, RowsKernelChoice]
    ended_by: tuple[str, ...] = ()
    """Operators outside that read the region's outputs: why it does not go on."""


@dataclass(frozen=True)
class FoundWork:
    """Work between layers that a region can hold, and its per-channel operands."""

    op: WorkOp
    vectors: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class Program:
    """Keys of the mappings are call sites: names of nodes in `graph`; of `regions`, names given to regions.

    `graph` is flat: a placeholder per input tensor, a tuple of tensors as output, functional ATen operators,
    weights as `get_attr`.
    """

    graph: fx.GraphModule
    layers: Mapping[str, Layer] = field(default_factory=dict)
    untouched: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """Site -> (name, reason) of operators with a constant weight that no primitive stands for."""
    facts: Mapping[str, Facts] = field(default_factory=dict)
    choices: Mapping[str, Choice] = field(default_factory=dict)
    works: Mapping[str, FoundWork] = field(default_factory=dict)
    regions: Mapping[str, Body] = field(default_factory=dict)
    slimming: Slimming | None = None

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        with torch.no_grad():
            outputs: tuple[Tensor, ...] = self.graph(*inputs)
        return outputs

    def weight(self, site: str) -> Tensor:
        """The layer's weight as a matrix rows x columns."""
        layer = self.layers[site]
        return layer.matrix(attribute(self.graph, layer.weight).detach())

    def edit(self) -> fx.GraphModule:
        """A copy of the graph to change: new nodes of the same names, shared tensors."""
        graph = fx.Graph()
        copied: dict[fx.Node, fx.Node] = {}
        output = graph.graph_copy(self.graph.graph, copied)
        graph.output(output)
        return fx.GraphModule(self.graph, graph)

    def with_graph(self, graph: fx.GraphModule) -> Program:
        """This program with an edited graph; what nothing reads any more is dropped with its weights."""
        graph.graph.eliminate_dead_code()
        return replace(self, graph=fx.GraphModule(graph, graph.graph))

    def check(self) -> None:
        """Raise InvalidProgramError unless the graph is well formed and every choice names a layer."""
        try:
            self.graph.graph.lint()
        except RuntimeError as error:
            raise InvalidProgramError(f"the graph is malformed: {error}") from error
        strangers = [site for site in (*self.facts, *self.choices) if site not in self.layers]
        if strangers:
            raise InvalidProgramError(f"facts or choices of call sites that are no layers: {strangers}")

    def __str__(self) -> str:
        return print_graph(self.graph)


def attribute(module: torch.nn.Module, path: str) -> Tensor:
    """The tensor behind a `get_attr` path."""
    found: object = module
    for part in path.split("."):
        found = getattr(found, part)
    assert isinstance(found, Tensor)
    return found


def print_graph(graph: fx.GraphModule) -> str:
    """One line per operator: `%add = aten.add.Tensor(%x, %y)  # 2x16`; weights are named where they are read."""
    lines = []
    for node in graph.graph.nodes:
        match node.op:
            case "placeholder":
                lines.append(f"%{node.name} = input  # {_shape(node)}")
            case "get_attr":
                continue
            case "output":
                lines.append(f"return {_argument(node.args[0])}")
            case _:
                arguments = [_argument(a) for a in node.args]
                arguments += [f"{key}={_argument(a)}" for key, a in node.kwargs.items()]
                lines.append(
                    f"%{node.name} = {operator_name(node)}({', '.join(arguments)})  # {_shape(node)}"
                )
    return "\n".join(lines)


def operator_name(node: fx.Node) -> str:
    """`aten.linear`, `sparsecomp.rows_linear`, `getitem`."""
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        return str(target).removesuffix(".default")
    return getattr(target, "__name__", str(target))


def _argument(value: object) -> str:
    if isinstance(value, fx.Node):
        return str(value.target) if value.op == "get_attr" else f"%{value.name}"
    if isinstance(value, str):
        return repr(value)
    if isinstance(value, Sequence):
        return "[" + ", ".join(_argument(item) for item in value) + "]"
    return str(value)


def _shape(node: fx.Node) -> str:
    value = node.meta.get("val")
    return "x".join(str(extent) for extent in value.shape) if isinstance(value, Tensor) else "?"
