"""Move the element-wise work that follows a primitive into it: bias, batch norm, activation, residual."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from sparsecomp.constants import constant_tensor
from sparsecomp.primitives import EPILOGUE, OPERANDS, PRIMITIVES, ROWS_CONV2D
from sparsecomp.program import Program

aten = torch.ops.aten

Extra = tuple[str, tuple[fx.Node | Tensor, ...]]
"""Steps to append, and their operands: nodes of the graph, or new constants."""


Rule = Callable[[fx.GraphModule, fx.Node, fx.Node], Extra | None]
"""(graph, primitive, the only operator that reads it) -> the steps it becomes, or None."""


EPSILON: Mapping[object, int] = {
    aten.batch_norm.default: 7,
    aten._native_batch_norm_legit_no_training.default: 6,
}
"""Forms of batch norm, as written and as decomposed, and the position of their epsilon."""


def _batch_norm(graph: fx.GraphModule, primitive: fx.Node, reader: fx.Node) -> Extra | None:
    """(y - mean) / sqrt(variance + eps) * weight + bias  ->  y * scale + shift, per channel."""
    constants = [constant_tensor(graph, argument) for argument in reader.args[1:5]]
    weight, bias, mean, variance = constants
    computed = [argument is not None for argument in reader.args[1:5]] != [c is not None for c in constants]
    if computed or mean is None or variance is None or not _gives_result_only(reader):
        return None
    y = primitive.meta["val"]
    if _channel(primitive) != 1 or len(mean) != y.shape[1]:
        return None
    epsilon: Any = reader.args[EPSILON[reader.target]]
    scale = torch.rsqrt(variance.double() + epsilon)
    if weight is not None:
        scale = scale * weight.double()
    shift = -mean.double() * scale
    if bias is not None:
        shift = shift + bias.double()
    return "scale bias", (scale.float(), shift.float())


def _gives_result_only(reader: fx.Node) -> bool:
    """Whether a batch norm takes the statistics it is given, and nobody reads those it returns."""
    if reader.target is aten.batch_norm.default:
        return reader.args[5] is False
    return all(user.args[1] == 0 for user in reader.users)


def _activation(step: str) -> Rule:
    return lambda graph, primitive, reader: (step, ())


def _gelu(graph: fx.GraphModule, primitive: fx.Node, reader: fx.Node) -> Extra | None:
    return ("gelu_tanh" if reader.kwargs.get("approximate") == "tanh" else "gelu"), ()


def _clamp(graph: fx.GraphModule, primitive: fx.Node, reader: fx.Node) -> Extra | None:
    bounds = [*reader.args[1:], *[None] * (3 - len(reader.args))]
    if reader.target is aten.hardtanh.default:
        bounds = [low if low is not None else default for low, default in zip(bounds, (-1, 1), strict=True)]
    if bounds == [0, 6]:
        return "relu6", ()
    return ("relu", ()) if bounds == [0, None] else None


def _binary(step: str, vector_step: str) -> Rule:
    """y + t or y * t, where t has y's shape or is a constant per channel."""

    def rule(graph: fx.GraphModule, primitive: fx.Node, reader: fx.Node) -> Extra | None:
        others = [argument for argument in reader.args[:2] if argument is not primitive]
        if len(others) != 1 or reader.kwargs.get("alpha", 1) != 1 or not isinstance(others[0], fx.Node):
            return None
        other, y = others[0], primitive.meta["val"]
        value = other.meta.get("val")
        if not isinstance(value, Tensor) or value.dtype != primitive.meta["val"].dtype:
            return None
        constant = constant_tensor(graph, other)
        if constant is not None:
            vector = _per_channel(constant, y, _channel(primitive))
            return (vector_step, (vector,)) if vector is not None else None
        return (step, (other,)) if _same_shape(value.shape, y.shape) else None

    return rule


def _channel(primitive: fx.Node) -> int:
    """The dimension of the primitive's rows."""
    return 1 if primitive.target is ROWS_CONV2D else primitive.meta["val"].dim() - 1


def _same_shape(left: Sequence[Any], right: Sequence[Any]) -> bool:
    """Equal extents; symbolic ones must be the same expression."""
    return len(left) == len(right) and all(str(a) == str(b) for a, b in zip(left, right, strict=True))


