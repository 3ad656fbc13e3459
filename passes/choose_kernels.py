"""Choose, per layer, by measured time: PyTorch's operator, or the fastest kernel."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import networkx as nx
from torch import fx

from sparsecomp.choice import DENSE, Candidate, Choice
from sparsecomp.cost import Cost
from sparsecomp.layer import Layer
from sparsecomp.passes.fuse_epilogues import RULES
from sparsecomp.passes.remove_copies import PADS
from sparsecomp.program import Program
from sparsecomp.region import RowsKernelChoice

NEARLY = 1.08
"""Times closer than this are taken as equal: measurements repeat no better."""


@dataclass(frozen=True)
class ChooseKernels:
    """A layer takes its fastest kernel if that beats PyTorch by `min_speedup`.

    A layer whose kernel is a little slower takes it too when its neighbours do and the layout conversions it
    saves between them are worth more than it loses.
    """

    name: ClassVar[str] = "choose-kernels"
    cost: Cost
    min_speedup: float = 1.0
    refused: Mapping[str, str] | None = None
    """Sites that must stay with PyTorch, and why: what a measurement of whole regions found."""
    progress: Callable[[str], None] = lambda layer: None

    def __call__(self, program: Program) -> Program:
        candidates: dict[str, tuple[Candidate, ...]] = {}
        for site, layer in program.layers.items():
            self.progress(layer.name)
            candidates[site] = self.cost.candidates(layer, program.weight(site))
        open_sites = {site: c for site, c in candidates.items() if site not in (self.refused or {})}
        chosen = {site for site, found in open_sites.items() if self._wins(found)}
        bridges = self._bridges(program, open_sites, chosen)
        choices = {}
        for site, found in candidates.items():
            name = program.layers[site].name
            if self.refused and site in self.refused:
                choices[site] = Choice(name, None, self.refused[site], found)
            elif site in chosen | bridges:
                choices[site] = Choice(name, best(found).how, _won(found, site in bridges), found)  # type: ignore[union-attr]
            else:
                choices[site] = Choice(name, None, _lost(found), found)
        return replace(program, choices=choices | self._together(program, choices))

    def _together(self, program: Program, choices: Mapping[str, Choice]) -> dict[str, Choice]:
        """Other choices for layers that read one weight: it is held packed for all of them, or dense for all."""
        sharing: dict[str, list[str]] = {}
        for site, layer in program.layers.items():
            sharing.setdefault(layer.weight, []).append(site)
        changed: dict[str, Choice] = {}
        for sites in sharing.values():
            if len(sites) > 1 and any(choices[site].how for site in sites):
                changed |= self._alike(program, {site: choices[site] for site in sites})
        return changed

    def _alike(self, program: Program, choices: Mapping[str, Choice]) -> dict[str, Choice]:
        """One kernel for all, that of the layer which takes longest, if all together gain by it."""
        slowest = max(
            (choice for choice in choices.values() if choice.how),
            key=lambda choice: choice.dense_seconds or 0,
        )
        same = {site: _with_kernel(choice, slowest.how) for site, choice in choices.items()}
        readings = {program.layers[site].reading for site in choices}
        refused = any(site in (self.refused or {}) for site in choices)
        if len(readings) == 1 and not refused and all(same.values()):
            kernels = sum(choice.chosen.seconds or 0 for choice in same.values() if choice and choice.chosen)
            dense = sum(choice.dense_seconds or 0 for choice in choices.values())
            if kernels * self.min_speedup < dense:
                return {site: choice for site, choice in same.items() if choice}
        reason = "its weight is also read by another layer, and all of them together do not gain"
        return {
            site: replace(choice, how=None, reason=reason if choice.how else choice.reason)
            for site, choice in choices.items()
        }

    def _wins(self, found: tuple[Candidate, ...]) -> bool:
        kernel, dense = best(found), _dense(found)
        return kernel is not None and _seconds(kernel) * self.min_speedup < _seconds(dense)

    def _bridges(
        self, program: Program, found: Mapping[str, tuple[Candidate, ...]], chosen: set[str]
    ) -> set[str]:
        """Layers to take along: repeated, since a bridge may make the next one worth it."""
        near = neighbours(program)
        bridges: set[str] = set()
        grown = True
        while grown:
            grown = False
            for site, candidates in found.items():
                kernel = best(candidates)
                if site in chosen | bridges or kernel is None:
                    continue
                # An edge between two kernels needs no conversion out and in again.
                before = [other for other in near.predecessors(site) if other in chosen | bridges]
                after = [other for other in near.successors(site) if other in chosen | bridges]
                saved = sum(self.cost.conversion(program.layers[other]) for other in before)
                saved += self.cost.conversion(program.layers[site]) if after else 0.0
                if _seconds(kernel) < _seconds(_dense(candidates)) + saved and before and after:
                    bridges.add(site)
                    grown = True
        return bridges


def _with_kernel(choice: Choice, how: RowsKernelChoice | None) -> Choice | None:
    """The choice with this kernel, timed as that of the same pattern was; None where that was refused."""
    if how is None or choice.how == how:
        return choice if how else None
    near = next((c for c in choice.candidates if c.how and c.how.pattern == how.pattern), None)
    if near is None:
        return None
    shared = replace(near, kernel=str(how), how=how)
    candidates = tuple(shared if candidate is near else candidate for candidate in choice.candidates)
    return replace(choice, how=how, candidates=candidates, reason="as the other layers that read its weight")


def best(found: tuple[Candidate, ...]) -> Candidate | None:
    """The fastest kernel, PyTorch's operator apart; of nearly equals the one that stores least."""
    kernels = [candidate for candidate in found if candidate.how is not None and not candidate.refused]
    fastest = min(map(_seconds, kernels), default=0.0)
    close = [candidate for candidate in kernels if _seconds(candidate) <= NEARLY * fastest]
    return min(close, key=lambda candidate: (candidate.stored, _seconds(candidate)), default=None)


