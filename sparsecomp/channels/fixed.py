"""What is the same for every input: per labelled element, its constant value, or that it varies.

A filter without weights gives its bias at every pixel; so does what follows it, through norms and activations,
until a layer multiplies it. There the constant can be added to that layer's bias instead.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from sparsecomp.channels import rules
from sparsecomp.channels.channels import Channels
from sparsecomp.channels.labels import arguments, expanded, extents
from sparsecomp.channels.moves import MOVES
from sparsecomp.channels.products import RULES as PRODUCTS
from sparsecomp.channels.views import constant
from sparsecomp.channels.wiring import Reading
from sparsecomp.constants import constant_weight
from sparsecomp.program import attribute

aten = torch.ops.aten

Floats = np.ndarray[Any, np.dtype[np.float64]]
Flags = np.ndarray[Any, np.dtype[np.bool_]]


@dataclass(frozen=True)
class Fixed:
    """Arrays of the shape of a value's labels; `value` counts where `varies` is false."""

    value: Floats
    varies: Flags

    @staticmethod
    def unknown(shape: tuple[int, ...]) -> Fixed:
        return Fixed(np.zeros(shape), np.ones(shape, dtype=bool))

    @property
    def zero(self) -> Flags:
        return np.asarray(~self.varies & (self.value == 0))

    @property
    def everywhere(self) -> bool:
        return not bool(self.varies.any())


Known = Fixed | tuple[Fixed | None, ...] | None


class Evaluation:
    """Walks the graph; `known` has what is fixed of every labelled value."""

    def __init__(self, graph: fx.GraphModule, channels: Channels) -> None:
        self.graph, self.labels = graph, channels.labels
        self.readings = {reading.node: reading for reading in channels.readings}
        self.known: dict[fx.Node, Known] = {}
        for node in graph.graph.nodes:
            if node.op == "call_function":
                self.known[node] = self._checked(node, self._evaluate(node))

    def of(self, node: object) -> Fixed | None:
        found = self.known.get(node) if isinstance(node, fx.Node) else None
        return found if isinstance(found, Fixed) else None

    def _evaluate(self, node: fx.Node) -> Known:
        rule = EVALUATIONS.get(node.target)
        return rule(self, node) if rule else None

    def _checked(self, node: fx.Node, found: Known) -> Known:
        """A value's own shape, or nothing known; infinities are left to PyTorch."""
        labels = self.labels.get(node)
        if labels is None:
            return found if isinstance(found, tuple) else None
        if not isinstance(found, Fixed) or found.value.shape != labels.shape:
            return Fixed.unknown(labels.shape)
        return Fixed(found.value, found.varies | ~np.isfinite(found.value))


def fixed_values(graph: fx.GraphModule, channels: Channels) -> Mapping[fx.Node, Fixed]:
    """Of every value with labels. One walk over the graph, in time of one look at each weight."""
    known = Evaluation(graph, channels).known
    return {node: found for node, found in known.items() if isinstance(found, Fixed)}


def _elementwise(evaluation: Evaluation, node: fx.Node) -> Known:
    """The operator itself, on one number per unit."""
    if node.target is aten.masked_fill.Scalar:
        return None
    dtype = node.meta["val"].dtype
    flags: list[Flags] = []
    zeros: list[Flags] = []

    def operand(argument: fx.Node) -> Tensor:
        found = evaluation.of(argument)
        value = constant(evaluation.graph, argument)
        if found is not None:
            flags.append(found.varies)
            zeros.append(found.zero)
            return torch.from_numpy(np.where(found.varies, 0.0, found.value)).to(argument.meta["val"].dtype)
        if value is None:
            flags.append(np.ones((1,) * len(extents(argument)), dtype=bool))
            return torch.ones(flags[-1].shape, dtype=argument.meta["val"].dtype)
        flags.append(np.zeros(value.shape, dtype=bool))
        zeros.append((value == 0).numpy())
        return value

    args, kwargs = fx.map_arg(node.args, operand), fx.map_arg(node.kwargs, operand)
    run: Callable[..., Tensor] = node.target  # type: ignore[assignment]
    result = run(*args, **kwargs).to(dtype).double().numpy()
    varies = _any(flags, result.shape)
    if node.target is aten.mul.Tensor:  # whatever the other factor is
        zero = _any(zeros, result.shape)
        return Fixed(np.where(zero, 0.0, result), varies & ~zero)
    return Fixed(result, varies)


