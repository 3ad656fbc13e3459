"""Find every place where a constant weight multiplies activations."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from sparsecomp.constants import Weight, constant_weight, readers
from sparsecomp.layer import Layer
from sparsecomp.passes.remove_copies import PADS
from sparsecomp.program import Program, operator_name
from sparsecomp.region import FEW_TOKENS
from sparsecomp.slimming import full_name

aten = torch.ops.aten

OWN_FOLDER = str(Path(__file__).parent.parent)
UNSUPPORTED = {
    aten.conv_transpose1d.default: "transposed convolution",
    aten.conv_transpose2d.input: "transposed convolution",
    aten.conv_transpose3d.input: "transposed convolution",
    aten.conv3d.default: "three-dimensional convolution",
    aten.embedding.default: "embedding",
    aten.embedding_bag.default: "embedding",
    aten.lstm.input: "recurrent layer",
    aten.gru.input: "recurrent layer",
    aten.rnn_tanh.input: "recurrent layer",
    aten.rnn_relu.input: "recurrent layer",
    aten.bilinear.default: "bilinear layer",
    aten.einsum.default: "einsum",
    aten.bmm.default: "batched product",
    aten.baddbmm.default: "batched product",
}


Found = tuple[Weight, dict[str, Any]] | str
"""The weight and the fields of its layer, or why no primitive stands for the operator."""


def _linear(weight: Weight | None) -> Found:
    if weight is None:
        return "the weight is computed, not a constant"
    if weight.value.dim() != 2:
        return f"the weight has {weight.value.dim()} dimensions"
    return weight, {"op": "linear"}


def _match_linear(graph: fx.GraphModule, node: fx.Node) -> Found:
    return _linear(constant_weight(graph, weight_argument(node)))


def _match_matmul(graph: fx.GraphModule, node: fx.Node) -> Found:
    """`x @ w` reads the weight in x out, so a layer as PyTorch's linear has it seems transposed."""
    weight = constant_weight(graph, weight_argument(node))
    return _linear(replace(weight, transposed=not weight.transposed) if weight else None)


def _match_addmm(graph: fx.GraphModule, node: fx.Node) -> Found:
    if any(node.kwargs.get(scale, 1) != 1 for scale in ("beta", "alpha")):
        return "addmm scales its operands"
    weight = constant_weight(graph, weight_argument(node))
    return _linear(replace(weight, transposed=not weight.transposed) if weight else None)


def _match_conv(graph: fx.GraphModule, node: fx.Node) -> Found:
    weight = constant_weight(graph, weight_argument(node))
    if weight is None or weight.transposed:
        return "the weight is computed, not a constant"
    dimensions = weight.value.dim() - 2
    if len(node.args[0].meta["val"].shape) != dimensions + 2:  # type: ignore[union-attr]
        return "the input has no batch dimension"
    defaults: list[Any] = [None, 1, 0, 1, 1]
    settings: list[Any] = [*node.args[2:], *defaults[len(node.args) - 2 :]]
    _, stride, padding, dilation, groups = settings
    sides = padding_sides(padding, weight.value.shape[2:], dilation)
    if sides is None:
        return f"padding {padding!r} is not the same on both sides"
    around = [own + before for own, before in zip(sides, _padding_before(node), strict=True)]
    return weight, {
        "op": f"conv{dimensions}d",
        "stride": _pair(stride, dimensions, 1),
        "padding": tuple(around),
        "dilation": _pair(dilation, dimensions, 1),
        "groups": groups,
    }


