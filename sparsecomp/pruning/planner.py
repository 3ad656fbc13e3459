"""From a checked request to a plan."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from sparsecomp import codegen
from sparsecomp.cache import cache_folder
from sparsecomp.errors import InputError
from sparsecomp.progress import Watch
from sparsecomp.pruning.allocate import runners_up
from sparsecomp.pruning.candidate import DENSE, Candidate
from sparsecomp.pruning.goal import Goal
from sparsecomp.pruning.gradients import Loss
from sparsecomp.pruning.inventory import Inventory, take_inventory
from sparsecomp.pruning.plan import LayerPlan, Option, Plan, Totals
from sparsecomp.pruning.prune import Method
from sparsecomp.pruning.rivals import best_of, distributed, optimal, rivals_of
from sparsecomp.pruning.search import TOLERANCE, Found, Timekeeper, at_loss, at_speed, held_out_loss, within
from sparsecomp.pruning.series import Allocation, Choices, Price, Series
from sparsecomp.pruning.state import State, digest, state_of
from sparsecomp.pruning.storage import Storage
from sparsecomp.pruning.stretch import Stretch
from sparsecomp.pruning.subject import Example, Subject
from sparsecomp.pruning.whole import ModelClock
from sparsecomp.target import Target

Evaluate = Callable[[nn.Module], float]


@dataclass(frozen=True)
class Request:
    """What `sparsify` was asked for, checked."""

    goal: Goal
    method: Method
    allocation: Allocation
    candidates: tuple[Candidate, ...]
    skip: tuple[str, ...]
    target: Target
    threads: int
    measure: bool
    verify: bool
    evaluate: Evaluate | None
    quality: Evaluate | None
    sensitivity: Evaluate | None
    loss: Loss | None
    resume: Path | None


class Planner:
    """Plans one model."""

    def __init__(
        self, model: nn.Module, batches: Sequence[Any], example: Example, request: Request, watch: Watch
    ) -> None:
        self.start = time.perf_counter()
        self.request = request
        watch.stage("reading the model")
        name = digest(model, batches)
        self.state = state_of(request.resume or cache_folder() / "plans" / name, name)
        self.subject = Subject(
            model,
            batches,
            example,
            request.candidates,
            request.method,
            self.state,
            watch,
            request.skip,
            request.sensitivity,
            # Functions have no digest: what they said is believed again only where the user names the run.
            self.state if request.resume else State(None),
            request.loss,
        )
        self.notes = list(self.subject.remarks)

    def run(self) -> Plan:
        subject, request = self.subject, self.request
        subject.measure(request.target, request.threads)
        times = self._timekeeper() if request.measure else None
        found = self._solve(self._series(times), times)
        self.notes += found.remarks
        model, layer_notes = subject.pruned(found.choices)
        stretch = found.stretch or (times.first if times else Stretch(0.0, 1.0))
        inventory = take_inventory(model, found.choices)
        totals = self._totals(found.choices, model, stretch, times, inventory)
        self._compare(totals)
        layers = tuple(
            self._layer(name, found.choices[name], stretch, layer_notes.get(name, ""), inventory.stored[name])
            for name in subject.weights
        )
        self.state.drop_tensors()
        return Plan(
            goal=str(request.goal),
            method=request.method,
            allocation=request.allocation,
            device=codegen.describe(request.target),
            threads=request.threads,
            layers=layers,
            totals=totals,
            notes=tuple(self.notes),
            seconds=time.perf_counter() - self.start,
            pruned=model,
        )

    def _compare(self, totals: Totals) -> None:
        """Note where the finished model is not what was asked for."""
        goal, speedup = self.request.goal, totals.speedup
        if goal.kind != "target_speedup" or speedup is None:
            return
        if abs(speedup / goal.amount - 1) > TOLERANCE:
            self.notes.append(f"{goal} was missed by more than {TOLERANCE:.0%}: measured {speedup:.2f}")

    def _timekeeper(self) -> Timekeeper:
        subject, request = self.subject, self.request
        example = subject.example
        clock = partial(
            ModelClock, subject.model, example.args, example.kwargs, request.target, request.threads
        )
        conditions = codegen.conditions(request.target, request.threads)
        speedup = request.goal.amount if request.goal.kind == "target_speedup" else None
        return Timekeeper(subject, clock, f"{conditions}, {example.shapes}", speedup)

    @property
    def _cost(self) -> Price:
        """What the budget is of."""
        subject = self.subject
        prices: dict[str, Price] = {"target_bytes": subject.nbytes, "sparsity": subject.kept}
        return prices.get(self.request.goal.kind, subject.seconds)

    def _series(self, times: Timekeeper | None) -> Series:
        """The plans of which one is looked for."""
        subject, request = self.subject, self.request
        subject.learn_errors()
        if request.allocation == "optimal":
            return self._best_rival(times)
        structure = next(c.structure for c in request.candidates if not c.is_dense)
        if structure.only_sparsity is not None:
            raise InputError(
                f"allocation {request.allocation!r} needs a structure of any sparsity, not {structure}."
            )
        return distributed(subject, self._cost, request.allocation, structure)

    def _best_rival(self, times: Timekeeper | None) -> Series:
        """Where there are data: of all ways to the budget, the one whose pruned model is measured to lose least."""
        subject, request = self.subject, self.request
        if not (request.verify and subject.batches) or request.goal.kind == "max_loss":
            return optimal(subject, self._cost)
        budget = self._budget
        if request.goal.kind == "target_speedup":
            assert times is not None
            budget = times.stretch.alone(times.dense.compiled / request.goal.amount)
        rivals = rivals_of(subject, self._cost, budget)
        best, verdict = best_of(subject, rivals, budget, subject.judged)
        if len(verdict.losses) > 1:
            self.notes.append(f"{verdict}: {verdict.best} was taken")
        return best

    @property
    def _budget(self) -> float:
        """Of what is not timed: bytes of these layers' weights, or weights that are kept."""
        goal, subject = self.request.goal, self.subject
        if goal.kind == "target_bytes":
            return goal.amount - subject.other_bytes
        return (1 - goal.amount) * sum(subject.kept(name, DENSE) for name in subject.weights)

    def _solve(self, series: Series, times: Timekeeper | None) -> Found:
        found = self._search(series, times)
        dense = dict.fromkeys(self.subject.weights, DENSE)
        return replace(found, choices=dense | found.choices)

    def _search(self, series: Series, times: Timekeeper | None) -> Found:
        goal, subject = self.request.goal, self.subject
        match goal.kind:
            case "target_speedup":
                assert times is not None
                return at_speed(series, goal, times)
            case "max_loss":
                assert self.request.evaluate is not None
                return at_loss(series, goal, subject, self.request.evaluate)
            case "target_bytes":
                least = (
                    "the least that these candidates leave is {:.0f} bytes of weights, and "
                    f"{subject.other_bytes:.0f} of the rest"
                )
            case "sparsity":
                whole = sum(subject.kept(name, DENSE) for name in subject.weights)
                least = f"at least {{:.0f}} of {whole:.0f} weights are kept by these candidates"
        return within(series, goal, self._budget, least)

    def _totals(
        self,
        choices: Choices,
        model: nn.Module,
        stretch: Stretch,
        times: Timekeeper | None,
        inventory: Inventory,
    ) -> Totals:
        subject, evaluate, quality = self.subject, self.request.evaluate, self.request.quality
        dense_bytes = subject.other_bytes + sum(subject.nbytes(name, DENSE) for name in choices)
        return Totals(
            predicted_seconds=stretch.whole(subject.alone(choices)),
            dense_bytes=round(dense_bytes),
            bytes=subject.other_bytes + inventory.nbytes,
            weights=round(sum(subject.kept(name, DENSE) for name in choices)),
            kept=sum(inventory.kept.values()),
            error=sum(subject.error(n, c) for n, c in choices.items()),
            measured_seconds=times.measure_model(model) if times else None,
            dense_seconds=times.dense.compiled if times else None,
            eager_seconds=times.dense.eager if times else None,
            dense_loss=held_out_loss(evaluate, subject.model) if evaluate else None,
            loss=held_out_loss(evaluate, model) if evaluate else None,
            dense_quality=held_out_loss(quality, subject.model, "quality") if quality else None,
            quality=held_out_loss(quality, model, "quality") if quality else None,
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            nonzeros=inventory.nonzeros,
            dense_flops=round(sum(subject.flops(name) for name in choices)),
            flops=round(sum(subject.flops(name, kept) for name, kept in inventory.kept.items())),
            formats=inventory.formats,
        )

    def _layer(self, name: str, chosen: Candidate, stretch: Stretch, note: str, stored: Storage) -> LayerPlan:
        subject = self.subject

        def option(candidate: Candidate) -> Option:
            seconds = stretch.factor * subject.seconds(name, candidate)
            return Option(candidate, seconds, subject.error(name, candidate))

        candidates = subject.candidates[name]
        if chosen not in candidates:
            candidates = (*candidates, chosen)
        costs = np.array([self._cost(name, c) for c in candidates])
        errors = np.array([subject.error(name, c) for c in candidates])
        near = runners_up(costs, errors, candidates.index(chosen))
        return LayerPlan(
            name,
            tuple(subject.weights[name].parameter.shape),
            option(chosen),
            option(DENSE).seconds,
            tuple(option(candidates[number]) for number in near),
            stored.format,
            stored.nbytes,
            subject.notes[name] or note,
        )