def _any(flags: list[Flags], shape: tuple[int, ...]) -> Flags:
    total = np.zeros(shape, dtype=bool)
    for flag in flags:
        total = total | flag
    return total


def _batch_norm(evaluation: Evaluation, node: fx.Node) -> Known:
    found = evaluation.of(arguments(node)[0])
    constants = [constant(evaluation.graph, argument) for argument in arguments(node)[1:5]]
    if found is None or [c is None for c in constants] != [a is None for a in arguments(node)[1:5]]:
        return None
    if any(c is not None and c.shape != found.value.shape[1:2] for c in constants):
        return None  # it norms along another dimension than that of the labels
    dtype = arguments(node)[0].meta["val"].dtype
    x = torch.from_numpy(np.where(found.varies, 0.0, found.value)).to(dtype)
    run: Callable[..., Any] = node.target  # type: ignore[assignment]
    result = run(x, *constants, *arguments(node)[5:])
    several = isinstance(result, tuple)
    y = Fixed((result[0] if several else result).double().numpy(), found.varies)
    return (y, None, None) if several else y


def _window(evaluation: Evaluation, node: fx.Node) -> Known:
    """Maxima and means of a constant are the constant; zeros around the image count in a mean."""
    found = evaluation.of(arguments(node)[0])
    averages = node.target in (aten.avg_pool1d.default, aten.avg_pool2d.default)
    if found is None or not averages or len(node.args) <= 3:
        return found
    return Fixed(found.value, ~found.zero)


def _only_zeros(evaluation: Evaluation, node: fx.Node) -> Known:
    found = evaluation.of(arguments(node)[0])
    if found is None:
        return None
    fill = arguments(node)[3 if node.target is aten.pad.default else 2 :]
    mode = arguments(node)[2] if node.target is aten.pad.default and len(node.args) > 2 else "constant"
    if mode != "constant" or node.kwargs or any(value not in (0, None) for value in fill):
        return None
    return Fixed(found.value, ~found.zero)


def _reduce(evaluation: Evaluation, node: fx.Node) -> Known:
    source, axes = arguments(node)[:2]
    found, labels = evaluation.of(source), evaluation.labels.get(node)
    if found is None or labels is None or node.kwargs.get("dtype"):
        return None
    keeps = len(found.value.shape) == labels.ndim
    dropped = () if keeps else tuple(axis % found.value.ndim for axis in axes)
    value, varies = np.squeeze(found.value, dropped), np.squeeze(found.varies, dropped)
    if node.target is aten.sum.dim_IntList:
        varies = varies | (value != 0)
    return Fixed(value, varies)


def _move(evaluation: Evaluation, node: fx.Node) -> Known:
    found = evaluation.of(arguments(node)[0])
    if found is None:
        return None
    value, varies = (MOVES[node.target](node, array) for array in (found.value, found.varies))
    if isinstance(value, tuple) and isinstance(varies, tuple):
        return tuple(Fixed(v, f) for v, f in zip(value, varies, strict=True))
    if isinstance(value, np.ndarray) and isinstance(varies, np.ndarray):
        return Fixed(value, varies)
    return None


def _getitem(evaluation: Evaluation, node: fx.Node) -> Known:
    source, index = arguments(node)
    parts = evaluation.known.get(source)
    return parts[index] if isinstance(parts, tuple) else None


