"""Recognise what a model writes out operator by operator and PyTorch has one operator for."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from sparsecomp.program import Program

aten = torch.ops.aten


@dataclass(frozen=True)
class Whatever:
    """Matches any node or constant; the same name matches the same one again."""

    name: str


@dataclass(frozen=True)
class Near:
    """Matches a number close to this one: constants are often written with few digits."""

    value: float


Pattern = Any
"""An `Whatever`, a `Near`, a constant, or an operator and its operands as a tuple."""

COMMUTATIVE = (aten.add.Tensor, aten.mul.Tensor)


def match(pattern: Pattern, node: Any, found: dict[str, Any], inner: bool = False) -> bool:
    """Whether the expression that ends in `node` has this form; `found` gets what the names stand for.

    Every operator within it must have no other reader: it goes away.
    """
    if isinstance(pattern, Whatever):
        return found.setdefault(pattern.name, node) is node or found[pattern.name] == node
    if isinstance(pattern, Near):
        return isinstance(node, float | int) and math.isclose(node, pattern.value, rel_tol=1e-4)
    if not isinstance(pattern, tuple):
        return bool(node == pattern)
    operator, *operands = pattern
    if not isinstance(node, fx.Node) or node.target is not operator or len(node.args) != len(operands):
        return False
    if node.kwargs or (inner and len(node.users) != 1):
        return False
    orders = [operands, operands[::-1]] if operator in COMMUTATIVE else [operands]
    for order in orders:
        trial = dict(found)
        if all(match(own, argument, trial, True) for own, argument in zip(order, node.args, strict=True)):
            found.update(trial)
            return True
    return False


X, WEIGHT, EPSILON, DIMS = Whatever("x"), Whatever("weight"), Whatever("epsilon"), Whatever("dims")

GELU_TANH = (
    aten.mul.Tensor,
    (aten.mul.Tensor, X, Near(0.5)),
    (
        aten.add.Tensor,
        (
            aten.tanh.default,
            (
                aten.mul.Tensor,
                (
                    aten.add.Tensor,
                    X,
                    (aten.mul.Tensor, (aten.pow.Tensor_Scalar, X, Near(3.0)), Near(0.044715)),
                ),
                Near(math.sqrt(2 / math.pi)),
            ),
        ),
        Near(1.0),
    ),
)
"""0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x**3)))"""

RMS_NORM = (
    aten.mul.Tensor,
    WEIGHT,
    (
        aten.mul.Tensor,
        X,
        (
            aten.rsqrt.default,
            (
                aten.add.Tensor,
                (aten.mean.dim, (aten.pow.Tensor_Scalar, X, Near(2.0)), DIMS, True),
                EPSILON,
            ),
        ),
    ),
)
"""weight * x / sqrt(mean(x**2) + epsilon)"""

SILU = (aten.mul.Tensor, X, (aten.sigmoid.default, X))


def _gelu(graph: fx.Graph, found: dict[str, Any]) -> fx.Node | None:
    return graph.call_function(aten.gelu.default, (found["x"],), {"approximate": "tanh"})


def _rms_norm(graph: fx.Graph, found: dict[str, Any]) -> fx.Node | None:
    x, weight = found["x"], found["weight"]
    if not (isinstance(weight, fx.Node) and weight.op == "get_attr" and isinstance(found["epsilon"], float)):
        return None
    shape, channels = x.meta["val"].shape, weight.meta["val"].shape
    last = found["dims"] in ([-1], [len(shape) - 1])
    if not last or tuple(channels) != (shape[-1],) or not _is_float32(weight):
        return None
    return graph.call_function(aten.rms_norm.default, (x, [channels[0]], weight, found["epsilon"]))


def _silu(graph: fx.Graph, found: dict[str, Any]) -> fx.Node | None:
    return graph.call_function(aten.silu.default, (found["x"],))


COMPOSITES: tuple[tuple[Pattern, Callable[[fx.Graph, dict[str, Any]], fx.Node | None]], ...] = (
    (GELU_TANH, _gelu),
    (RMS_NORM, _rms_norm),
    (SILU, _silu),
)
"""What is written out, and what makes the one operator, or None where it does not fit after all."""


@dataclass(frozen=True)
class RecogniseComposites:
    """0.5 * x * (1 + tanh(...))               ->   gelu(x, approximate="tanh")
    weight * (x * rsqrt(mean(x**2) + e))   ->   rms_norm(x, weight, e)
    x * sigmoid(x)                         ->   silu(x)
    """

    name: ClassVar[str] = "recognise-composites"

    def __call__(self, program: Program) -> Program:
        graph = program.edit()
        changed = False
        for node in list(graph.graph.nodes):
            changed |= node.op == "call_function" and _replace(graph.graph, node)
        return program.with_graph(graph) if changed else program


def _replace(graph: fx.Graph, node: fx.Node) -> bool:
    for pattern, make in COMPOSITES:
        found: dict[str, Any] = {}
        if not match(pattern, node, found) or not _is_float32(found["x"]):
            continue
        with graph.inserting_before(node):
            made = make(graph, found)
        if made is None:
            continue
        made.meta = dict(node.meta)
        node.replace_all_uses_with(made)
        return True
    return False


def _is_float32(x: Any) -> bool:
    value = x.meta.get("val") if isinstance(x, fx.Node) else None
    return isinstance(value, Tensor) and value.dtype == torch.float32
