"""A model to be planned: its layers, and what each candidate would cost them in time, size and error."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from sparsecomp import codegen
from sparsecomp.cut_weight import whole_of
from sparsecomp.errors import InputError
from sparsecomp.front import analysed
from sparsecomp.layer import Layer
from sparsecomp.progress import Watch
from sparsecomp.pruning.calibration import collect
from sparsecomp.pruning.candidate import DENSE, Candidate, refined
from sparsecomp.pruning.energy import removed_energies
from sparsecomp.pruning.gradients import Loss
from sparsecomp.pruning.judge import Judge
from sparsecomp.pruning.latency import LatencyTable, measure_latency, measurements
from sparsecomp.pruning.layers import prunable_layers
from sparsecomp.pruning.model import (
    KEPT_GRADIENTS,
    layer_weight,
    prune_layers,
    reestimate_batch_norms,
    set_layer_weight,
)
from sparsecomp.pruning.prune import Method, prune_each
from sparsecomp.pruning.pruned import Pruned
from sparsecomp.pruning.sensitivity import error_between, fisher_losses, layer_errors, measured_losses
from sparsecomp.pruning.series import Choices, fingerprint
from sparsecomp.pruning.sketch import Sketch
from sparsecomp.pruning.state import State
from sparsecomp.pruning.statistics import Statistics
from sparsecomp.pruning.weight_bytes import most_kept, weight_bytes
from sparsecomp.target import Target
from sparsecomp.train.pattern import Pattern
from sparsecomp.train.weights import Weight

SMALLEST = 256
"""Weights of a layer below which pruning it is not worth a kernel of its own."""


ROOM = 1 << 26
"""Floats that a sketch may take: 256 MiB."""


@dataclass(frozen=True)
class Example:
    """A call of the model: what latency is of."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def shapes(self) -> str:
        """Of its tensors, and its other arguments."""
        return str(pytree.tree_map_only(Tensor, lambda x: list(x.shape), (self.args, self.kwargs)))


