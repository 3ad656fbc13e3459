"""What a sparse primitive does to each output element before it is stored: an ordered tuple of steps.

Each step has a plain PyTorch meaning here and a vector form in `sparsecomp/codegen/cpu/epilogues.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from torch import Tensor
from torch.nn import functional as F

OperandKind = Literal["none", "vector", "tensor"]


def _per_channel(y: Tensor, vector: Tensor, channel: int) -> Tensor:
    shape = [1] * y.dim()
    shape[channel] = -1
    return vector.reshape(shape)


ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "relu6": F.relu6,
    "gelu": F.gelu,
    "gelu_tanh": lambda y: F.gelu(y, approximate="tanh"),
    "silu": F.silu,
    "sigmoid": lambda y: y.sigmoid(),
    "tanh": lambda y: y.tanh(),
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
}

STEPS: Mapping[str, OperandKind] = {
    "bias": "vector",  # y + operand[channel]
    "scale": "vector",  # y * operand[channel]
    "add": "tensor",  # y + operand, of the output's shape
    "multiply": "tensor",  # y * operand, of the output's shape
    **dict.fromkeys(ACTIVATIONS, "none"),
}
"""Every step, and what operand it takes."""


def split_steps(epilogue: str) -> tuple[str, ...]:
    """ "scale bias relu" -> ("scale", "bias", "relu")."""
    steps = tuple(epilogue.split())
    unknown = [step for step in steps if step not in STEPS]
    assert not unknown, f"unknown epilogue steps: {unknown}"
    return steps


def apply(y: Tensor, epilogue: str, operands: Sequence[Tensor], channel: int) -> Tensor:
    """The steps in order; each that takes an operand takes the next one. `channel` is y's channel dimension."""
    rest = list(operands)
    for step in split_steps(epilogue):
        match step:
            case "bias":
                y = y + _per_channel(y, rest.pop(0), channel)
            case "scale":
                y = y * _per_channel(y, rest.pop(0), channel)
            case "add":
                y = y + rest.pop(0)
            case "multiply":
                y = y * rest.pop(0)
            case _:
                y = ACTIVATIONS[step](y)
    assert not rest, f"{len(rest)} operands too many for {epilogue!r}"
    return y
