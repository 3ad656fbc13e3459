"""Remove what is dead: filters, channels, heads, feed-forward units, and branches that are always the same."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, ClassVar

import numpy as np
import sympy
import torch
from torch import Tensor, fx

from sparsecomp.channels import Channels, find_channels
from sparsecomp.channels.fixed import CONVOLUTIONS, TRANSPOSED
from sparsecomp.channels.groups import families
from sparsecomp.channels.labels import arguments, extents
from sparsecomp.channels.products import RULES as PRODUCTS
from sparsecomp.channels.removal import Removal, plan_removal
from sparsecomp.compare import TOLERANCE, relative_error
from sparsecomp.constants import constant_weight
from sparsecomp.cut_weight import Cut
from sparsecomp.example import seeded
from sparsecomp.passes.cut_units import cut_units
from sparsecomp.passes.drop_branches import drop_branches
from sparsecomp.passes.measure_weights import measure_weight
from sparsecomp.program import Program, attribute
from sparsecomp.slimming import SlimGroup, Slimming, full_name

aten = torch.ops.aten

ROUNDS = 100
"""A unit that is gone may leave others dead: at most so many times."""


@dataclass(frozen=True)
class Slim:
    """conv2d(x, w1); relu; conv2d(y, w2)   ->   the same with fewer filters in w1, fewer channels in w2
    add(x, branch)                          ->   x, where the branch is zero for every input

    A unit goes where no weight reads it, or where it is a constant that a bias can take up; it goes with all that
    is coupled to it (`sparsecomp.channels`). Repeated until nothing is dead. The result is run on the example
    beside what it came from: should any shape or number differ, nothing is changed and `slimming` says why.
    """

    name: ClassVar[str] = "slim"
    inputs: tuple[Tensor, ...]
    skip: tuple[str, ...] = ()
    """Names of layers, or prefixes of them, of which nothing is removed."""

    def __call__(self, program: Program) -> Program:
        try:
            return self._slimmed(program)
        except Exception as error:  # noqa: BLE001 - no model is slower to run for what could not be removed
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            return replace(program, slimming=Slimming(refused=f"slimming failed: {reason}"))

    def _slimmed(self, program: Program) -> Program:
        slimmed, record = program, _Record()
        branches: list[str] = []
        cuts: dict[str, Cut] = {}
        for _ in range(ROUNDS):
            graph = slimmed.edit()
            channels = self._pinned(find_channels(graph))
            dropped = drop_branches(graph, channels)
            branches += dropped
            if not dropped:
                removal = plan_removal(graph, channels, _alignment(graph))
                record.add(channels, removal)
                if not removal.gone:
                    break
                cuts |= cut_units(graph, channels, removal)
            slimmed = slimmed.with_graph(graph)
        slimming = Slimming(
            record.groups(),
            tuple(branches),
            (_parameters(program.graph), _parameters(slimmed.graph)),
            (layer_flops(program.graph, self.inputs), layer_flops(slimmed.graph, self.inputs)),
            cuts,
        )
        if slimmed is not program and (refused := _difference(program, slimmed, self.inputs)):
            return replace(program, slimming=replace(slimming, cuts={}, refused=refused))
        return replace(slimmed, slimming=slimming)

    def _pinned(self, channels: Channels) -> Channels:
        """With the units pinned that cross a layer which is skipped."""
        pins = dict(channels.pins)
        for place in channels.places:
            if any(place.parameter == name or place.parameter.startswith(f"{name}.") for name in self.skip):
                for unit in np.unique(place.labels).tolist():
                    pins.setdefault(unit, "skipped on request")
        return replace(channels, pins=pins)


Key = tuple[str, ...]


class _Record:
    """Units gone, round by round, by the group they belonged to at first."""

    def __init__(self) -> None:
        self._names: dict[Key, str] = {}
        self._roles: dict[Key, Mapping[str, str]] = {}
        self._crossed: set[str] = set()
        """All that the model's own parameters are called; what is left of constants, new biases say, is not shown."""
        self._units: Counter[Key] = Counter()
        self._gone: Counter[Key] = Counter()
        self._kept: dict[Key, Counter[str]] = {}

    def add(self, channels: Channels, removal: Removal) -> None:
        first, self._kept = not self._names, {}
        for group in families(channels):
            numbers = group.units
            crosses = {
                f"{full_name(name)}[{dimension}]": role
                for (name, dimension), role in zip(group.crosses, group.roles, strict=True)
            }
            if first:
                self._crossed.update(crosses)
            key = self._known(full_name(group.name), tuple(c for c in crosses if c in self._crossed))
            if first or key not in self._names:
                self._units[key] += len(numbers)
            self._names.setdefault(key, full_name(group.name))
            self._roles.setdefault(key, crosses)
            self._gone[key] += sum(number in removal.gone for number in numbers)
            kept = (removal.kept[number] for number in numbers if number in removal.kept)
            self._kept.setdefault(key, Counter()).update(kept)

    def _known(self, name: str, crosses: Key) -> Key:
        """The group as it was at first: since then it may have lost some of what it crossed."""
        if crosses in self._names:
            return crosses
        wider = (k for k, other in self._names.items() if other == name and set(crosses) <= set(k))
        return next(wider, crosses)

    def groups(self) -> tuple[SlimGroup, ...]:
        return tuple(
            SlimGroup(
                name, self._roles[key], self._units[key], self._gone[key], dict(self._kept.get(key, {}))
            )
            for key, name in self._names.items()
        )


