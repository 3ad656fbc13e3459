"""Packed weights in a module tree: whoever reads one as an attribute gets it unpacked."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor, nn

Weights = Callable[[str], Tensor]
"""Name of a packed weight -> its values, of the shape and dtype that the model stores."""


def pack_attributes(model: nn.Module, packed: Mapping[str, Tensor], weights: Weights) -> None:
    """Take these tensors, by name of the weight, off every module that holds them; reading them unpacks.

    Such a module gets a class of its own, derived from the one it had.
    """
    names = {id(tensor): name for name, tensor in packed.items()}
    for module in model.modules():
        places = (module._parameters, module._buffers, vars(module))
        properties = {
            attribute: _reading(names[id(tensor)], weights, isinstance(tensor, nn.Parameter))
            for place in places
            for attribute, tensor in list(place.items())
            if id(tensor) in names and place.pop(attribute) is tensor
        }
        if properties:
            kind = type(module)
            module.__class__ = type(kind.__name__, (kind,), {**properties, "__module__": kind.__module__})


def _reading(name: str, weights: Weights, parameter: bool) -> property:
    def read(module: nn.Module) -> Tensor:
        return nn.Parameter(weights(name), requires_grad=False) if parameter else weights(name)

    return property(read)