def _dense(found: tuple[Candidate, ...]) -> Candidate:
    return next(candidate for candidate in found if candidate.kernel == DENSE)


def _seconds(candidate: Candidate) -> float:
    return candidate.seconds if candidate.seconds is not None else float("inf")


def _won(found: tuple[Candidate, ...], bridge: bool) -> str:
    """Why the kernel was taken."""
    kernel, dense = best(found), _dense(found)
    assert kernel is not None
    times = _seconds(dense) / max(_seconds(kernel), 1e-12)
    if bridge:
        return f"{times:.2f}x the speed of PyTorch alone, but its neighbours need no conversion then"
    return f"{times:.2f}x the speed of PyTorch"


def _lost(found: tuple[Candidate, ...]) -> str:
    """Why the layer stays with PyTorch."""
    kernel, dense = best(found), _dense(found)
    if kernel is None:
        return "every kernel was refused"
    return (
        f"the fastest kernel, {kernel.kernel}, takes {_seconds(kernel) * 1e3:.3f} ms "
        f"against {_seconds(dense) * 1e3:.3f} ms in PyTorch"
    )


def neighbours(program: Program) -> nx.DiGraph:
    """Layer -> layer that reads its output directly or through element-wise work an epilogue can take."""
    graph = nx.DiGraph()
    graph.add_nodes_from(program.layers)
    for node in program.graph.graph.nodes:
        if node.name in program.layers:
            graph.add_edges_from((node.name, site) for site in _readers(node, program.layers))
    return graph


def _readers(node: fx.Node, layers: Mapping[str, Layer]) -> Iterator[str]:
    seen, waiting = set(), list(node.users)
    while waiting:
        user = waiting.pop()
        if user in seen:
            continue
        seen.add(user)
        if user.name in layers:
            yield user.name
        elif user.target in RULES or user.target in (*PADS, operator.getitem):
            waiting += user.users
