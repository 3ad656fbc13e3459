"""Find the work between layers that a region can hold: norms, attention, pooling, element-wise operators."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, fx

from sparsecomp.constants import constant_tensor
from sparsecomp.epilogue import split_steps
from sparsecomp.layer import Layer
from sparsecomp.passes.fuse_epilogues import RULES as POINTWISE
from sparsecomp.primitives import (
    ATTENTION,
    CACHED_ATTENTION,
    EPILOGUE,
    PRIMITIVES,
    ROWS_CONV2D,
    attention_work,
    cached_attention_work,
)
from sparsecomp.program import FoundWork, Program
from sparsecomp.section import WorkOp
from sparsecomp.work import Attention, Mean, Norm, Pointwise, Pool, Work

aten = torch.ops.aten


Found = tuple[Work, tuple[fx.Node, ...], tuple[Tensor, ...], str, tuple[fx.Node, ...]]
"""Work, sources, vectors, epilogue, tensors of the epilogue."""


def _arguments(node: fx.Node, defaults: Sequence[Any]) -> list[Any]:
    """Positional arguments; those left out as in `defaults`, which has one for each."""
    return [*node.args, *defaults[len(node.args) :]]


def _norm(graph: fx.GraphModule, node: fx.Node, images: bool) -> Found | None:
    x: fx.Node
    bias: Any = None
    if node.target is aten.layer_norm.default:
        x, shape, weight, bias, epsilon, *_ = _arguments(node, (None, None, None, None, 1e-5))
    else:
        x, shape, weight, epsilon = _arguments(node, (None, None, None, None))
    constants = [(a, constant_tensor(graph, a)) for a in (weight, bias)]
    fixed = len(shape) == 1 and isinstance(shape[0], int)
    if images or not fixed or any(a is not None and c is None for a, c in constants):
        return None
    if epsilon is None:
        epsilon = torch.finfo(torch.float32).eps
    vectors = tuple(c for _, c in constants if c is not None)
    if any(vector.dtype != torch.float32 for vector in vectors):
        return None
    kind: Literal["layer", "rms"] = "layer" if node.target is aten.layer_norm.default else "rms"
    work = Norm(kind, shape[0], float(epsilon), weight is not None, bias is not None)
    return work, (x,), vectors, "", ()


def _attention(graph: fx.GraphModule, node: fx.Node, images: bool) -> Found | None:
    q, k, v, mask, heads, sizes, scale, causal, starts = _arguments(node, ())
    work = attention_work(heads, sizes, scale, causal, starts, mask is not None)
    sources = (q, k, v) if mask is None else (q, k, v, mask)
    return work, sources, (), "", ()


def _cached_attention(graph: fx.GraphModule, node: fx.Node, images: bool) -> Found | None:
    q, k, v, keys, values, heads, scale, starts = _arguments(node, ())
    work = cached_attention_work(keys.meta["val"].shape, values.meta["val"].shape, heads, scale, starts)
    return work, (q, k, v, keys, values), (), "", ()


def _pair(value: Any) -> tuple[int, int]:
    values = [value] if isinstance(value, int) else list(value)
    return values[0], values[-1]


def _pool(graph: fx.GraphModule, node: fx.Node, images: bool) -> Found | None:
    x: fx.Node
    dilation, counted, divisor = 1, True, None
    if node.target is aten.max_pool2d.default:
        kind: Literal["max", "mean"] = "max"
        x, kernel, stride, padding, dilation, ceil = _arguments(node, (None, None, [], 0, 1, False))
    else:
        kind = "mean"
        x, kernel, stride, padding, ceil, counted, divisor = _arguments(
            node, (None, None, [], 0, False, True, None)
        )
    around = _pair(padding)
    # what a kernel finds around an image are zeros
    readable = not any(around) or (_positive(x) if kind == "max" else counted)
    if not images or not _fixed_size(x) or not readable or divisor is not None:
        return None
    window = _window(x, _pair(kernel), _pair(stride or kernel), around, _pair(dilation))
    if ceil and tuple(node.meta["val"].shape[2:]) != window.output_size:
        return None
    return Pool(kind, window), (x,), (), "", ()


def _window(
    x: fx.Node,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    around: tuple[int, int],
    dilation: tuple[int, int],
) -> Layer:
    """The depthwise convolution that reads the same pixels."""
    shape = x.meta["val"].shape
    return Layer(
        "",
        "conv2d",
        "",
        (shape[1], 1, *kernel),
        (1, *shape[1:]),
        stride=stride,
        padding=(around[0], around[0], around[1], around[1]),
        dilation=dilation,
        groups=shape[1],
    )


def _fixed_size(x: fx.Node) -> bool:
    """Whether it holds images of a size known when the model is compiled, as a region's layout must be."""
    shape = x.meta["val"].shape
    return len(shape) == 4 and all(isinstance(extent, int) for extent in shape[1:])


def _positive(x: fx.Node) -> bool:
    """Whether no value is below zero: the zeros around an image then never are the largest."""
    if x.target in PRIMITIVES:
        steps = split_steps(str(x.args[EPILOGUE]))
        return bool(steps) and steps[-1] in ("relu", "relu6", "sigmoid", "hardsigmoid")
    return x.target in (aten.relu.default, aten.relu6.default, aten.sigmoid.default)


def _mean(graph: fx.GraphModule, node: fx.Node, images: bool) -> Found | None:
    x: fx.Node
    x, where, keep = _arguments(node, (None, None, node.target is aten.adaptive_avg_pool2d.default))
    if not images or not _fixed_size(x) or node.kwargs or where is None:
        return None
    if node.target is aten.adaptive_avg_pool2d.default:
        over_pixels = list(where) in ([1, 1], [1])
    else:
        over_pixels = sorted(dim % 4 for dim in where) == [2, 3]
    return (Mean(keep), (x,), (), "", ()) if over_pixels else None


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
    CACHED_ATTENTION: _cached_attention,
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
                    isinstance(work, Attention) and work.masked and _of_all(sources[3]),
                ),
                vectors,
            )
            if of_images and not isinstance(work, Mean):
                images.add(node)
        return replace(program, works=works)


def _of_all(mask: fx.Node) -> bool:
    """Whether it is one for the whole batch, whatever the batch."""
    items = mask.meta["val"].shape[0]
    return isinstance(items, int) and items == 1  # a symbol would give a symbol


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
