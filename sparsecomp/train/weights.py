"""The weights of a model that training can make sparse, seen as matrices."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from sparsecomp.errors import InputError
from sparsecomp.train.parameters import Held, find_parameter, near

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED)


@dataclass(frozen=True, eq=False)
class Weight:
    """The weight of a linear layer or a convolution.

    As a matrix it has a row per output and, as columns, its inputs: those of a convolution are channel by
    channel, each with all its taps. A weight that several layers share is one `Weight`.
    """

    held: Held
    is_conv: bool
    transposed: bool
    """Whether the model stores it inputs first."""
    groups: int = 1
    """Of a convolution."""

    @property
    def name(self) -> str:
        """Of the parameter, as in the model's state dict: "conv1.weight"."""
        return self.held.name

    @property
    def parameter(self) -> nn.Parameter:
        return self.held.parameter

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the matrix."""
        stored = self.parameter.shape
        rows = stored[1] if self.transposed else stored[0]
        return rows, self.parameter.numel() // max(1, rows)

    @property
    def taps(self) -> int:
        """Columns of one input channel."""
        return math.prod(self.parameter.shape[2:])

    def matrix(self, value: Tensor) -> Tensor:
        """A tensor of the parameter's shape -> rows x columns; a view where that is possible."""
        return (value.transpose(0, 1) if self.transposed else value).reshape(self.shape)

    def stored(self, matrix: Tensor) -> Tensor:
        """Inverse of `matrix`."""
        shape = self.parameter.shape
        if not self.transposed:
            return matrix.reshape(shape)
        return matrix.reshape(shape[1], shape[0], *shape[2:]).transpose(0, 1)


def find_weights(
    model: nn.Module, layers: Sequence[str] | None = None, skip: Sequence[str] = ()
) -> dict[str, Weight]:
    """The weights of linear layers and convolutions, by name of the parameter; the model is only looked at.

    Args:
        model: Any module.
        layers: Names of layers, or of modules that hold them; by default all whose weight is trained.
        skip: Names of those to leave as they are.

    Raises:
        InputError: a name is unknown, nothing is left, or a weight cannot be kept sparse: it is not a
            parameter of its module, is shared with something that reads it differently, or shares memory.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"model must be an nn.Module, not {type(model).__name__}.")
    is_asked = asked(model, layers, skip)
    found: dict[str, Weight] = {}
    for name, module in model.named_modules():
        if is_layer(module) and is_asked(name):
            weight = _weight(model, name, module)
            if weight.parameter.requires_grad or layers is not None:
                found.setdefault(weight.name, weight)
    if not found:
        raise InputError(
            "no linear layer or convolution with a trained weight is left to make sparse: "
            f"layers={layers!r}, skip={skip!r}."
        )
    return found


def asked(model: nn.Module, layers: Sequence[str] | None, skip: Sequence[str]) -> Callable[[str], bool]:
    """Whether a module of some name is asked for. Raises InputError for names that the model does not have."""
    wanted = ("",) if layers is None else _names(model, layers, "layers")
    unwanted = _names(model, skip, "skip")
    return lambda name: _within(name, wanted) and not _within(name, unwanted)


def is_layer(module: nn.Module) -> bool:
    return isinstance(module, (nn.Linear, *CONVOLUTIONS)) or _is_conv1d_of_transformers(module)


def _is_conv1d_of_transformers(module: nn.Module) -> bool:
    """The linear layer of GPT-2, which stores its weight inputs first; seen without importing transformers."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def _reading(module: nn.Module, key: str) -> tuple[bool, bool, int] | None:
    """How a module reads its weight: as a convolution, inputs first, in how many groups. None: not as a layer."""
    if not is_layer(module) or key != "weight":
        return None
    transposed = isinstance(module, TRANSPOSED) or _is_conv1d_of_transformers(module)
    return isinstance(module, CONVOLUTIONS), transposed, int(getattr(module, "groups", 1))


def _weight(model: nn.Module, name: str, module: nn.Module) -> Weight:
    held = find_parameter(model, f"{name}.weight".lstrip("."))
    reading = _reading(module, "weight")
    assert reading is not None
    for other, holder in zip(held.names, held.holders, strict=True):
        if _reading(holder, other.rpartition(".")[2]) != reading:
            names = ", ".join(map(repr, held.names))
            raise InputError(
                f"{names} are one parameter, which a {type(module).__name__} and a {type(holder).__name__} read "
                f"differently: zeros of one would be wrong for the other. Untie it, or leave it out, skip=({name!r},)."
            )
    is_conv, transposed, groups = reading
    if isinstance(module, TRANSPOSED) and groups > 1:
        raise InputError(
            f"{held.name!r} is of a transposed convolution with groups, which has no matrix with a row per output: "
            f"leave it out, skip=({name!r},)."
        )
    return Weight(held, is_conv, transposed, groups)


def _within(name: str, prefixes: Sequence[str]) -> bool:
    return any(name == prefix or name.startswith(f"{prefix}.") or not prefix for prefix in prefixes)


def _names(model: nn.Module, names: Any, option: str) -> tuple[str, ...]:
    chosen = (names,) if isinstance(names, str) else names
    if not isinstance(chosen, Sequence | set | frozenset) or not all(isinstance(n, str) for n in chosen):
        raise InputError(f"{option} must be names of layers or modules, not {names!r}.")
    known = dict(model.named_modules(remove_duplicate=False))
    for name in chosen:
        if name not in known:
            raise InputError(
                f"{option} names {name!r}, but the model has no module of that name.{near(name, known)}"
            )
    return tuple(chosen)
