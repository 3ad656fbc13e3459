"""A section of the graph -> a region: which grid each value lies on, where it is converted, in what order."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce

import networkx as nx

from sparsecomp.epilogue import STEPS, split_steps
from sparsecomp.geometry import Geometry, Margin, Planes, Taps, TokenRows, Tokens, grid, offsets, phase_size
from sparsecomp.layer import Layer
from sparsecomp.region import (
    WHOLE,
    Apply,
    Border,
    Call,
    Depthwise,
    Enter,
    Exit,
    Phases,
    Region,
    Rows,
    RowsKernelChoice,
    Split,
    Value,
)
from sparsecomp.section import Section, SectionOp, WorkOp
from sparsecomp.work import Mean, Norm, Pool


@dataclass(frozen=True)
class View:
    """A tensor of the section as a kernel reads it: whole, or split into the phases of a stride."""

    tensor: str
    stride: tuple[int, int] = (1, 1)
    phases: Phases = WHOLE


def window_of(op: SectionOp | WorkOp) -> Layer | None:
    """The convolution that reads as the op does, where it reads more than one pixel for another."""
    if isinstance(op, SectionOp):
        return op.layer if op.layer.op != "linear" else None
    return op.work.window if isinstance(op.work, Pool) else None


def source_view(op: SectionOp | WorkOp) -> View:
    """How the op's kernel reads its first input. A stride of 1 reads it whole."""
    source = op.source if isinstance(op, SectionOp) else op.sources[0]
    window = window_of(op)
    if window is None or window.stride == (1, 1):
        return View(source)
    return View(source, window.stride, Taps.of(window).phases)


def border_of(shape: Sequence[int], images: bool) -> Border:
    """A tensor of this shape, on the example inputs, as PyTorch lays it out."""
    if not images:
        return Border(shape[-1])
    height, width = shape[2:] or (0, 0)
    return Border(shape[1], height, width)