def padding_sides(
    padding: str | int | Sequence[int], kernel: Sequence[int], dilation: int | Sequence[int]
) -> tuple[int, int, int, int] | None:
    """A convolution's own padding: top, bottom, left, right; None for "same" where it is uneven."""
    dimensions = len(kernel)
    steps = _pair(dilation, dimensions, 1)[-dimensions:]
    if padding == "same":
        totals = [step * (extent - 1) for step, extent in zip(steps, kernel, strict=True)]
        if any(total % 2 for total in totals):
            return None
        padding = [total // 2 for total in totals]
    elif isinstance(padding, str):
        padding = 0
    height, width = _pair(padding, dimensions, 0)
    return height, height, width, width


def _padding_before(node: fx.Node) -> list[int]:
    """Zeros that an operator of their own puts around the image: top, bottom, left, right."""
    source = node.args[0]
    if not isinstance(source, fx.Node) or source.target not in PADS:
        return [0, 0, 0, 0]
    amounts = list(source.args[1])  # type: ignore[arg-type]
    mode = source.args[2] if source.target is aten.pad.default and len(source.args) > 2 else "constant"
    value = source.args[-1] if len(source.args) > (3 if source.target is aten.pad.default else 2) else None
    dimensions = len(source.meta["val"].shape) - 2
    fits = len(amounts) <= 2 * dimensions and all(isinstance(a, int) and a >= 0 for a in amounts)
    if mode != "constant" or value not in (None, 0) or not fits:
        return [0, 0, 0, 0]
    left, right, top, bottom = amounts + [0] * (4 - len(amounts))
    return [top, bottom, left, right]


def _pair(value: int | Sequence[int], dimensions: int, neutral: int) -> tuple[int, int]:
    values = [value] * dimensions if isinstance(value, int) else list(value)
    if len(values) < dimensions:
        values = values * dimensions
    return (neutral, values[0]) if dimensions == 1 else (values[0], values[1])


MATCHERS: Mapping[object, Callable[[fx.GraphModule, fx.Node], Found]] = {
    aten.linear.default: _match_linear,
    aten.mm.default: _match_matmul,
    aten.matmul.default: _match_matmul,
    aten.addmm.default: _match_addmm,
    aten.conv1d.default: _match_conv,
    aten.conv1d.padding: _match_conv,
    aten.conv2d.default: _match_conv,
    aten.conv2d.padding: _match_conv,
}
"""Operators that a primitive can stand for. A new one is one function and one line."""


ALWAYS_LAYERS = (aten.linear.default, *(op for op, match in MATCHERS.items() if match is _match_conv))
"""Operators that have a weight, though it may be computed; a product may be one of activations."""


def weight_argument(node: fx.Node) -> fx.Node | None:
    """The argument of an operator of `MATCHERS` in the place of the weight."""
    found = node.args[2 if node.target is aten.addmm.default else 1]
    return found if isinstance(found, fx.Node) else None


def activation(node: fx.Node) -> fx.Node:
    """The tensor that the weight multiplies; of a convolution, before zeros are put around it."""
    found = node.args[1 if node.target is aten.addmm.default else 0]
    assert isinstance(found, fx.Node)
    if MATCHERS[node.target] is _match_conv and any(_padding_before(node)):
        assert isinstance(found.args[0], fx.Node)
        return found.args[0]
    return found


@dataclass(frozen=True)
class FindLayers:
    """Records a `Layer` for each operator that a primitive can stand for, and a reason for each that not.

    The program is run once on `inputs`, its example inputs, to learn the shapes of activations.
    """

    name: ClassVar[str] = "find-layers"
    inputs: tuple[Tensor, ...]
    skip: tuple[str, ...] = ()
    """Names of layers, or prefixes of them, that stay with PyTorch."""
    dtypes: tuple[torch.dtype, ...] = (torch.float32,)
    """Of the layers that there are kernels for."""

    def __call__(self, program: Program) -> Program:
        found: dict[str, tuple[Weight, dict[str, Any]]] = {}
        untouched: dict[str, tuple[str, str]] = {}
        for node in program.graph.graph.nodes:
            if node.target in UNSUPPORTED:
                name = next((str(a.target) for a in _constants(node)), "")
                if name:
                    untouched[node.name] = _module_path(name), f"{UNSUPPORTED[node.target]}: not lowered yet"
            elif node.target in MATCHERS:
                match = MATCHERS[node.target](program.graph, node)
                if not isinstance(match, str):
                    reason = self._refuses(node, match[0])
                    if reason:
                        untouched[node.name] = _module_path(match[0].name), reason
                    else:
                        found[node.name] = match
                elif any(_constants(node)) or node.target in ALWAYS_LAYERS:
                    untouched[node.name] = _module_path(node.name), match
        shapes = _input_shapes(program, found, self.inputs)
        for site, reader in _needed_dense(program.graph, found).items():
            if _readable_in_place(found[site], shapes[site]):
                found[site][1]["held_by"] = reader
                continue
            weight, _ = found.pop(site)
            reason = f"its weight is also read by {reader}, which needs it dense"
            untouched[site] = _module_path(weight.name), reason
        layers = {
            site: _layer(program.graph, site, weight, fields, shapes[site])
            for site, (weight, fields) in found.items()
        }
        return replace(program, layers=layers, untouched=untouched)

    def _refuses(self, node: fx.Node, weight: Weight) -> str:
        name, value = _module_path(weight.name), activation(node).meta["val"]
        if any(name == prefix or name.startswith(f"{prefix}.") for prefix in self.skip):
            return "skipped on request"
        if weight.value.dtype not in self.dtypes or value.dtype != weight.value.dtype:
            *others, last = (str(dtype).removeprefix("torch.") for dtype in self.dtypes)
            lowered = f"{', '.join(others)} and {last} are" if others else f"{last} is"
            return f"{str(value.dtype).removeprefix('torch.')}: only {lowered} lowered"
        if weight.value.numel() == 0:
            return "the weight is empty"
        if any(not isinstance(extent, int) for extent in _image(node, value)):
            return "its image size changes within one graph: without dynamic_shapes for it every size gets its own"
        return ""


def _image(node: fx.Node, value: Tensor) -> Sequence[object]:
    """Extents of a convolution's input beyond batch and channels."""
    return value.shape[2:] if MATCHERS[node.target] is _match_conv else ()


def _needed_dense(
    graph: fx.GraphModule, found: Mapping[str, tuple[Weight, dict[str, Any]]]
) -> dict[str, str]:
    """Site -> an operator that reads the same parameter otherwise, for those that have one."""
    others: dict[str, str] = {}
    for node in graph.graph.nodes:
        if node.op == "get_attr":
            for user in readers(node):
                if user.name not in found or found[user.name][0].name != node.target:
                    others.setdefault(str(node.target), operator_name(user))
    return {site: others[weight.name] for site, (weight, _) in found.items() if weight.name in others}


def _readable_in_place(found: tuple[Weight, dict[str, Any]], input_shape: tuple[int, ...]) -> bool:
    """Whether there is a kernel for a dense weight as it lies: for few tokens, row after row."""
    weight, fields = found
    few = math.prod(input_shape[:-1]) <= FEW_TOKENS
    return fields["op"] == "linear" and few and not weight.transposed and weight.value.is_contiguous()


def _constants(node: fx.Node) -> Iterator[fx.Node]:
    return (argument for argument in node.all_input_nodes if argument.op == "get_attr")


def _module_path(weight: str) -> str:
    return full_name(weight).removesuffix(".weight")


def _layer(
    graph: fx.GraphModule, site: str, weight: Weight, fields: dict[str, Any], input_shape: tuple[int, ...]
) -> Layer:
    shape = tuple(reversed(weight.value.shape)) if weight.transposed else tuple(weight.value.shape)
    if fields["op"] == "conv1d":
        shape, input_shape = (*shape[:2], 1, shape[2]), (*input_shape[:2], 1, input_shape[2])
    node = next(n for n in graph.graph.nodes if n.name == site)
    return Layer(
        name=_module_path(weight.name),
        weight=weight.name,
        weight_shape=shape,
        input_shape=input_shape,
        transposed=weight.transposed,
        source=_source_line(node),
        **fields,
    )


def _source_line(node: fx.Node) -> str:
    """`file:line` of the innermost frame outside torch, from the stack trace that capture recorded."""
    frames = [
        line.strip() for line in (node.stack_trace or "").splitlines() if line.strip().startswith("File")
    ]
    own = [frame for frame in frames if "/torch/" not in frame and OWN_FOLDER not in frame]
    if not own:
        return ""
    path, line = own[-1].split(",")[:2]
    return f"{path.removeprefix('File ').strip(chr(34))}:{line.split()[-1]}"


class _Shapes(fx.Interpreter):
    """Runs the graph and keeps the shape of every tensor in it."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.shapes: dict[str, tuple[int, ...]] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor):
            self.shapes[n.name] = tuple(result.shape)
        return result


def _input_shapes(
    program: Program, sites: Mapping[str, object], inputs: tuple[Tensor, ...]
) -> dict[str, tuple[int, ...]]:
    interpreter = _Shapes(program.graph)
    with torch.no_grad():
        interpreter.run(*inputs)
    nodes = program.graph.graph.nodes
    return {node.name: interpreter.shapes[activation(node).name] for node in nodes if node.name in sites}
