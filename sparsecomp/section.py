"""A section: what the graph says of a region. Layers, and the work between them, in order, on named tensors.

What a machine runs, with memory layout, conversions and schedules, is a *region* (`sparsecomp/region.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from sparsecomp.epilogue import STEPS, apply, split_steps
from sparsecomp.layer import Layer
from sparsecomp.work import Attention, CachedAttention, Work


@dataclass(frozen=True)
class SectionOp:
    """A sparse primitive: `target` = epilogue(weight of `layer` times `source`)."""

    site: str
    """The call site: the name of its node in the program's graph."""
    layer: Layer
    source: str
    target: str
    epilogue: str = ""
    tensors: tuple[str, ...] = ()
    """Tensors of the output's shape that the epilogue reads, in order."""

    def __str__(self) -> str:
        operands = "".join(f", {name}" for name in self.tensors)
        steps = f" | {self.epilogue}" if self.epilogue else ""
        return f"{self.target} = {self.layer.op}[{self.layer.name}]({self.source}{operands}){steps}"


@dataclass(frozen=True)
class WorkOp:
    """Work between layers: `target` = epilogue(work(sources)). Shapes are those of the example inputs."""

    site: str
    work: Work
    sources: tuple[str, ...]
    input_shapes: tuple[tuple[int, ...], ...]
    target: str
    output_shape: tuple[int, ...]
    epilogue: str = ""
    tensors: tuple[str, ...] = ()
    channel: int = -1
    """Dimension of the channels: 1 in images."""
    shared_mask: bool = False
    """Whether the score mask is one for the whole batch."""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the sources."""
        return dict(zip(self.sources, self.input_shapes, strict=True))

    @property
    def activations(self) -> tuple[str, ...]:
        """The sources that are values of the region."""
        attention = isinstance(self.work, Attention | CachedAttention)
        return self.sources[:3] if attention else self.sources

    @property
    def plain(self) -> tuple[str, ...]:
        """The sources that are read as PyTorch has them: a score mask, keys and values of earlier tokens."""
        return self.sources[len(self.activations) :]

    def __str__(self) -> str:
        operands = ", ".join((*self.sources, *self.tensors))
        steps = f" | {self.epilogue}" if self.epilogue else ""
        return f"{self.target} = {self.work}({operands}){steps}"


@dataclass(frozen=True)
class Section:
    """Sparse primitives, and the work between them, that run as one region, in order; names are those of the
    program's graph."""

    inputs: tuple[str, ...]
    ops: tuple[SectionOp | WorkOp, ...]
    outputs: tuple[str, ...]
    tokens_first: bool = False
    """Whether its kernels are those for few tokens."""

    @property
    def layers(self) -> tuple[SectionOp, ...]:
        return tuple(op for op in self.ops if isinstance(op, SectionOp))

    @property
    def works(self) -> tuple[WorkOp, ...]:
        return tuple(op for op in self.ops if isinstance(op, WorkOp))

    @property
    def images(self) -> bool:
        """Whether items are images; else tokens."""
        return any(op.layer.op != "linear" for op in self.layers)

    @property
    def sequence(self) -> int:
        """Tokens of a sequence, where an operator mixes them; else 0, and tokens stand alone."""
        return next((op.input_shapes[0][1] for op in self.works if isinstance(op.work, Attention)), 0)

    def output_shape(self, name: str) -> tuple[int, ...]:
        """Of what an operator makes, when the model gets its example inputs."""
        op = next(op for op in self.ops if op.target == name)
        return op.layer.output_shape if isinstance(op, SectionOp) else op.output_shape

    def __str__(self) -> str:
        head = f"section({', '.join(self.inputs)}) -> {', '.join(self.outputs)}"
        return "\n".join([head, *(f"  {op}" for op in self.ops)])

    @property
    def input_shapes(self) -> list[tuple[int, ...]]:
        """Of the inputs, when the model gets its example inputs."""
        shapes: dict[str, tuple[int, ...]] = {}
        for op in self.ops:
            if isinstance(op, SectionOp):
                shapes.setdefault(op.source, op.layer.input_shape)
                output = op.layer.output_shape
            else:
                shapes.update(op.shapes)
                output = op.output_shape
            for name in (op.target, *op.tensors):
                shapes[name] = output
        return [shapes[name] for name in self.inputs]


def run_section(
    section: Section,
    matrix: Callable[[SectionOp], Tensor],
    vectors: Mapping[str, Sequence[Tensor]],
    inputs: Sequence[Tensor],
) -> list[Tensor]:
    """The section in plain PyTorch: `matrix` gives an op's weight, `vectors` the operands of each site."""
    values = dict(zip(section.inputs, inputs, strict=True))
    channel = 1 if section.images else -1
    for op in section.ops:
        own, steps = list(vectors[op.site]), list(split_steps(op.epilogue))
        if isinstance(op, SectionOp):
            bias = own.pop(0) if steps[:1] == ["bias"] and steps.pop(0) else None
            y = op.layer.dense(values[op.source], matrix(op), bias)
        else:
            count = len(own) - sum(STEPS[step] == "vector" for step in steps)
            y = op.work.run([values[name] for name in op.sources], own[:count], channel)
            own = own[count:]
        rest = {"vector": iter(own), "tensor": iter(values[name] for name in op.tensors)}
        operands = [next(rest[STEPS[step]]) for step in steps if STEPS[step] != "none"]
        values[op.target] = apply(y, " ".join(steps), operands, channel=channel)
    return [values[name] for name in section.outputs]