def _per_channel(constant: Tensor, y: Tensor, channel: int) -> Tensor | None:
    """The constant as a vector over y's channels, if it broadcasts over y as one."""
    extents = [1] * (y.dim() - constant.dim()) + list(constant.shape)
    if constant.dim() > y.dim() or constant.dtype != y.dtype:
        return None
    expected = [1] * y.dim()
    expected[channel] = int(y.shape[channel])
    if constant.numel() == 1:
        return constant.reshape(1).expand(expected[channel]).contiguous()
    return constant.reshape(-1) if extents == expected else None


RULES: Mapping[object, Rule] = {
    aten.batch_norm.default: _batch_norm,
    aten._native_batch_norm_legit_no_training.default: _batch_norm,
    aten.relu.default: _activation("relu"),
    aten.relu6.default: _activation("relu6"),
    aten.gelu.default: _gelu,
    aten.silu.default: _activation("silu"),
    aten.sigmoid.default: _activation("sigmoid"),
    aten.tanh.default: _activation("tanh"),
    aten.hardswish.default: _activation("hardswish"),
    aten.hardsigmoid.default: _activation("hardsigmoid"),
    aten.hardtanh.default: _clamp,
    aten.clamp.default: _clamp,
    aten.add.Tensor: _binary("add", "bias"),
    aten.mul.Tensor: _binary("multiply", "scale"),
}
"""Operators that can become steps of an epilogue. A new one is one function and one line."""


@dataclass(frozen=True)
class FuseEpilogues:
    """Repeat until nothing changes: a primitive read by one operator of `RULES` absorbs it.

    y = rows_conv2d(x, w); z = batch_norm(y); r = relu(z)   ->   r = rows_conv2d(x, w, "scale bias relu")

    A sum of two primitives goes into the later one, which then reads the earlier one's result.
    """

    name: ClassVar[str] = "fuse-epilogues"

    def __call__(self, program: Program) -> Program:
        graph = program.edit()
        changed = False
        for node in list(graph.graph.nodes):
            while node.target in PRIMITIVES and _absorb(graph, node):
                changed = True
        return program.with_graph(graph) if changed else program


def _absorb(graph: fx.GraphModule, primitive: fx.Node) -> bool:
    if len(primitive.users) != 1:
        return False
    reader = next(iter(primitive.users))
    rule = RULES.get(reader.target)
    if rule is None or (reader.args[0] is not primitive and reader.args[1:2] != (primitive,)):
        return False
    tensors = [a for a in reader.all_input_nodes if a is not primitive and a.op != "get_attr"]
    if any(other.target in PRIMITIVES and _comes_after(other, primitive) for other in tensors):
        return False  # the later primitive absorbs the sum
    extra = rule(graph, primitive, reader)
    if extra is None:
        return False
    steps, operands = extra
    nodes = [_as_node(graph, primitive, reader, operand) for operand in operands]
    arguments = list(primitive.args)
    arguments[EPILOGUE] = f"{arguments[EPILOGUE]} {steps}".strip()
    arguments[OPERANDS] = [*arguments[OPERANDS], *nodes]  # type: ignore[misc]
    primitive.args = tuple(arguments)
    reader.prepend(primitive)  # after its new operands, before everything that reads the result
    _replace(reader, primitive)
    return True


def _comes_after(left: fx.Node, right: fx.Node) -> bool:
    return right < left


def _as_node(
    graph: fx.GraphModule, primitive: fx.Node, reader: fx.Node, operand: fx.Node | Tensor
) -> fx.Node:
    if isinstance(operand, fx.Node):
        return operand
    name = f"{primitive.name}_vector{len(primitive.args[OPERANDS])}"  # type: ignore[arg-type]
    while hasattr(graph, name):
        name += "_"
    graph.register_buffer(name, operand)
    with graph.graph.inserting_before(reader):
        node = graph.graph.get_attr(name)
    node.meta["val"] = operand.to("meta")
    return node


def _replace(reader: fx.Node, primitive: fx.Node) -> None:
    results = list(reader.users) if reader.target is aten._native_batch_norm_legit_no_training.default else []
    for result in results:
        assert result.target is operator.getitem
        result.replace_all_uses_with(primitive)
        result.graph.erase_node(result)
    if not results:
        reader.replace_all_uses_with(primitive)
    reader.graph.erase_node(reader)
