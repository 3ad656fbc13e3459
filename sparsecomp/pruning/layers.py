"""The layers of a model whose weights can be pruned one by one."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from sparsecomp.errors import InputError
from sparsecomp.train.weights import Weight, asked, find_weights, is_layer


def prunable_layers(
    model: nn.Module, layers: Sequence[str] | None = None, skip: Sequence[str] = ()
) -> dict[str, Weight]:
    """Linear layers and convolutions by name of the module, in the order in which the model holds them.

    A weight that several layers share is listed once, under the first of their names. Where `layers` is None, weights
    that cannot be pruned (tied to an embedding, computed at every call) are left out.

    Args:
        model: Is only looked at.
        layers: Names of layers, or of modules that hold them; by default all.
        skip: Names of those to leave out.

    Raises:
        InputError: a name is unknown, a named weight cannot be pruned, or no layer is left.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"model must be an nn.Module, not {type(model).__name__}.")
    is_asked = asked(model, layers, skip)
    found: dict[str, Weight] = {}
    seen: set[str] = set()
    for name, module in model.named_modules():
        if not is_layer(module) or not is_asked(name) or f"{name}.weight".lstrip(".") in seen:
            continue
        try:
            (weight,) = find_weights(model, (name,)).values()
        except InputError:
            if layers is not None:
                raise
            continue
        seen.update(weight.held.names)
        found[name] = weight
    if not found:
        raise InputError(f"no layer is left that could be pruned: layers={layers!r}, skip={skip!r}.")
    return found
