"""What a model holds besides its parameters, and what of it a call changes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

PLAIN = (type(None), bool, int, float, complex, str, bytes)
DEPTH = 3
"""Containers in containers that are looked into; of another object its attributes are, but no further."""
_OWN = frozenset(vars(nn.Module()))
"""Attributes that every module has."""


class Same:
    """A value that is equal to itself alone; it lives as long as this, so that no other takes its identity."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and self.value is other.value

    __hash__ = None  # type: ignore[assignment]


def state_of(model: nn.Module) -> dict[str, Any]:
    """Path -> what an attribute or buffer of the model is. Equal before and after a call unless the call gave it another
    value: another tensor, say, or one more in a list. What is written into a tensor does not count, nor do tensors of modules
    with hooks that run before each call: of pruning and of weight norm, which make the weight anew."""
    found: dict[str, Any] = {}
    for name, module in model.named_modules():
        held = {key: value for key, value in vars(module).items() if key not in _OWN or key == "training"}
        hooked = bool(module._forward_pre_hooks)
        for key, value in (held | module._buffers).items():
            if not (hooked and isinstance(value, Tensor)):
                found[f"{name}.{key}".removeprefix(".")] = _form(value, DEPTH)
    return found


def _form(value: Any, depth: int) -> Any:
    if isinstance(value, PLAIN):
        return value
    if isinstance(value, Tensor):
        return Same(value)
    if depth and isinstance(value, dict):
        return type(value), [(key, _form(held, depth - 1)) for key, held in value.items()]
    if depth and isinstance(value, list | tuple):
        return type(value), [_form(held, depth - 1) for held in value]
    if depth and _is_object(value):
        return Same(value), _form(vars(value), 1)
    return Same(value)


def _is_object(value: Any) -> bool:
    """Whether it is of the user's own kind, with attributes that a call may change."""
    return type(value).__module__ != "builtins" and hasattr(value, "__dict__") and not callable(value)


def changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> set[str]:
    """Paths whose value is another."""
    return {path for path in {*before, *after} if before.get(path) != after.get(path)}


def containers(model: nn.Module) -> Iterator[Any]:
    """Lists and dictionaries that the model's modules hold as attributes, and the attributes of objects there."""
    for module in model.modules():
        for key, value in vars(module).items():
            if key not in _OWN:
                yield from _nested(value, DEPTH)


def _nested(value: Any, depth: int) -> Iterator[Any]:
    if depth and not isinstance(value, Tensor) and _is_object(value) and type(vars(value)) is dict:
        yield vars(value)
    if depth and type(value) in (list, dict):
        yield value
    if depth and type(value) in (list, tuple, dict):
        for held in value.values() if isinstance(value, dict) else value:
            yield from _nested(held, depth - 1)