class Subject:
    """The layers of a model that may be pruned, and prices of their candidates; found when they are asked for."""

    def __init__(
        self,
        model: nn.Module,
        batches: Sequence[Any],
        example: Example,
        candidates: Sequence[Candidate],
        method: Method,
        state: State,
        watch: Watch,
        skip: Sequence[str] = (),
        sensitivity: Callable[[nn.Module], float] | None = None,
        opinions: State | None = None,
        loss: Loss | None = None,
    ) -> None:
        """
        batches: Pairs of inputs and labels where there is a loss.
        sensitivity: Model -> its loss on data that may be looked at; by default errors are of layers' outputs.
        opinions: Where what the user's functions returned is kept; by default with everything else.

        Raises:
            InputError: the model cannot be run on the example, or no layer is left to prune.
        """
        self.model, self.batches, self.example = model, batches, example
        self.method: Method = method
        self.sensitivity = sensitivity
        self.loss = loss
        self.state, self.watch = state, watch
        self.opinions = opinions or state
        self.weights = prunable_layers(model, None, skip)
        watch.stage("finding layers")
        self.calls, self.remarks = _calls(model, example, self.weights)
        self.notes = {name: _dense_because(w, self.calls.get(name)) for name, w in self.weights.items()}
        self.candidates = {
            name: (DENSE,) if self.notes[name] else _fitting(weight, candidates)
            for name, weight in self.weights.items()
        }
        if all(len(found) == 1 for found in self.candidates.values()):
            raise InputError(
                f"no layer can be pruned: {'; '.join(f'{n!r} {note}' for n, note in self.notes.items() if note)}."
            )
        self.judge = Judge(model, batches, sensitivity, loss)
        self.table: LatencyTable | None = None
        """Filled by `measure`, or with what was measured before."""

    @property
    def structures(self) -> tuple[Pattern, ...]:
        """That layers may have, in the order in which they were given."""
        every = (c.structure for found in self.candidates.values() for c in found if not c.is_dense)
        return tuple(dict.fromkeys(every))

    def measure(self, target: Target, threads: int) -> None:
        """Fill the latency table, from disk as far as it is known. A resumed run reads the very same one: later
        measurements may have improved on the database, and other times would give other plans."""
        structures = self.structures
        open_calls = {name: self.calls[name] for name, found in self.candidates.items() if len(found) > 1}
        conditions = f"{codegen.conditions(target, threads)}, {self.example.shapes}"
        key = f"latency of {sorted(open_calls)} as {sorted(s.name for s in structures)}; {conditions}"
        found = self.state.get(key)
        if found is None:
            self.watch.stage("measuring latency", total=measurements(open_calls, structures))
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                cost = codegen.meter(target, threads)
                found = measure_latency(open_calls, structures, cost, self.watch.item).as_dict()
            self.state.put(key, found)
        self.table = LatencyTable.of(found)

    def seconds(self, name: str, candidate: Candidate) -> float:
        """Of the layer's calls, each alone; 0 for a layer that stays dense, whose time is that of what is between."""
        assert self.table is not None
        return self.table.seconds(name, candidate) if name in self.table.calls else 0.0

    def alone(self, choices: Mapping[str, Candidate]) -> float:
        """Seconds of all layers, each alone."""
        return sum(self.seconds(name, choices.get(name, DENSE)) for name in self.weights)

    def kept(self, name: str, candidate: Candidate) -> float:
        """Weights that are not zero, at most."""
        return most_kept(self.weights[name], candidate)

    def flops(self, name: str, kept: int | None = None) -> float:
        """Of the layer's calls on the example; by so many of its weights, by default all."""
        share = 1.0 if kept is None else kept / self.weights[name].parameter.numel()
        return share * sum(layer.dense_flops for layer, _ in self.calls.get(name, ()))

    def nbytes(self, name: str, candidate: Candidate) -> float:
        """Of the weight in its smallest exact format."""
        return weight_bytes(self.weights[name], candidate)

    @cached_property
    def other_bytes(self) -> int:
        """Of parameters and buffers that are no weights of these layers."""
        tensors = {id(t): t for t in (*self.model.parameters(), *self.model.buffers())}
        for weight in self.weights.values():
            tensors.pop(id(weight.parameter), None)
        return sum(t.numel() * t.element_size() for t in tensors.values())

    def error(self, name: str, candidate: Candidate) -> float:
        """Of the layer's output, by the method asked for; without calibration data, the relative energy removed. Or
        the rise of a loss, where one is given for that."""
        if candidate.is_dense:
            return 0.0
        if self._known_error(name, candidate) is None:
            self._learn_errors(name, (candidate,))
        return float(self._known_error(name, candidate))

    def expected_error(self, name: str, candidate: Candidate) -> float:
        """The same; between two candidates of the layer it is read off these and not found by pruning."""
        known = {
            c.sparsity: self.error(name, c)
            for c in self.candidates[name]
            if c.structure == candidate.structure and not c.is_dense
        }
        if candidate.is_dense or candidate.sparsity in known or not known:
            return self.error(name, candidate)
        return error_between(known, candidate.sparsity)

    @cached_property
    def choices(self) -> dict[str, tuple[Candidate, ...]]:
        """What each layer may become: the candidates, and those between them."""
        return {name: refined(found) for name, found in self.candidates.items()}

    def _learn_errors(self, name: str, candidates: Sequence[Candidate]) -> None:
        for candidate, error in self._errors(name, candidates).items() if candidates else ():
            self.kept_opinions.put(self._error_key(name, candidate), error)

    def _known_error(self, name: str, candidate: Candidate) -> Any:
        return self.kept_opinions.get(self._error_key(name, candidate))

    @property
    def kept_opinions(self) -> State:
        """Where errors and losses are kept."""
        return self.state if self.sensitivity is None and self.loss is None else self.opinions

    def _errors(self, name: str, candidates: Sequence[Candidate]) -> dict[Candidate, float]:
        if self.sensitivity is not None:
            rises = measured_losses(
                self.model, candidates, self.sensitivity, self._statistics, self.method, (name,)
            )
            return {candidate: max(0.0, rise) for candidate, rise in rises[name].items()}
        if (
            name not in self._statistics
        ):  # no data; or a layer whose weight others multiply by, as attention does
            return removed_energies(self.weights[name], candidates)
        if self.loss is None and self.is_small and set(candidates) <= set(self.candidates[name]):
            return self._sketch.errors(name)  # which has the weights as well
        errors = layer_errors if self.loss is None else fisher_losses
        return errors(self.model, candidates, self._statistics, self.method, (name,))[name]

    @cached_property
    def _statistics(self) -> dict[str, Statistics]:
        if not self.batches or self.method == "magnitude":
            return {}
        names = [name for name, found in self.candidates.items() if len(found) > 1]
        keep = KEPT_GRADIENTS if self.method == "woodfisher" else 0
        return collect(self.model, self.batches, names, loss=self.loss, keep_gradients=keep, is_strict=False)

    def learn_errors(self) -> None:
        """Of all candidates, so that they are there when they are asked for."""
        names = [name for name, found in self.candidates.items() if len(found) > 1]
        self.watch.stage("errors of candidates", total=len(names))
        for name in names:
            self.watch.item(name)
            unknown = [
                c for c in self.candidates[name] if not c.is_dense and self._known_error(name, c) is None
            ]
            self._learn_errors(name, unknown)

    def _error_key(self, name: str, candidate: Candidate) -> str:
        what = "error" if self.sensitivity is None else "rise of the loss"
        what += "" if self.loss is None else " by gradients"
        return f"{what} of {name}: {candidate.structure} {candidate.sparsity} by {self.method}"

    def judged(self, choices: Choices) -> float:
        """What the judge says of the model pruned by these choices."""
        key = f"{self.judge.measure} of {fingerprint(choices)} by {self.method}"
        found: Any = self.kept_opinions.get(key)
        if found is None:
            model = self.pruned(choices)[0]
            self.watch.stage("comparing")
            found = self.judge(model)
            self.kept_opinions.put(key, found)
        return float(found)

    def sketched(self, choices: Choices) -> float:
        """What the judge says of a model put together from weights that were each pruned alone. For small models."""
        return self.judge(self._sketch.of(choices))

    @property
    def is_small(self) -> bool:
        """Whether there is room for a sketch."""
        sizes = (len(found) * self.weights[name].parameter.numel() for name, found in self.candidates.items())
        return sum(sizes) <= ROOM

    @cached_property
    def _sketch(self) -> Sketch:
        def pruned(name: str, candidates: Sequence[Candidate]) -> Iterable[Pruned]:
            return prune_each(
                layer_weight(self.weights[name]), candidates, self._statistics.get(name), self.method
            )

        return Sketch(self.model, self.candidates, pruned)

    def roughly_pruned(self, choices: Choices) -> nn.Module:
        """A copy pruned by magnitude, which is made in no time: about as fast as any other with these choices."""
        model = copy.deepcopy(self.model)
        wanted = {name: c for name, c in choices.items() if not c.is_dense}
        for _ in prune_layers(model, wanted, (), "magnitude"):
            pass
        return model

    def pruned(self, choices: Choices) -> tuple[nn.Module, dict[str, str]]:
        """A copy pruned by the method asked for, and notes of its layers. Layers that were pruned before an interrupt
        are not pruned again."""
        model = copy.deepcopy(self.model)
        left = {name: c for name, c in choices.items() if not c.is_dense}
        plan = f"plan {fingerprint(choices)} by {self.method}"
        if self.state.get("pruning") != plan:  # tensors are large: those of one plan are enough
            self.state.drop_tensors()
            self.state.put("pruning", plan)
        weights, notes = prunable_layers(model), dict[str, str]()
        self.watch.stage("pruning", total=len(left))
        for name in list(left):
            # Gradients are of the dense model: all layers are pruned in one go then.
            done = self.state.tensor(f"{name} of {plan}") if self.loss is None else None
            if done is not None:
                self.watch.item(name)
                set_layer_weight(weights[name], done)
                notes[name] = str(self.state.get(f"note of {name} of {plan}") or "")
                del left[name]
        for name, pruned in prune_layers(model, left, self.batches, self.method, loss=self.loss):
            self.watch.item(name)
            notes[name] = pruned.note
            self.state.put(f"note of {name} of {plan}", pruned.note)
            self.state.put_tensor(f"{name} of {plan}", pruned.weight)
        if self.batches:
            inputs = self.batches if self.loss is None else [x for x, _ in self.batches]
            reestimate_batch_norms(model, inputs)
        return model, notes


