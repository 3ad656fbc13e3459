"""A model put together from weights that were each pruned alone: made in no time, and about what pruning gives."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence

from torch import Tensor, nn

from sparsecomp.pruning.candidate import Candidate
from sparsecomp.pruning.layers import prunable_layers
from sparsecomp.pruning.model import set_layer_weight
from sparsecomp.pruning.pruned import Pruned


class Sketch:
    """Each layer's weight under each candidate, pruned when a layer is first asked for.

    Layers see the dense model's activations here; a pruned model's see those of the pruned layers before them, and make up
    for what these lost (`prune_layers`)."""

    def __init__(
        self,
        model: nn.Module,
        candidates: Mapping[str, Sequence[Candidate]],
        pruned: Callable[[str, Sequence[Candidate]], Iterable[Pruned]],
    ) -> None:
        """pruned: a layer's weight by each candidate in turn, dense among them."""
        self._model = copy.deepcopy(model)
        self._candidates, self._pruned = candidates, pruned
        self._layers = prunable_layers(self._model)
        self._known: dict[str, dict[Candidate, tuple[Tensor, float]]] = {}
        self._now: dict[str, Candidate] = {}

    def of(self, choices: Mapping[str, Candidate]) -> nn.Module:
        """The same module each time, with these weights. Layers that are not named are dense."""
        for name, candidates in self._candidates.items():
            dense = candidates[0]
            wanted = choices.get(name, dense)
            if wanted != self._now.get(name, dense):
                set_layer_weight(self._layers[name], self._each(name)[wanted][0])
                self._now[name] = wanted
        return self._model

    def errors(self, name: str) -> dict[Candidate, float]:
        """Of the layer's output under each of its candidates, on the dense model's activations."""
        return {candidate: error for candidate, (_, error) in self._each(name).items()}

    def _each(self, name: str) -> dict[Candidate, tuple[Tensor, float]]:
        if name not in self._known:
            found = self._pruned(name, self._candidates[name])
            self._known[name] = {pruned.candidate: (pruned.weight.clone(), pruned.error) for pruned in found}
        return self._known[name]
