"""Coupled groups: units of the same kind, as slices of parameters, for whoever prunes or regularises."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import fx

from sparsecomp.channels.channels import Channels, find_channels
from sparsecomp.channels.wiring import Place, Role


@dataclass(frozen=True)
class Slice:
    """`parameter.index_select(dimension, indices)`; for a grouped convolution, of `rows` of dimension 0 only."""

    parameter: str
    dimension: int
    indices: tuple[int, ...]
    role: Role
    """ "produces": filters, their bias; "scales": norms and depthwise filters on the way; "reads": the weights of
    those who consume the unit. A unit is dead where all "produces" or all "reads" are zero."""
    rows: tuple[int, int] | None = None


@dataclass(frozen=True)
class Unit:
    """The smallest thing that is removed whole."""

    slices: tuple[Slice, ...]

    def of_role(self, *roles: Role) -> tuple[Slice, ...]:
        return tuple(part for part in self.slices if part.role in roles)


@dataclass(frozen=True)
class Group:
    """Units that cross the same parameters in the same dimensions: the channels of a residual stream, the heads
    of a layer, the filters of a convolution with the channels they feed."""

    name: str
    """The first parameter that produces the units."""
    units: tuple[Unit, ...]
    pinned: str = ""
    """Why no unit can be removed, where that is so."""

    def __str__(self) -> str:
        crossed = dict.fromkeys((s.parameter, s.dimension, s.role) for s in self.units[0].slices)
        lines = [
            f"{self.name}: {len(self.units)} units" + (f", pinned: {self.pinned}" if self.pinned else "")
        ]
        return "\n".join([*lines, *(f"  {role} {name} along {d}" for name, d, role in crossed)])


def coupled_groups(graph: fx.GraphModule) -> tuple[Group, ...]:
    """The coupled groups of a captured graph (`capture(model, args).graph`), in the order they are produced.

    Parameters are named as in the model. Units that must stay are in groups of their own, with the reason.
    """
    return groups_of(find_channels(graph))


@dataclass(frozen=True)
class Family:
    """A group by the numbers of its units: in a large model these take a tenth of the time that slices do."""

    name: str
    crosses: tuple[tuple[str, int], ...]
    """Parameters and dimensions."""
    roles: tuple[Role, ...]
    """What each of these does to the units."""
    units: tuple[int, ...]
    pinned: str


def families(channels: Channels) -> tuple[Family, ...]:
    """The coupled groups, in the order they are produced."""
    places = channels.places
    crossing = np.zeros((channels.units, len(places)), dtype=bool)
    for column, place in enumerate(places):
        crossing[place.labels, column] = True
    kinds, kind_of = np.unique(np.packbits(crossing, axis=1), axis=0, return_inverse=True)
    crossed = [
        [place for place, bit in zip(places, np.unpackbits(kind), strict=False) if bit] for kind in kinds
    ]
    roles: list[dict[tuple[str, int], Role]] = [{} for _ in crossed]
    for found_roles, places_of_kind in zip(roles, crossed, strict=True):
        for place in places_of_kind:
            found_roles.setdefault((place.parameter, place.dimension), place.role)
    crosses = [tuple(found_roles) for found_roles in roles]
    members: dict[tuple[object, str], list[int]] = {}
    for number, kind in enumerate(kind_of.reshape(-1).tolist()):
        if crosses[kind]:
            members.setdefault((crosses[kind], channels.pins.get(number, "")), []).append(number)
    found = []
    for (_, pinned), numbers in members.items():
        kind = kind_of.reshape(-1)[numbers[0]]
        makers = [place for place in crossed[kind] if place.role == "produces"] or crossed[kind]
        does = tuple(roles[kind].values())
        found.append(Family(makers[0].parameter, crosses[kind], does, tuple(numbers), pinned))
    return tuple(found)


def groups_of(channels: Channels) -> tuple[Group, ...]:
    units = _units(channels)
    return tuple(
        Group(family.name, tuple(units[number] for number in family.units), family.pinned)
        for family in families(channels)
    )


def _units(channels: Channels) -> dict[int, Unit]:
    slices: dict[int, list[Slice]] = {}
    for place in channels.places:
        for number, indices in _indices(place):
            part = Slice(place.parameter, place.dimension, indices, place.role, place.rows)
            slices.setdefault(number, []).append(part)
    return {number: Unit(tuple(parts)) for number, parts in sorted(slices.items())}


def _indices(place: Place) -> Sequence[tuple[int, tuple[int, ...]]]:
    """Unit -> its indices in this place."""
    order = np.argsort(place.labels, kind="stable")
    units, starts = np.unique(place.labels[order], return_index=True)
    parts = np.split(order, starts[1:])
    return [(int(u), tuple(part.tolist())) for u, part in zip(units, parts, strict=True)]