def _shapes(op: SectionOp | WorkOp) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Of the first input and the output."""
    if isinstance(op, SectionOp):
        return op.layer.input_shape, op.layer.output_shape
    return op.input_shapes[0], op.output_shape


def place(section: Section) -> dict[View, Value]:
    """Every view's place: channels, grid, and whether its padding must be zero.

    A kernel walks its input, its output and what its epilogue reads in step, so these share a grid. Grids are
    the connected components of that relation; each is wide enough for all its readers' padding.
    """
    if not section.images:
        return _place_tokens(section)
    plan = _GridPlan()
    for op in section.ops:
        plan.add(op)
    return plan.values()


class _GridPlan:
    """Which views share a grid, and what their readers ask of it."""

    def __init__(self) -> None:
        self.shared = nx.Graph()
        self.sizes: dict[View, tuple[int, int, int]] = {}
        self.margins: dict[View, Margin] = {}
        self.spans: dict[View, int] = {}

    def add(self, op: SectionOp | WorkOp) -> None:
        view, window = source_view(op), window_of(op)
        given, made = _shapes(op)
        self._node(View(view.tensor), given)
        if window is not None:
            channels, height, width = given[1:]
            if view.stride != (1, 1):
                height, width = phase_size(window)
                self.sizes[view] = channels * len(view.phases), height, width
            taps = Taps.of(window)
            self.margins[view] = self.margins.get(view, Margin()) | taps.margin(window, height, width)
            self.spans[view] = max(self.spans.get(view, 1), taps.span)
        for name in (op.target, *op.tensors):
            self._node(View(name), made)
            if not _changes_grid(op):
                self.shared.add_edge(view, View(name))

    def _node(self, view: View, shape: Sequence[int]) -> None:
        height, width = shape[2:] or (1, 1)
        self.sizes[view] = shape[1], height, width
        self.shared.add_node(view)

    def values(self) -> dict[View, Value]:
        values = {}
        for component in nx.connected_components(self.shared):
            template = grid(
                [(self.sizes[view][1], self.sizes[view][2]) for view in component],
                reduce(operator.or_, (self.margins.get(view, Margin()) for view in component)),
                max(self.spans.get(view, 1) for view in component),
            )
            for view in component:
                channels, height, width = self.sizes[view]
                geometry = Planes(height, width, template.row, template.plane, template.origin)
                values[view] = Value(channels, geometry, bool(self.margins.get(view)))
        return values


def _changes_grid(op: SectionOp | WorkOp) -> bool:
    return isinstance(op, WorkOp) and isinstance(op.work, Mean)


def _place_tokens(section: Section) -> dict[View, Value]:
    values: dict[View, Value] = {}
    geometry = TokenRows() if section.tokens_first else Tokens(length=section.sequence)
    for op in section.ops:
        if isinstance(op, SectionOp):
            shapes = {op.source: op.layer.input_shape}
        else:
            shapes = {name: op.shapes[name] for name in op.activations}
        for name in (op.target, *op.tensors):
            shapes[name] = _shapes(op)[1]
        for name, shape in shapes.items():
            values[View(name)] = Value(shape[-1], geometry)
    return values


def source_geometry(section: Section) -> dict[str, Geometry]:
    """Site of a layer -> grid of its input, on which its weight stream depends."""
    values = place(section)
    found: dict[str, Geometry] = {}
    for op in section.layers:
        geometry = values[source_view(op)].geometry
        found[op.site] = geometry if isinstance(geometry, Planes) else geometry.tiling
    return found


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

    def layer(self, op: SectionOp, weight: int, choice: RowsKernelChoice, kept: int) -> None:
        source = self.read(source_view(op))
        tensors = tuple(self.read(View(name)) for name in op.tensors)
        shape = (op.layer.rows, op.layer.columns)
        vectors, target = self._numbers(_vector_steps(op.epilogue)), self.name(View(op.target))
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
                self.taps(op) if isinstance(choice.schedule, Depthwise) else (),
                self.reach(op),
            )
        )
        self._leave(op.target)

    def taps(self, op: SectionOp) -> tuple[int, ...]:
        geometry = self.values[source_view(op)].geometry
        return tuple(int(offset) for offset in offsets(op.layer, geometry)[0])

    def reach(self, op: SectionOp) -> tuple[int, int]:
        geometry = self.values[source_view(op)].geometry
        if op.layer.op == "linear" or not isinstance(geometry, Planes):
            return 0, 0
        taps = Taps.of(op.layer)
        shifts = [down * geometry.row + right for _, down in taps.rows for _, right in taps.columns]
        return max(0, -min(shifts)), max(0, *shifts)

    def work(self, op: WorkOp) -> None:
        rest = op.activations[1:]
        sources = (self.read(source_view(op)), *(self.read(View(name)) for name in rest))
        tensors = tuple(self.read(View(name)) for name in op.tensors)
        own = op.work.weight + op.work.bias if isinstance(op.work, Norm) else 0
        vectors, target = self._numbers(own + _vector_steps(op.epilogue)), self.name(View(op.target))
        plain = tuple(map(self.section.inputs.index, op.plain))
        self.calls.append(Apply(op.work, sources, target, op.epilogue, vectors, tensors, plain))
        self._leave(op.target)

    def _numbers(self, count: int) -> tuple[int, ...]:
        self.vectors += count
        return tuple(range(self.vectors - count, self.vectors))

    def _leave(self, name: str) -> None:
        value = self.names[View(name)]
        self.calls += [Exit(value, i) for i, output in enumerate(self.section.outputs) if output == name]


def _vector_steps(epilogue: str) -> int:
    return sum(STEPS[step] == "vector" for step in split_steps(epilogue))


def lay_out(section: Section, choices: Sequence[RowsKernelChoice], kept: Sequence[int]) -> Region:
    """The region of a section. `choices` and `kept` (length of a shared list, else 0) go with its layers."""
    values = place(section)
    writer = _Writer(section, values)
    how = iter(enumerate(zip(choices, kept, strict=True)))
    for op in section.ops:
        if isinstance(op, SectionOp):
            weight, (choice, length) = next(how)
            writer.layer(op, weight, choice, length)
        else:
            writer.work(op)
    borders = _borders(section)
    return Region(
        inputs=tuple(borders[name] for name in section.inputs),
        outputs=tuple(borders[name] for name in section.outputs),
        values=tuple((name, values[view]) for view, name in writer.names.items()),
        calls=tuple(writer.calls),
    )


def _borders(section: Section) -> dict[str, Border]:
    """How PyTorch lays out each tensor of the section."""
    borders: dict[str, Border] = {}
    for op in section.ops:
        given, made = _shapes(op)
        shapes = op.shapes if isinstance(op, WorkOp) else {op.source: given}
        for name, shape in shapes.items():
            if isinstance(op, WorkOp) and name in op.plain:
                borders[name] = replace(border_of(shape, images=True), shared=op.shared_mask)
            else:
                borders[name] = border_of(shape, section.images)
        for name in (op.target, *op.tensors):
            borders[name] = border_of(made, section.images)
    return borders
