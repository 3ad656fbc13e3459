"""The contract of a captured graph: which calls it covers, and how calls and results pass through it."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cache
from types import CodeType
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from sparsecomp.errors import InputError
from sparsecomp.unflatten import unflatten

Size = int | str
"""A fixed size, or an expression (`s0`, `2*s0`) of sizes that may differ from call to call."""

CONSTANTS = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, Enum)
ARITHMETIC = (
    *(ast.Expression, ast.Compare, ast.BoolOp, ast.BinOp, ast.UnaryOp, ast.Name, ast.Load, ast.Constant),
    *(ast.cmpop, ast.boolop, ast.operator, ast.unaryop),
)


class RefusedError(Exception):
    """A graph is not right for a call; the text says why."""


@dataclass(frozen=True)
class TensorInput:
    """One tensor among the arguments, and what a later call must bring to fit the graph."""

    name: str
    """Where it stands in the call: `input_ids`, `batch['pixels'][0]`."""
    dtype: torch.dtype
    device: torch.device
    shape: tuple[Size, ...]

    def refuses(self, value: object) -> str | None:
        """Why `value` does not fit, as far as that can be told without the other inputs."""
        if not isinstance(value, Tensor):
            return f"input '{self.name}' was a tensor, is {_described(value)}"
        for what, mine, its in (
            ("dtype", self.dtype, value.dtype),
            ("device", self.device, value.device),
            ("layout", torch.strided, value.layout),
            ("number of dimensions", len(self.shape), value.ndim),
        ):
            if mine != its:
                return f"{what} of input '{self.name}' was {mine}, is {its}"
        for axis, (size, actual) in enumerate(zip(self.shape, value.shape, strict=True)):
            if isinstance(size, int) and size != actual:
                return f"dimension {axis} of input '{self.name}' was {size}, is {actual}"
        return None


@dataclass(frozen=True)
class Constant:
    """One argument that is not a tensor; the graph holds only for this value of it."""

    name: str
    value: object

    def refuses(self, value: object) -> str | None:
        """Why `value` does not fit: it must be equal and of the same type (1 is not True)."""
        comparable = isinstance(value, CONSTANTS) and type(value) is type(self.value)
        if value is self.value or (comparable and value == self.value):
            return None
        return f"argument '{self.name}' was {_described(self.value)}, is {_described(value)}"


@dataclass(frozen=True)
class Capture:
    """A graph and the calls it is right for.

    `graph` takes the tensors of `flatten` and returns a flat tuple, which `unflatten` brings into the
    model's own form. Its parameters and buffers are the model's own tensor objects, under their names in
    the model: nothing was copied.
    """

    graph: fx.GraphModule
    signature: inspect.Signature
    """Of the model's `forward`; a call is compared by what it binds, not by how it was written."""
    arguments: Mapping[str, pytree.TreeSpec]
    """Structure of each parameter of `signature`, defaults included."""
    leaves: tuple[TensorInput | Constant, ...]
    """Every leaf of `arguments`, in order; the tensors among them are the graph's placeholders."""
    ranges: Mapping[str, tuple[int, int | None]]
    """Least and greatest value of each size that may change; None: no bound."""
    guards: tuple[str, ...]
    """Further conditions on those sizes, as Python expressions (`s0 % 2 == 0`)."""
    out_spec: pytree.TreeSpec
    out_constants: Mapping[int, object]
    """Leaves of the output that are not results of the graph, by position (None, numbers, strings)."""
    singles: frozenset[frozenset[str]] = frozenset()
    """Sets of sizes that may be 1 together, though tracing took them for 2 or more: the graph was right there."""
    note: str = ""
    """What the user should know: why fewer shapes are covered than could be expected."""

    def refuses(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str | None:
        """Why the graph is not right for the call `model(*args, **kwargs)`; None when it is."""
        try:
            leaves = self.leaves_of(args, kwargs)
            for template, leaf in zip(self.leaves, leaves, strict=True):
                if reason := template.refuses(leaf):
                    return reason
            self._check_sizes(leaves)
        except RefusedError as refused:
            return str(refused)
        return None

    def flatten(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
        """The tensors of the call, as the graph takes them.

        Raises:
            InputError: the call has another structure.
        """
        try:
            leaves = self.leaves_of(args, kwargs)
        except RefusedError as refused:
            raise InputError(f"{refused}: ask `refuses` first, and capture again for such a call.") from None
        pairs = zip(self.leaves, leaves, strict=True)
        return [leaf for template, leaf in pairs if isinstance(template, TensorInput)]

    def unflatten(self, results: Sequence[Any]) -> Any:
        """What the graph returned -> the model's own output structure."""
        rest = iter(results)
        constants = self.out_constants
        count = self.out_spec.num_leaves
        leaves = [constants[i] if i in constants else next(rest) for i in range(count)]
        return unflatten(self.out_spec, leaves)

    def leaves_of(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
        try:
            values = bound_arguments(self.signature, args, kwargs)
        except TypeError as error:
            raise RefusedError(f"the call does not fit forward{self.signature}: {error}") from None
        leaves: list[Any] = []
        for name, spec in self.arguments.items():
            try:
                leaves += spec.flatten_up_to(values[name])
            except ValueError as error:
                raise RefusedError(f"argument '{name}' has another structure: {error}") from None
        return leaves

    def _check_sizes(self, leaves: Sequence[Any]) -> None:
        sizes: dict[str, int] = {}
        places: dict[str, str] = {}
        derived: list[tuple[str, int, str]] = []
        for size, value, place in self.dynamic_sizes(leaves):
            if not size.isidentifier():
                derived.append((size, value, place))
            elif value != sizes.setdefault(size, value):
                other = f"{places[size]}, which is {sizes[size]}"
                raise RefusedError(f"{place} is {value}, but must equal {other}")
            places.setdefault(size, place)
        singles = frozenset(size for size, value in sizes.items() if value == 1)
        for size, value in sizes.items():
            low, high = self.ranges[size]
            single = value == 1 and low == 2 and singles in self.singles
            if not (single or low <= value <= (high or value)):
                span = f"{low} to {high}" if high else f"{low} or more"
                raise RefusedError(f"{places[size]} is {value}, but the graph holds for {span}")
        for size, value, place in derived:
            if eval(size_code(size), {}, sizes) != value:
                raise RefusedError(f"{place} is {value}, but must be {_worded(size, places)}")
        for guard in self.guards:
            if not eval(size_code(guard), {}, sizes):
                raise RefusedError(f"the graph holds only where {_worded(guard, places)}")

    def dynamic_sizes(self, leaves: Sequence[Any]) -> Iterator[tuple[str, int, str]]:
        """Expression, value in this call, and place of every size that may change."""
        for template, leaf in zip(self.leaves, leaves, strict=True):
            if isinstance(template, TensorInput):
                for axis, size in enumerate(template.shape):
                    if isinstance(size, str):
                        yield size, leaf.shape[axis], f"dimension {axis} of input '{template.name}'"


@cache
def size_code(expression: str) -> CodeType:
    tree = ast.parse(expression, mode="eval")
    for node in ast.walk(tree):
        if not isinstance(node, ARITHMETIC):
            raise RefusedError(f"a condition on the sizes is not plain arithmetic: {expression}")
    return compile(tree, "<sizes>", "eval")


def _worded(expression: str, places: Mapping[str, str]) -> str:
    return re.sub(r"[A-Za-z_]\w*", lambda word: places.get(word[0], word[0]), expression)


def _described(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    return repr(value) if isinstance(value, CONSTANTS) else f"a {type(value).__name__}"


def bound_arguments(
    signature: inspect.Signature, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """Parameter -> value, defaults included. TypeError when the call does not fit."""
    bound = signature.bind(*args, **kwargs)
    bound.apply_defaults()
    return bound.arguments
