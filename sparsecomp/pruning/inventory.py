"""What is left in a pruned model, counted weight by weight."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from sparsecomp.pruning.candidate import Candidate
from sparsecomp.pruning.layers import prunable_layers
from sparsecomp.pruning.storage import Storage, storage
from sparsecomp.pruning.weight_bytes import formats_of


@dataclass(frozen=True)
class Inventory:
    """By layer, and of the whole model."""

    kept: Mapping[str, int]
    """Weights of each layer that are not zero."""
    stored: Mapping[str, Storage]
    """Each layer's weight in its smallest exact format."""
    formats: Mapping[str, int]
    """Bytes of all layers that became sparse, together, if each were in that format; the smallest first."""
    nonzeros: int
    """Parameters of the model that are not zero, all of them."""

    @property
    def nbytes(self) -> int:
        """Of the layers' weights, each in its smallest format."""
        return sum(found.nbytes for found in self.stored.values())


def take_inventory(model: nn.Module, choices: Mapping[str, Candidate]) -> Inventory:
    """Of a model pruned by these choices, by name of the layer. Dense layers are stored as they are."""
    weights = {name: weight for name, weight in prunable_layers(model).items() if name in choices}
    kept, stored, totals = {}, {}, Counter[str]()
    for name, weight in weights.items():
        mask = weight.matrix(weight.parameter.detach()) != 0
        kept[name] = _count(mask)
        bits = 8 * weight.parameter.element_size()
        if choices[name].is_dense:
            stored[name] = Storage("dense", mask.numel() * bits, 0)
            continue
        found = storage(mask, bits, formats_of(weight, choices[name]))
        stored[name] = found[0]
        totals.update({form.format: form.nbytes for form in found})
    nonzeros = sum(_count(parameter.detach()) for parameter in model.parameters())
    return Inventory(kept, stored, dict(sorted(totals.items(), key=lambda item: item[1])), nonzeros)


def _count(tensor: Tensor) -> int:
    return int(tensor.count_nonzero())
