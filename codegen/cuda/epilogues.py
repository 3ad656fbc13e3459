"""The steps of an epilogue on one float32 of a CUDA kernel; their meaning is in `sparsecomp/epilogue.py`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from tvm.script.ir_builder import tirx as T

from sparsecomp.codegen.cuda.emitter import Array, Emitter, Expr, Parameter
from sparsecomp.epilogue import STEPS, split_steps


def _f(value: float) -> Expr:
    return T.float32(value)


def _relu(x: Expr) -> Expr:
    return T.Select(x < _f(0.0), _f(0.0), x)


def _sigmoid(x: Expr) -> Expr:
    return _f(1.0) / (_f(1.0) + T.exp(-x))


def _gelu(x: Expr) -> Expr:
    return x * _f(0.5) * (_f(1.0) + T.erf(x * _f(math.sqrt(0.5))))


def _gelu_tanh(x: Expr) -> Expr:
    inner = _f(math.sqrt(2.0 / math.pi)) * (x + _f(0.044715) * x * x * x)
    return x * _f(0.5) * (_f(1.0) + T.tanh(inner))


def _hardsigmoid(x: Expr) -> Expr:
    return T.min(T.max(x + _f(3.0), _f(0.0)), _f(6.0)) * _f(1.0 / 6.0)


ACTIVATIONS: Mapping[str, Callable[[Expr], Expr]] = {
    "relu": _relu,  # comparisons, so that NaN goes through as in PyTorch
    "relu6": lambda x: T.Select(x > _f(6.0), _f(6.0), _relu(x)),
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "silu": lambda x: x * _sigmoid(x),
    "sigmoid": _sigmoid,
    "tanh": T.tanh,
    "hardswish": lambda x: x * _hardsigmoid(x),
    "hardsigmoid": _hardsigmoid,
}


def operand_parameters(epilogue: str, dtype: str, rows: int, shape: tuple[int | str, ...]) -> list[Parameter]:
    """Of the steps that take an operand, in order: a vector of `rows`, or a tensor of y's shape."""
    kinds = [STEPS[step] for step in split_steps(epilogue)]
    sizes = {"vector": (rows,), "tensor": shape}
    return [Parameter(f"operand{i}", dtype, sizes[kind]) for i, kind in enumerate(kinds) if kind != "none"]


def finish(
    emit: Emitter, value: Expr, epilogue: str, operands: Sequence[Array], row: Expr, place: Expr
) -> Expr:
    """The steps on the float32 of a row (output feature or channel) that is to be stored at `place` of y."""
    rest = list(operands)
    for step in split_steps(epilogue):
        if STEPS[step] == "none":
            value = ACTIVATIONS[step](T.bind(value))
            continue
        operand = emit.load(rest.pop(0), row if STEPS[step] == "vector" else place)
        value = value + operand if step in ("bias", "add") else value * operand
    return value