def _cat(evaluation: Evaluation, node: fx.Node) -> Known:
    """Side by side along the labelled axis; along another one, nothing is taken for known."""
    sources = arguments(node)[0]
    axis = arguments(node)[1] if len(node.args) > 1 else 0
    labels = evaluation.labels.get(node)
    if labels is None or labels.shape[axis] == 1:
        return None
    values, flags = [], []
    for source in sources:
        size = extents(source)[axis]
        assert isinstance(size, int)
        shape = list(labels.shape)
        shape[axis] = size
        found = evaluation.of(source) or Fixed.unknown(tuple(shape))
        values.append(expanded(found.value, extents(source), [axis]))
        flags.append(expanded(found.varies, extents(source), [axis]))
    return Fixed(np.concatenate(values, axis), np.concatenate(flags, axis))  # type: ignore[arg-type]


def _product(evaluation: Evaluation, node: fx.Node) -> Known:
    labels = evaluation.labels.get(node)
    reading = evaluation.readings.get(node)
    bias = bias_of(node)
    if labels is None:
        return None
    weight = weight_of(evaluation.graph, node, reading)
    if weight is None:
        return _attention(evaluation, node)
    shift = constant(evaluation.graph, bias)
    if bias is not None and (shift is None or shift.shape != (len(weight),)):
        return None
    total = np.zeros(len(weight)) if shift is None else shift.double().numpy().copy()
    varies = np.zeros(len(weight), dtype=bool)
    used = nonzero(weight)
    source = evaluation.of(reading.source) if reading else None
    groups = reading.groups if reading else 1
    for group in range(groups):
        rows = slice(group * len(weight) // groups, (group + 1) * len(weight) // groups)
        columns = slice(group * weight.shape[1], (group + 1) * weight.shape[1])
        known = Fixed.unknown((weight.shape[1],))
        if source is not None and reading is not None:
            known = Fixed(source.value.reshape(-1)[columns], source.varies.reshape(-1)[columns])
        spread = known.varies | (~known.zero & bool(pads(node)))
        varies[rows] = (used[rows] & spread).any(1)
        total[rows] += product(weight[rows], np.where(spread, 0.0, known.value))
    return Fixed(total.reshape(labels.shape), varies.reshape(labels.shape))


def weight_of(graph: fx.GraphModule, node: fx.Node, reading: Reading | None) -> Tensor | None:
    """The weight as outputs x inputs/groups x anything; None where there is none."""
    if reading is not None:
        weight = attribute(graph, reading.parameter).detach()
        weight = weight.transpose(0, 1) if reading.outputs == 1 else weight
    else:
        found = constant_weight(graph, arguments(node)[2 if node.target is aten.addmm.default else 1])
        if found is None or found.value.dim() < 2:
            return None
        stored = node.target in (aten.linear.default, *CONVOLUTIONS)
        weight = found.value if stored != found.transposed else found.value.transpose(0, 1)
    return weight.unsqueeze(2) if weight.dim() == 2 else weight.flatten(2)


def nonzero(weight: Tensor) -> Flags:
    """Outputs x inputs: whether there is any weight between them."""
    used = weight != 0
    return np.asarray((used.squeeze(2) if used.shape[2] == 1 else used.any(2)).numpy())


def product(weight: Tensor, inputs: Floats) -> Floats:
    """What a layer makes of an input that is the same everywhere: weight outputs x inputs x kernel."""
    places = np.flatnonzero(inputs)
    if not len(places):
        return np.zeros(len(weight))
    sums: Floats = weight[:, torch.from_numpy(places)].double().sum(2).numpy()
    return np.asarray(sums @ inputs[places])


def bias_of(node: fx.Node) -> fx.Node | None:
    if node.target is aten.addmm.default:
        found = arguments(node)[0]
    elif node.target in (aten.mm.default, aten.matmul.default, aten.bmm.default):
        return None
    else:
        found = arguments(node)[2] if len(node.args) > 2 else node.kwargs.get("bias")
    return found if isinstance(found, fx.Node) else None


def pads(node: fx.Node) -> bool:
    """Whether a layer's results differ from place to place though its input does not."""
    if node.target in TRANSPOSED:
        return True
    if node.target not in CONVOLUTIONS or len(node.args) <= 4:
        return False
    padding = arguments(node)[4]
    if isinstance(padding, str):
        return padding != "valid"
    return any(padding) if isinstance(padding, list | tuple) else bool(padding)


def _depthwise_or_product(evaluation: Evaluation, node: fx.Node) -> Known:
    if node in evaluation.readings or node not in evaluation.labels:
        return _product(evaluation, node)
    weight = constant_weight(evaluation.graph, arguments(node)[1])
    groups = arguments(node)[6] if len(node.args) > 6 else 1
    source = evaluation.of(arguments(node)[0])
    if groups == 1 or weight is None or source is None:
        return _product(evaluation, node)
    bias = bias_of(node)
    shift = constant(evaluation.graph, bias)
    if bias is not None and shift is None:
        return None
    repeat = len(weight.value) // groups
    known = Fixed(source.value.reshape(-1).repeat(repeat), source.varies.reshape(-1).repeat(repeat))
    used = (weight.value != 0).flatten(1).any(1).numpy()
    spread = used & (known.varies | (~known.zero & bool(pads(node))))
    total = weight.value.double().flatten(1).sum(1).numpy() * np.where(spread, 0.0, known.value)
    total = total if shift is None else total + shift.double().numpy()
    shape = evaluation.labels[node].shape
    return Fixed(np.where(spread, 0.0, total).reshape(shape), spread.reshape(shape))


def _embedding(evaluation: Evaluation, node: fx.Node) -> Known:
    weight = constant_weight(evaluation.graph, arguments(node)[0])
    labels = evaluation.labels.get(node)
    if weight is None or labels is None or not len(weight.value):
        return None
    same = (weight.value == weight.value[:1]).all(0).numpy()
    return Fixed(weight.value[0].double().numpy().reshape(labels.shape), ~same.reshape(labels.shape))


def _attention(evaluation: Evaluation, node: fx.Node) -> Known:
    """Zero where a factor is zero over the whole matrix; of attention, where the values are."""
    labels = evaluation.labels.get(node)
    if labels is None:
        return None
    whole = node.target is aten.scaled_dot_product_attention.default
    zero = np.zeros(labels.shape, dtype=bool)
    for factor in arguments(node)[2:3] if whole else arguments(node)[:2]:
        found = evaluation.of(factor)
        if found is not None:
            zero = zero | found.zero.all((-2, -1), keepdims=True)
    return Fixed(np.zeros(labels.shape), ~zero)


CONVOLUTIONS = (
    *(aten.conv1d.default, aten.conv2d.default, aten.conv3d.default),
    *(aten.conv1d.padding, aten.conv2d.padding),
)
TRANSPOSED = (
    aten.conv_transpose1d.default,
    aten.conv_transpose2d.input,
    aten.conv_transpose3d.input,
)

EVALUATIONS: Mapping[object, Callable[[Evaluation, fx.Node], Known]] = {
    **dict.fromkeys(rules.ELEMENTWISE, _elementwise),
    **dict.fromkeys(rules.WINDOWS, _window),
    **dict.fromkeys((aten.pad.default, aten.constant_pad_nd.default), _only_zeros),
    **dict.fromkeys((aten.mean.dim, aten.sum.dim_IntList, aten.amax.default), _reduce),
    **dict.fromkeys(MOVES, _move),
    **dict.fromkeys(PRODUCTS, _product),
    **dict.fromkeys(CONVOLUTIONS, _depthwise_or_product),
    aten._native_batch_norm_legit_no_training.default: _batch_norm,
    aten.batch_norm.default: _batch_norm,
    aten.scaled_dot_product_attention.default: _attention,
    aten.embedding.default: _embedding,
    aten.cat.default: _cat,
    operator.getitem: _getitem,
}