def _calls(
    model: nn.Module, example: Example, weights: Mapping[str, Weight]
) -> tuple[dict[str, list[tuple[Layer, Tensor]]], tuple[str, ...]]:
    """Layer -> where the model's graph calls it, with the matrix; and a note if there is no graph of the whole."""
    program, _, notes = analysed(model, example.args, example.kwargs)
    cuts = program.slimming.cuts if program.slimming else {}
    owner = {held: name for name, weight in weights.items() for held in weight.held.names}
    found: dict[str, list[tuple[Layer, Tensor]]] = {}
    for site, layer in program.layers.items():
        whole = layer.weight if layer.weight in owner else whole_of(layer.weight, cuts)
        if whole in owner:
            found.setdefault(owner[whole], []).append((layer, program.weight(site)))
    return found, notes


def _dense_because(weight: Weight, calls: object) -> str:
    """Why a layer is not to be pruned; "" where it may be."""
    if weight.parameter.numel() < SMALLEST:
        return f"stays dense: it has only {weight.parameter.numel()} weights"
    return "" if calls else "stays dense: the example does not reach it, or the compiler cannot take it"


def _fitting(weight: Weight, candidates: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """Dense first, then those whose groups fit into the weight."""

    def fits(candidate: Candidate) -> bool:
        limits = candidate.structure.n_of_m
        if limits:
            return weight.shape[1] >= limits[1]
        tiling = candidate.structure.tiling(weight)
        return tiling.rows <= weight.shape[0] and tiling.columns <= weight.shape[1]

    return (DENSE, *(c for c in candidates if not c.is_dense and fits(c)))
