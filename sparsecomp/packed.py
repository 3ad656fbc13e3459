"""Packed weights in a module tree: whoever reads one gets it unpacked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

Weights = Callable[[str], Tensor]
"""Name of a packed weight -> its values, of the shape and dtype that the model stores."""


class PackedTensors(dict[str, Tensor | None]):
    """A module's parameters or buffers, of which some are unpacked at every reading."""

    def __init__(
        self, tensors: Mapping[str, Tensor | None], packed: Mapping[str, str], weights: Weights
    ) -> None:
        """`packed`: key -> name of the packed weight."""
        super().__init__(tensors)
        self._packed, self._weights = dict(packed), weights

    def __getitem__(self, key: str) -> Tensor | None:
        held = super().__getitem__(key)
        if key not in self._packed:
            return held
        values = self._weights(self._packed[key])
        return nn.Parameter(values, requires_grad=False) if isinstance(held, nn.Parameter) else values

    def __setitem__(self, key: str, tensor: Tensor | None) -> None:
        self._packed.pop(key, None)
        super().__setitem__(key, tensor)

    def get(self, key: str, default: Any = None) -> Any:
        return self[key] if key in self.keys() else default

    def values(self) -> Any:
        return [self[key] for key in self]

    def items(self) -> Any:
        return [(key, self[key]) for key in self]

    def pop(self, key: str, *default: Any) -> Any:
        found = self.get(key, *default)
        super().pop(key, None)
        return found

    def copy(self) -> dict[str, Tensor | None]:
        return dict(self.items())

    def __reduce__(self) -> Any:
        """Copies and pickles hold the values."""
        return dict, (self.copy(),)


def pack_tensors(model: nn.Module, packed: Mapping[str, Tensor], weights: Weights) -> None:
    """Wherever a module holds one of these tensors, which are given by name of the weight, reading it unpacks.

    A plain attribute becomes a buffer.
    """
    names = {id(tensor): name for name, tensor in packed.items()}
    for module in model.modules():
        for attribute in [key for key, value in vars(module).items() if id(value) in names]:
            module._buffers[attribute] = module.__dict__.pop(attribute)
        for place in ("_parameters", "_buffers"):
            held = getattr(module, place)
            found = {key: names[id(tensor)] for key, tensor in held.items() if id(tensor) in names}
            if found:
                module.__dict__[place] = PackedTensors(held, found, weights)
