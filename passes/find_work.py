"""Find the work between layers that a region can hold: norms, attention, pooling, element-wise operators."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from sparsecomp.epilogue import split_steps
from sparsecomp.layer import Layer
from sparsecomp.passes.fuse_epilogues import RULES as POINTWISE
from sparsecomp.primitives import ATTENTION, EPILOGUE, PRIMITIVES, ROWS_CONV2D, attention_work
from sparsecomp.program import FoundWork, Program, attribute
from sparsecomp.section import WorkOp
from sparsecomp.work import Attention, Mean, Norm, Pointwise, Pool, Work

aten = torch.ops.aten


Found = tuple[Work, tuple[fx.Node, ...], tuple[Tensor, ...], str, tuple[fx.Node, ...]]
"""Work, sources, vectors, epilogue, tensors of the epilogue."""


def _constant(graph: fx.GraphModule, argument: Any) -> Tensor | None:
    if isinstance(argument, fx.Node) and argument.op == "get_attr":
        return attribute(graph, str(argument.target)).detach()
    return None


def _norm(graph: fx.GraphModule, node: fx.Node, images: bool) -> Found | None:
    layer = node.target is aten.layer_norm.default
    x, shape, *rest = node.args
    weight, *others = [*rest, *[None] * (3 - len(rest))]
    bias, epsilon = others[:2] if layer else (None, others[0])
    constants = [(a, _constant(graph, a)) for a in (weight, bias)]
    if images or len(shape) != 1 or any(a is not None and c is None for a, c in constants):  # type: ignore[arg-type]
        return None
    if epsilon is None:
        epsilon = 1e-5 if layer else torch.finfo(torch.float32).eps
    vectors = tuple(c for _, c in constants if c is not None)
    if any(vector.dtype != torch.float32 for vector in vectors):
        return None
    kind = "layer" if layer else "rms"
    work = Norm(kind, shape[0], float(epsilon), weight is not None, bias is not None)  # type: ignore[index,arg-type]
    return work, (x,), vectors, "", ()  # type: ignore[return-value]


def _attention(graph: fx.GraphModule, node: fx.Node, images: bool) -> Found | None:
    q, k, v, mask, *rest = node.args
    work = attention_work(*rest, mask is not None)  # type: ignore[arg-type]
    sources = (q, k, v) if mask is None else (q, k, v, mask)
    return work, sources, (), "", ()  # type: ignore[return-value]


def _pair(value: Any) -> tuple[int, int]:
    values = [value] if isinstance(value, int) else list(value)
    return values[0], values[-1]


def _pool(graph: fx.GraphModule, node: fx.Node, images: bool) -> Found | None:
    largest = node.target is aten.max_pool2d.default
    x, kernel, *rest = node.args
    stride, padding, *others = [*rest, *[[]] * (2 - len(rest))]
    height, width = _pair(kernel)
    steps = _pair(stride or kernel)
    around = _pair(padding or 0)
    dilation, ceil = [*others, 1, False][:2] if largest else (1, [*others, False][0])
    counted = largest or not any(around) or (len(others) < 2 or others[1] is True)
    divided = largest or len(others) < 3 or others[2] is None
    value = x.meta["val"]  # type: ignore[union-attr]
    fixed = value.dim() == 4 and all(isinstance(extent, int) for extent in value.shape[1:])
    if (
        not images
        or not fixed
        or not counted
        or not divided
        or (any(around) and largest and not _positive(x))
    ):
        return None
    channels = value.shape[1]
    window = Layer(
        "",
        "conv2d",
        "",
        (channels, 1, height, width),
        (1, *value.shape[1:]),
        stride=steps,
        padding=(around[0], around[0], around[1], around[1]),
        dilation=_pair(dilation or 1),
        groups=channels,
    )
    if ceil and tuple(node.meta["val"].shape[2:]) != window.output_size:
        return None
    return Pool("max" if largest else "mean", window), (x,), (), "", ()  # type: ignore[return-value]


def _positive(x: Any) -> bool:
    """Whether no value is below zero: the zeros around an image then never are the largest."""
    if x.target in PRIMITIVES:
        steps = split_steps(str(x.args[EPILOGUE]))
        return bool(steps) and steps[-1] in ("relu", "relu6", "sigmoid", "hardsigmoid")
    return x.target in (aten.relu.default, aten.relu6.default, aten.sigmoid.default)


def _mean(graph: fx.GraphModule, node: fx.Node, images: bool) -> Found | None:
    x, where, *rest = node.args
    value = x.meta["val"]  # type: ignore[union-attr]
    if not images or value.dim() != 4 or node.kwargs:
        return None
    if node.target is aten.adaptive_avg_pool2d.default:
        return (Mean(True), (x,), (), "", ()) if list(where) in ([1, 1], [1]) else None  # type: ignore[arg-type,return-value]
    over_pixels = sorted(dim % 4 for dim in where) == [2, 3]  # type: ignore[operator,union-attr]
    return (Mean(bool(rest and rest[0])), (x,), (), "", ()) if over_pixels else None  # type: ignore[return-value]


def _pointwise(graph: fx.GraphModule, node: fx.Node, images: bool) -> Found | None:
    """One step of an epilogue that no layer could take."""
    x = next((a for a in node.args if isinstance(a, fx.Node) and a.op != "get_attr"), None)
    if x is None or node.target in (
        aten.batch_norm.default,
        aten._native_batch_norm_legit_no_training.default,
    ):
        return None
    extra = POINTWISE[node.target](graph, x, node)
    if extra is None or " " in extra[0]:
        return None
    tensors = tuple(operand for operand in extra[1] if isinstance(operand, fx.Node))
    if any(isinstance(operand, Tensor) for operand in extra[1]):
        return None  # a vector's channel dimension is known only behind a layer
    return Pointwise(), (x,), (), extra[0], tensors


WORKS: Mapping[object, Callable[[fx.GraphModule, fx.Node, bool], Found | None]] = {
    aten.layer_norm.default: _norm,
    aten.rms_norm.default: _norm,
    ATTENTION: _attention,
    aten.max_pool2d.default: _pool,
    aten.avg_pool2d.default: _pool,
    aten.adaptive_avg_pool2d.default: _mean,
    aten.mean.dim: _mean,
    **dict.fromkeys(POINTWISE, _pointwise),
}
"""Operators that a region can hold. A new one is one function and one line."""


@dataclass(frozen=True)
class FindWork:
    """Records a `WorkOp` for each operator that a region can hold besides its layers.

    Whether a tensor holds images or tokens follows from the layers: what a convolution makes are images, and so
    is what is made of them.
    """

    name: ClassVar[str] = "find-work"
    inputs: tuple[Tensor, ...]

    def __call__(self, program: Program) -> Program:
        if not program.choices or not any(choice.how for choice in program.choices.values()):
            return program
        graph, shapes = program.graph, _ExampleShapes(program.graph, self.inputs)
        works: dict[str, FoundWork] = {}
        images: set[fx.Node] = set()
        for node in graph.graph.nodes:
            if node.target is ROWS_CONV2D:
                images.add(node)
            if node.target not in WORKS or not _float32(node):
                continue
            of_images = bool(images.intersection(node.all_input_nodes)) or _feeds_convolution(node)
            found = WORKS[node.target](graph, node, of_images)
            if found is None or not all(map(_float32, (*found[1], *found[4]))):
                continue
            work, sources, vectors, epilogue, tensors = found
            works[node.name] = FoundWork(
                WorkOp(
                    node.name,
                    work,
                    tuple(source.name for source in sources),
                    tuple(shapes.of(source) for source in sources),
                    node.name,
                    shapes.of(node),
                    epilogue,
                    tuple(tensor.name for tensor in tensors),
                    1 if of_images else -1,
                    isinstance(work, Attention) and work.masked and sources[3].meta["val"].shape[0] == 1,
                ),
                vectors,
            )
            if of_images and not isinstance(work, Mean):
                images.add(node)
        return replace(program, works=works)


def _feeds_convolution(node: fx.Node) -> bool:
    return any(user.target is ROWS_CONV2D and user.args[0] is node for user in node.users)


def _float32(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.dtype == torch.float32


class _ExampleShapes:
    """Shapes of the graph's tensors when it gets the example inputs: symbols stand for extents of those."""

    def __init__(self, graph: fx.GraphModule, inputs: Sequence[Tensor]) -> None:
        self.extents: dict[Any, int] = {}
        placeholders = [node for node in graph.graph.nodes if node.op == "placeholder"]
        for node, example in zip(placeholders, inputs, strict=True):
            value = node.meta.get("val")
            for symbolic, extent in zip(
                value.shape if isinstance(value, Tensor) else (), example.shape, strict=False
            ):
                if isinstance(symbolic, torch.SymInt):
                    self.extents[symbolic.node.expr] = extent

    def of(self, node: fx.Node) -> tuple[int, ...]:
        return tuple(
            int(extent.node.expr.subs(self.extents)) if isinstance(extent, torch.SymInt) else int(extent)
            for extent in node.meta["val"].shape
        )
