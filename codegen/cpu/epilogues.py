"""Vector forms of the activations in `sparsecomp/epilogue.py`, in float32.

Errors below are the largest against float64 over all inputs where the result is finite.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tvm.script.ir_builder import tirx as T

from sparsecomp.codegen.cpu.emit import Expr, splat


def exponential(x: Expr, lanes: int) -> Expr:
    """exp(x), relative error 2e-7: Cody-Waite reduction by ln 2 and a polynomial (Cephes, expf).

    0 below -87.7, where the exponent of the power of 2 becomes that of 0.
    """
    bounded = clamp(x, -88.0, 88.0, lanes)
    scaled = bounded * splat(1.4426950408889634, lanes)
    power = T.bind(T.call_llvm_pure_intrin(f"float32x{lanes}", f"llvm.rint.v{lanes}f32", scaled))
    rest = T.bind(
        bounded - power * splat(0.693145751953125, lanes) - power * splat(1.428606765330187e-06, lanes)
    )
    result = splat(1.9875691500e-4, lanes)
    for coefficient in (
        1.3981999507e-3,
        8.3334519073e-3,
        4.1665795894e-2,
        1.6666665459e-1,
        5.0000001201e-1,
    ):
        result = T.bind(result * rest + splat(coefficient, lanes))
    result = T.bind(result * T.bind(rest * rest) + T.bind(rest + splat(1.0, lanes)))
    exponent = T.cast(power, f"int32x{lanes}") + T.Broadcast(T.int32(127), lanes)
    return T.bind(
        result * T.reinterpret(f"float32x{lanes}", T.shift_left(exponent, T.Broadcast(T.int32(23), lanes)))
    )


def error_function(x: Expr, lanes: int) -> Expr:
    """erf(x), absolute error 4e-7: rational minimax in x**2 on [-4, 4], beyond which erf is 1 in float32."""
    z = T.bind(T.min(T.max(x, splat(-4.0, lanes)), splat(4.0, lanes)))
    square = T.bind(z * z)
    top = splat(-2.72614225801306e-10, lanes)
    for coefficient in (
        2.77068142495902e-08,
        -2.10102402082508e-06,
        -5.69250639462346e-05,
        -7.34990630326855e-04,
        -2.95459980854025e-03,
        -1.60960333262415e-02,
    ):
        top = T.bind(top * square + splat(coefficient, lanes))
    bottom = splat(-1.45660718464996e-05, lanes)
    for coefficient in (
        -2.13374055278905e-04,
        -1.68282697438203e-03,
        -7.37332916720468e-03,
        -1.42647390514189e-02,
    ):
        bottom = T.bind(bottom * square + splat(coefficient, lanes))
    return T.bind(T.bind(z * top) / bottom)


def sigmoid(x: Expr, lanes: int) -> Expr:
    return T.bind(splat(1.0, lanes) / (splat(1.0, lanes) + exponential(T.bind(splat(0.0, lanes) - x), lanes)))


def tanh(x: Expr, lanes: int) -> Expr:
    """1 - 2 / (exp(2x) + 1) loses digits near 0, where the odd series to x**7 serves (|x| < 0.3: 3e-7)."""
    far = T.bind(
        splat(1.0, lanes) - splat(2.0, lanes) / (exponential(T.bind(x + x), lanes) + splat(1.0, lanes))
    )
    square = T.bind(x * x)
    series = splat(62.0 / 2835.0, lanes)
    for coefficient in (-17.0 / 315.0, 2.0 / 15.0, -1.0 / 3.0, 1.0):
        series = T.bind(series * square + splat(coefficient, lanes))
    return T.bind(T.Select(square < splat(0.09, lanes), x * series, far))


def gelu(x: Expr, lanes: int) -> Expr:
    half = T.bind(x * splat(0.5, lanes))
    return T.bind(half * error_function(T.bind(x * splat(0.7071067811865476, lanes)), lanes) + half)


def gelu_tanh(x: Expr, lanes: int) -> Expr:
    """0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x**3)))"""
    cube = T.bind(x * x * x)
    inner = T.bind((x + cube * splat(0.044715, lanes)) * splat(0.7978845608028654, lanes))
    half = T.bind(x * splat(0.5, lanes))
    return T.bind(half * tanh(inner, lanes) + half)


def at_least(x: Expr, low: float, lanes: int) -> Expr:
    """max(low, x). The order matters: where the comparison fails, as with NaN, the second operand stays."""
    return T.bind(T.max(splat(low, lanes), x))


def clamp(x: Expr, low: float, high: float, lanes: int) -> Expr:
    """NaN stays NaN, as in `at_least`."""
    return at_least(T.bind(T.min(splat(high, lanes), x)), low, lanes)


def hardsigmoid(x: Expr, lanes: int) -> Expr:
    return T.bind(clamp(x + splat(3.0, lanes), 0.0, 6.0, lanes) * splat(1.0 / 6.0, lanes))


VECTOR_FORMS: Mapping[str, Callable[[Expr, int], Expr]] = {
    "relu": lambda x, lanes: at_least(x, 0.0, lanes),
    "relu6": lambda x, lanes: clamp(x, 0.0, 6.0, lanes),
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "silu": lambda x, lanes: T.bind(x * sigmoid(x, lanes)),
    "sigmoid": sigmoid,
    "tanh": tanh,
    "hardswish": lambda x, lanes: T.bind(x * hardsigmoid(x, lanes)),
    "hardsigmoid": hardsigmoid,
}

HEAVY_STEPS = frozenset({"gelu", "gelu_tanh", "silu", "sigmoid", "tanh"})
"""Tens of instructions each."""
