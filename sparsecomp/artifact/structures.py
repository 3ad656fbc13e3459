"""The containers of a model's arguments and results <-> JSON.

Classes are never imported for a file. Results of a class that this process does not know come as `SavedOutput`, which
answers to keys, attributes and positions as a `ModelOutput` of transformers does.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
import torch.utils._pytree as pytree

from sparsecomp.artifact.records import decode_constant, encode_constant
from sparsecomp.errors import ArtifactError
from sparsecomp.trace import OpenedCache

PLAIN: Mapping[str, Any] = {kind.__name__: kind for kind in (tuple, list, torch.Size)}
"""Containers that are their elements in order."""
MANY = 64
"""Levels of containers within each other."""


class SavedOutput(OrderedDict[str, Any]):
    """Named results, of a class that is not here."""

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return self[name]
        raise AttributeError(f"the outputs are {', '.join(self)}; there is no {name!r}")

    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__(key) if isinstance(key, str) else self.to_tuple()[key]

    def to_tuple(self) -> tuple[Any, ...]:
        return tuple(self.values())


def _flatten(output: SavedOutput) -> tuple[list[Any], list[str]]:
    return list(output.values()), list(output)


def _unflatten(values: Any, keys: list[str]) -> SavedOutput:
    return SavedOutput(zip(keys, values, strict=True))


pytree.register_pytree_node(SavedOutput, _flatten, _unflatten)


def encode_structure(spec: pytree.TreeSpec) -> Any:
    """
    Raises:
        ArtifactError: a container of a kind that has no form in a file.
    """
    if spec.is_leaf():
        return "leaf"
    children = [encode_structure(child) for child in spec.children()]
    kind: Any = spec.type
    if kind in PLAIN.values():
        return {kind.__name__: children}
    if kind is OpenedCache:
        return {"caches": children}
    if kind in (dict, OrderedDict):
        keys = [encode_constant(key) for key in spec.context]
        return {"dict" if kind is dict else "ordered dict": children, "keys": keys}
    if kind is SavedOutput or (isinstance(kind, type) and issubclass(kind, dict)):
        keys = spec.context[0] if isinstance(spec.context, tuple) else spec.context
        if isinstance(keys, list) and len(keys) == len(children) and all(isinstance(k, str) for k in keys):
            return {"named": children, "keys": list(keys), "class": _class_name(kind)}
    if _is_named_tuple(spec):
        fields = list(spec.context._fields)
        return {"named tuple": children, "keys": fields, "class": _class_name(spec.context)}
    raise ArtifactError(
        f"the model takes or returns a {getattr(kind, '__name__', kind)}, which has no form in a file: let it use "
        "tensors in tuples, lists and dicts."
    )


def _class_name(kind: Any) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _is_named_tuple(spec: pytree.TreeSpec) -> bool:
    return hasattr(spec.context, "_fields") and isinstance(spec.context, type)


def decode_structure(data: Any, depth: int = 0) -> pytree.TreeSpec:
    """Inverse of `encode_structure`; what this process has no class for comes as `SavedOutput`.

    Raises:
        ArtifactError: the data describes no container.
    """
    if data == "leaf":
        return pytree.tree_structure(0)
    kind, given = next(iter(data.items())) if isinstance(data, dict) and data else ("", None)
    if not isinstance(given, list) or depth > MANY:
        raise _refused(data)
    children = [decode_structure(child, depth + 1) for child in given]
    if kind in PLAIN:
        return pytree.TreeSpec(PLAIN[kind], None, children)
    if kind == "caches":
        return _caches(children)
    keys = [decode_constant(key) for key in data.get("keys", ())]
    if len(keys) != len(children) or len(set(keys)) != len(keys):
        raise _refused(data)
    if kind in ("dict", "ordered dict"):
        return pytree.TreeSpec(dict if kind == "dict" else OrderedDict, keys, children)
    if kind in ("named", "named tuple") and all(isinstance(key, str) for key in keys):
        found = _known_class(data.get("class"), keys) if kind == "named" else None
        if found is not None:
            return pytree.TreeSpec(*found, children)
        return pytree.TreeSpec(SavedOutput, keys, children)
    raise _refused(data)


def _caches(children: list[pytree.TreeSpec]) -> pytree.TreeSpec:
    """Where transformers is not imported, a pair of keys and values per layer: what caches were before they were
    a class."""
    cache = getattr(sys.modules.get("transformers.cache_utils"), "DynamicCache", None)
    if cache is not None:
        return pytree.TreeSpec(OpenedCache, cache, children)
    pairs = zip(children[::2], children[1::2], strict=False)
    return pytree.TreeSpec(tuple, None, [pytree.TreeSpec(tuple, None, list(pair)) for pair in pairs])


def _known_class(name: Any, keys: list[str]) -> tuple[Any, Any] | None:
    """Class and context, if the class is among those that pytree can take apart in this process."""
    for kind in pytree.SUPPORTED_NODES:
        if isinstance(kind, type) and issubclass(kind, dict) and _class_name(kind) == name:
            return kind, keys
    return None


def _refused(data: Any) -> ArtifactError:
    return ArtifactError(f"found {str(data)[:80]!r} where a container was expected")