def _alignment(graph: fx.GraphModule) -> Callable[[str], tuple[int, int]]:
    """Outputs and inputs of the blocks or N:M groups that a weight's zeros follow: removing parts of one would
    scatter the others over more of them."""

    @cache
    def blocks(parameter: str) -> tuple[int, int]:
        weight = attribute(graph, parameter).detach()
        if weight.dim() < 2 or not weight.numel():
            return 1, 1
        facts = measure_weight(parameter, weight)
        height, width = facts.best_block if facts.structure.startswith("blocks") else (1, 1)
        if facts.n_of_m and ":" in facts.structure:
            width = facts.n_of_m[1]
        kernel = math.prod(weight.shape[2:])
        return height, width // math.gcd(width, kernel)

    return blocks


def _parameters(graph: fx.GraphModule) -> int:
    """Elements of what the graph reads."""
    read = {
        id(t): t for n in graph.graph.nodes if n.op == "get_attr" for t in [attribute(graph, str(n.target))]
    }
    return sum(tensor.numel() for tensor in read.values() if tensor.is_floating_point())


def layer_flops(graph: fx.GraphModule, inputs: Sequence[Tensor]) -> int:
    """Two per multiply-add of every layer with a constant weight, on inputs of these shapes."""
    sizes: dict[Any, int] = {}
    placeholders = (node for node in graph.graph.nodes if node.op == "placeholder")
    for node, value in zip(placeholders, inputs, strict=False):
        known = zip(extents(node), value.shape, strict=True)
        sizes |= {size: actual for size, actual in known if not isinstance(size, int)}
    total = 0
    for node in graph.graph.nodes:
        if node.target not in PRODUCTS or node.target is aten.embedding.default:
            continue
        factors = [constant_weight(graph, argument) for argument in arguments(node)[1:3]]
        weight = next((m.value for m in factors if m is not None and m.value.dim() > 1), None)
        if weight is not None:
            taken = arguments(node)[0] if node.target in TRANSPOSED else node
            per_place = (
                weight.numel() // weight.shape[0] if node.target in (*CONVOLUTIONS, *TRANSPOSED) else 0
            )
            if not per_place:
                per_place = weight.numel() // int(extents(node)[-1])
            count = sympy.prod(sympy.sympify(size) for size in extents(taken)).subs(sizes)
            total += 2 * int(count) * per_place
    return total


class _Shapes(fx.Interpreter):
    """Runs a graph and sees that every tensor has the shape it is said to have."""

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor) and n.op == "call_function":
            said = extents(n)
            agrees = len(said) == result.dim() and all(
                not isinstance(size, int) or size == actual
                for size, actual in zip(said, result.shape, strict=True)
            )
            if not agrees:
                raise RuntimeError(f"{n.name} is {tuple(result.shape)}, not {said}")
        return result


def _difference(before: Program, after: Program, inputs: tuple[Tensor, ...]) -> str:
    """Why the slimmed program cannot stand for the other, if it cannot."""
    with torch.no_grad():
        expected = seeded(lambda: before(*inputs))
        try:
            found = seeded(lambda: _Shapes(after.graph).run(*inputs))
        except Exception as failure:  # noqa: BLE001 - whatever it is, the unslimmed program runs
            return f"the slimmed graph does not run: {str(failure).splitlines()[0]}"
    error = relative_error(found, expected)
    return "" if error <= TOLERANCE else f"outputs of the slimmed graph differ by {error:.1e} of the largest"
