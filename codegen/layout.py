"""A section of the graph -> a region: which grid each value lies on, where it is converted, in what order."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

import networkx as nx

from sparsecomp.epilogue import STEPS, split_steps
from sparsecomp.geometry import Geometry, Margin, Planes, Taps, Tokens, grid, phase_size
from sparsecomp.layer import Layer
from sparsecomp.region import (
    WHOLE,
    Border,
    Call,
    Enter,
    Exit,
    Phases,
    Region,
    Rows,
    RowsKernelChoice,
    Section,
    SectionOp,
    Split,
    Value,
)


@dataclass(frozen=True)
class View:
    """A tensor of the section as a kernel reads it: whole, or split into the phases of a stride."""

    tensor: str
    stride: tuple[int, int] = (1, 1)
    phases: Phases = WHOLE


def source_view(op: SectionOp) -> View:
    """How the op's kernel reads its input. A stride of 1 reads it whole."""
    if op.layer.op == "linear" or op.layer.stride == (1, 1):
        return View(op.source)
    return View(op.source, op.layer.stride, Taps.of(op.layer).phases)


def border_of(layer: Layer, target: bool) -> Border:
    """The layer's input, or its output, as PyTorch lays it out."""
    if layer.op == "linear":
        return Border(layer.rows if target else layer.columns)
    if target:
        return Border(layer.rows, *layer.output_size)
    return Border(*layer.input_shape[1:])


def place(section: Section) -> dict[View, Value]:
    """Every view's place: channels, grid, and whether its padding must be zero.

    A kernel walks its input, its output and what its epilogue reads in step, so these share a grid. Grids are
    the connected components of that relation; each is wide enough for all its readers' padding.
    """
    if section.ops[0].layer.op == "linear":
        return _place_tokens(section)
    shared = nx.Graph()
    sizes: dict[View, tuple[int, ...]] = {}
    margins: dict[View, Margin] = {}
    spans: dict[View, int] = {}
    for op in section.ops:
        layer, view, taps = op.layer, source_view(op), Taps.of(op.layer)
        channels, height, width = layer.input_shape[1:]
        if view.stride != (1, 1):
            height, width = phase_size(layer)
            channels *= len(view.phases)
            sizes[View(op.source)] = layer.input_shape[1], *layer.input_shape[2:]
            shared.add_node(View(op.source))
        sizes[view] = channels, height, width
        margins[view] = margins.get(view, Margin()) | taps.margin(layer, height, width)
        spans[view] = max(spans.get(view, 1), taps.span)
        for name in (op.target, *op.tensors):
            sizes[View(name)] = layer.rows, *layer.output_size
            shared.add_edge(view, View(name))
    values = {}
    for component in nx.connected_components(shared):
        template = grid(
            [(sizes[view][1], sizes[view][2]) for view in component],
            _union(margins.get(view, Margin()) for view in component),
            max(spans.get(view, 1) for view in component),
        )
        for view in component:
            channels, height, width = sizes[view]
            geometry = Planes(height, width, template.row, template.plane, template.origin)
            values[view] = Value(channels, geometry, bool(margins.get(view)))
    return values


def _union(margins: Iterable[Margin]) -> Margin:
    return reduce(operator.or_, margins, Margin())


def _place_tokens(section: Section) -> dict[View, Value]:
    values = {}
    for op in section.ops:
        values[source_view(op)] = Value(op.layer.columns, Tokens())
        for name in (op.target, *op.tensors):
            values[View(name)] = Value(op.layer.rows, Tokens())
    return values


def source_geometry(section: Section) -> dict[str, Geometry]:
    """Site -> grid of its input, on which its weight stream depends."""
    values = place(section)
    return {op.site: values[source_view(op)].geometry for op in section.ops}


class _Writer:
    """Appends calls; a view is entered or split when it is first read, and exits when it is written."""

    def __init__(self, section: Section, values: Mapping[View, Value]) -> None:
        self.section, self.values = section, values
        self.names: dict[View, str] = {}
        self.calls: list[Call] = []
        self.vectors = 0

    def name(self, view: View) -> str:
        return self.names.setdefault(view, f"v{len(self.names)}")

    def read(self, view: View) -> str:
        if view in self.names:
            return self.names[view]
        if view.tensor in self.section.inputs:
            source = self.section.inputs.index(view.tensor)
            self.calls.append(Enter(source, self.name(view), view.stride, view.phases))
        else:
            whole = self.names[View(view.tensor)]
            self.calls.append(Split(whole, self.name(view), view.stride, view.phases))
        return self.names[view]

    def write(self, op: SectionOp, weight: int, choice: RowsKernelChoice, kept: int) -> None:
        source = self.read(source_view(op))
        tensors = tuple(self.read(View(name)) for name in op.tensors)
        count = sum(STEPS[step] == "vector" for step in split_steps(op.epilogue))
        vectors = tuple(range(self.vectors, self.vectors + count))
        self.vectors += count
        target = self.name(View(op.target))
        shape = (op.layer.rows, op.layer.columns)
        self.calls.append(
            Rows(
                source,
                target,
                weight,
                shape,
                kept,
                choice.pattern,
                choice.schedule,
                op.epilogue,
                vectors,
                tensors,
            )
        )
        self.calls += [Exit(target, i) for i, name in enumerate(self.section.outputs) if name == op.target]


def lay_out(section: Section, choices: Sequence[RowsKernelChoice], kept: Sequence[int]) -> Region:
    """The region of a section. `choices` and `kept` (length of a shared list, else 0) go with its ops."""
    values = place(section)
    writer = _Writer(section, values)
    for weight, (op, choice, length) in enumerate(zip(section.ops, choices, kept, strict=True)):
        writer.write(op, weight, choice, length)
    borders: dict[str, Border] = {}
    for op in section.ops:
        borders.setdefault(op.source, border_of(op.layer, target=False))
        for name in (op.target, *op.tensors):
            borders[name] = border_of(op.layer, target=True)
    return Region(
        inputs=tuple(borders[name] for name in section.inputs),
        outputs=tuple(borders[name] for name in section.outputs),
        values=tuple((name, values[view]) for view, name in writer.names.items()),
        calls=tuple(writer.calls),
    )
