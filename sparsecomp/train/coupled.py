"""Group lasso on the coupled groups of a network: a channel with all that makes and all that reads it.

In a residual network a filter alone cannot go: what the shortcut adds to its output needs the channel. The
dependency graph (`sparsecomp.channels`) lists, for every unit, its slices of parameters: filters, biases and
norms of all layers that write it, and the columns of all that read it. One norm over all of them lets the unit die
as a whole (Fang et al., "DepGraph: Towards Any Structural Pruning", 2023).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sparsecomp.capture import capture
from sparsecomp.channels import Group, coupled_groups
from sparsecomp.errors import CaptureError, InputError
from sparsecomp.example import unchanged
from sparsecomp.train.parameters import Held, find_parameter
from sparsecomp.train.tiling import kept_share


@dataclass(frozen=True, eq=False)
class Part:
    """How the units of a group cross one parameter."""

    held: Held
    dimension: int
    units: Tensor
    """int64, an entry per index of the dimension: the unit it belongs to; -1 for none of the group."""
    rows: tuple[int, int] | None
    """The range of dimension 0 it is confined to; None for all."""

    @property
    def slab(self) -> Tensor:
        """The parameter within `rows`, a view."""
        value = self.held.parameter.detach()
        return value if self.rows is None else value[self.rows[0] : self.rows[1]]

    def sums(self, count: int, of_elements: Callable[[Tensor], Tensor]) -> Tensor:
        """Per unit, the sum of a function of its elements."""
        values = of_elements(self.slab).movedim(self.dimension, 0).reshape(len(self.units), -1).sum(dim=1)
        units = self.units.to(values.device)
        mine = units >= 0
        return values.new_zeros(count).index_add_(0, units[mine], values[mine])

    def scale(self, factors: Tensor) -> None:
        """Multiply each unit's elements by its factor."""
        units = self.units.to(factors.device)
        wide = torch.where(units >= 0, factors[units.clamp(min=0)], 1.0)
        shape = [1] * self.slab.dim()
        shape[self.dimension] = -1
        self.slab.mul_(wide.reshape(shape).to(self.slab.dtype))


@dataclass(frozen=True, eq=False)
class CoupledTerm:
    """One coupled group, and how strongly each of its units is penalised."""

    name: str
    """Of the first parameter that makes its units."""
    parts: tuple[Part, ...]
    strengths: Tensor
    """float32, one per unit: lambda s_g."""
    kind: str = "coupled"

    @property
    def held(self) -> tuple[Held, ...]:
        return tuple({part.held.name: part.held for part in self.parts}.values())

    def norms(self) -> Tensor:
        """One per unit, over all its slices."""
        squares = [
            part.sums(len(self.strengths), lambda values: values.float().square()) for part in self.parts
        ]
        return torch.stack(squares).sum(dim=0).sqrt()

    def shrink(self, step_size: float) -> None:
        """The proximal step."""
        factors = kept_share(self.norms(), step_size * self.strengths.to(self.parts[0].slab.device))
        for part in self.parts:
            part.scale(factors)

    def penalty(self) -> float:
        """The sum of lambda s_g times the norms."""
        return float((self.strengths.to(self.parts[0].slab.device) * self.norms()).sum())

    @property
    def dead(self) -> tuple[int, int]:
        """Units that are zero, of how many."""
        norms = self.norms()
        return int((norms == 0).sum()), norms.numel()


def coupled_terms(
    model: nn.Module,
    args: Sequence[object],
    strength: float,
    scaled: bool,
    is_penalised: Callable[[str], bool],
    costs: Mapping[str, float] | None,
) -> tuple[CoupledTerm, ...]:
    """A term for every coupled group whose units can be removed.

    Args:
        model: Only looked at; it runs on `args` and is left as it was.
        args: Example inputs, for the graph.
        strength: lambda.
        scaled: Whether a unit's penalty grows with the root of its size.
        is_penalised: Whether the module of that name takes part.
        costs: Of an element, by name of the parameter, relative to the mean; see `costs.py`.

    Raises:
        InputError: the graph cannot be captured, or no unit can be removed, with the reasons.
    """
    groups = _groups(model, args)
    terms = []
    for group in (group for group in groups if not group.pinned):
        parts = _parts(model, group, is_penalised)
        if any(part.held.parameter.dim() > 1 for part in parts):
            sizes = sum(part.sums(len(group.units), torch.ones_like).double() for part in parts)
            priced = sum(
                part.sums(len(group.units), torch.ones_like).double() * _cost(part, costs) for part in parts
            )
            assert isinstance(sizes, Tensor)
            strengths = strength * priced / sizes * (sizes.sqrt() if scaled else 1.0)
            terms.append(CoupledTerm(group.name, parts, strengths.float()))
    if not terms:
        reasons = "; ".join(
            dict.fromkeys(f"{group.name}: {group.pinned}" for group in groups if group.pinned)
        )
        raise InputError(
            f"no layer has 'coupled' groups that could be removed{': ' * bool(reasons)}{reasons}."
        )
    return tuple(terms)


def _groups(model: nn.Module, args: Sequence[object]) -> tuple[Group, ...]:
    try:
        with unchanged(model):
            return coupled_groups(capture(model, tuple(args)).graph)
    except CaptureError as error:
        raise InputError(
            f"coupled groups need the model's graph, which cannot be captured ({error}): use 'filter', 'channel', "
            "'neuron' and 'input' groups."
        ) from error


def _cost(part: Part, costs: Mapping[str, float] | None) -> float:
    """What is no weight of a layer, a bias say, counts as the mean."""
    if costs is None:
        return 1.0
    return next((costs[name] for name in part.held.names if name in costs), 1.0)


def _parts(model: nn.Module, group: Group, is_penalised: Callable[[str], bool]) -> tuple[Part, ...]:
    """The slices of all units, by parameter; running statistics are no parameters and are left out."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    crossed: dict[tuple[str, int, tuple[int, int] | None], list[tuple[int, tuple[int, ...]]]] = {}
    for number, unit in enumerate(group.units):
        for part in unit.slices:
            is_trained = part.parameter in parameters and parameters[part.parameter].requires_grad
            if is_trained and is_penalised(part.parameter.rpartition(".")[0]):
                key = (part.parameter, part.dimension, part.rows)
                crossed.setdefault(key, []).append((number, part.indices))
    return tuple(
        _part(find_parameter(model, name), dimension, rows, members)
        for (name, dimension, rows), members in crossed.items()
    )


def _part(
    held: Held,
    dimension: int,
    rows: tuple[int, int] | None,
    members: Sequence[tuple[int, tuple[int, ...]]],
) -> Part:
    length = held.parameter.shape[dimension] if rows is None or dimension else rows[1] - rows[0]
    units = torch.full((length,), -1, device=held.parameter.device)
    for number, indices in members:
        units[list(indices)] = number
    return Part(held, dimension, units, rows)
