"""Where a parameter lies in a model, and who else reads its memory."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from sparsecomp.errors import InputError


@dataclass(frozen=True, eq=False)
class Held:
    """A parameter that is kept sparse, and the modules that hold it: several where it is shared."""

    names: tuple[str, ...]
    """As in the model's state dict; the first stands for all."""
    holders: tuple[nn.Module, ...]
    parameter: nn.Parameter

    @property
    def name(self) -> str:
        return self.names[0]

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the modules."""
        return tuple(name.rpartition(".")[0] for name in self.names)

    def check_present(self) -> None:
        """Raises InputError if a module has been given another parameter since."""
        for name, module in zip(self.names, self.holders, strict=True):
            if module._parameters.get(name.rpartition(".")[2]) is not self.parameter:
                raise InputError(
                    f"{name!r} was replaced since training began to sparsify it: make this object after whatever "
                    "replaces parameters (quantization, parametrizations, load_state_dict(assign=True))."
                )


def find_parameter(model: nn.Module, name: str) -> Held:
    """The parameter of that name, which must be dense, floating-point and alone in its memory.

    Raises:
        InputError: there is none, or its zeros could not be kept.
    """
    known = dict(model.named_parameters(remove_duplicate=False))
    if name not in known:
        if _is_computed(name, known):
            raise InputError(
                f"{name!r} is computed at every call (torch.nn.utils.prune, a parametrization): make it a parameter "
                f"first, with prune.remove or remove_parametrizations, or leave it out, skip=({_layer(name)!r},)."
            )
        raise InputError(f"the model has no parameter {name!r}.{near(name, known)}")
    parameter = known[name]
    if isinstance(parameter, UninitializedParameter):
        raise InputError(f"{name!r} has no shape yet: run the model once first.")
    if parameter.layout is not torch.strided or not parameter.is_floating_point():
        raise InputError(
            f"{name!r} is {parameter.layout}, {parameter.dtype}: only dense floating-point parameters are trained."
        )
    names = tuple(other for other, value in known.items() if value is parameter)
    holders = tuple(model.get_submodule(_layer(other)) for other in names)
    held = Held(names, holders, parameter)
    _check_memory(model, held)
    return held


def _check_memory(model: nn.Module, held: Held) -> None:
    """Raises InputError if another parameter or buffer lies in the same memory: a view, say."""
    mine = _extent(held.parameter)
    for name, other in (*model.named_parameters(), *model.named_buffers()):
        if other is held.parameter or mine is None:
            continue
        theirs = _extent(other)
        if theirs is not None and theirs[0] == mine[0] and theirs[1] < mine[2] and mine[1] < theirs[2]:
            raise InputError(
                f"{held.name!r} and {name!r} are different tensors in the same memory (one is a view): zeros of one "
                f"would change the other. Clone one of them, or leave it out, skip=({held.layers[0]!r},)."
            )


def _extent(tensor: Tensor) -> tuple[int, int, int] | None:
    """The storage, and where in it a tensor begins and ends, in bytes; None where it has no memory."""
    lazy = isinstance(tensor, UninitializedParameter)
    if lazy or tensor.layout is not torch.strided or tensor.numel() == 0 or tensor.device.type == "meta":
        return None
    reach = sum((count - 1) * stride for count, stride in zip(tensor.shape, tensor.stride(), strict=True))
    size, start = tensor.element_size(), int(tensor.storage_offset())
    return tensor.untyped_storage().data_ptr(), start * size, (start + int(reach) + 1) * size


def _is_computed(name: str, known: Iterable[str]) -> bool:
    """Whether other parameters stand in for it: pruning's `_orig`, weight norm's `_v`, a parametrization's own."""
    layer, _, leaf = name.rpartition(".")
    inside = f"{layer}.parametrizations.{leaf}.".lstrip(".")
    return any(other in (f"{name}_orig", f"{name}_v") or other.startswith(inside) for other in known)


def _layer(name: str) -> str:
    return name.rpartition(".")[0]


def near(name: str, known: Iterable[str]) -> str:
    """A hint at names that look alike; "" where there are none."""
    close = ", ".join(repr(found) for found in difflib.get_close_matches(name, list(known), 3))
    return f" Did you mean {close}?" if close else ""
