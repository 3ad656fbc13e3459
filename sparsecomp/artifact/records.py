"""Frozen records <-> plain JSON, by their type hints, which also check what is read."""

from __future__ import annotations

import math
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import torch

from sparsecomp.errors import ArtifactError

KIND = "is"
"""Key that names the class where a field may hold records of several."""
SPECIAL = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}
TORCH = (torch.dtype, torch.layout, torch.memory_format)


def encode(value: Any, hint: Any) -> Any:
    """`value`, which has the type `hint`, as JSON.

    Raises:
        ArtifactError: the type, or what a field of type `object` holds, has no form in a file.
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if hint in (object, Any):
        return encode_constant(value)
    if _is_record(hint):
        return {f.name: encode(getattr(value, f.name), _hints(hint)[f.name]) for f in fields(hint)}
    if origin in (types.UnionType, Union):
        member = _member_of(value, arguments)
        encoded = encode(value, member)
        return {KIND: member.__name__, **encoded} if _is_record(member) else encoded
    if origin is tuple:
        items = arguments[:1] * len(value) if arguments[-1:] == (...,) else arguments
        return [encode(item, kind) for item, kind in zip(value, items, strict=True)]
    if origin in (frozenset, set):
        return sorted((encode(item, arguments[0]) for item in value), key=repr)
    if origin is Mapping:
        pairs = [[encode(key, arguments[0]), encode(item, arguments[1])] for key, item in value.items()]
        return dict(pairs) if arguments[0] is str else pairs
    return value if origin is Literal else _encode_plain(value, hint)


def _encode_plain(value: Any, hint: Any) -> Any:
    if hint is float:
        number = float(value)
        return number if math.isfinite(number) else str(number)
    if hint in (int, str, bool):
        return hint(value)
    if hint is type(None):
        return None
    if hint in (torch.dtype, torch.device):
        return str(value).removeprefix("torch.")
    raise ArtifactError(f"a {getattr(hint, '__name__', hint)} has no form in a file.")


def decode(data: Any, hint: Any) -> Any:
    """Inverse of `encode`. A field that a record lacks has its default: it may be younger than the file.

    Raises:
        ArtifactError: the data is not of that type.
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if hint in (object, Any):
        return decode_constant(data)
    if _is_record(hint):
        return _decode_record(data, hint)
    if origin in (types.UnionType, Union):
        return _decode_union(data, arguments)
    if origin is tuple:
        _expect(isinstance(data, list), data, "a list")
        kinds = arguments[:1] * len(data) if arguments[-1:] == (...,) else arguments
        _expect(len(kinds) == len(data), data, f"{len(kinds)} items")
        return tuple(decode(item, kind) for item, kind in zip(data, kinds, strict=True))
    if origin in (frozenset, set):
        _expect(isinstance(data, list), data, "a list")
        return origin(decode(item, arguments[0]) for item in data)
    if origin is Mapping:
        return _decode_mapping(data, arguments)
    if origin is Literal:
        _expect(data in arguments, data, f"one of {arguments}")
        return data
    return _decode_plain(data, hint)


def _decode_record(data: Any, hint: Any) -> Any:
    _expect(isinstance(data, dict), data, f"a record {hint.__name__}")
    hints = _hints(hint)
    given = set(data) - {KIND}
    names = {f.name for f in fields(hint)}
    needed = {f.name for f in fields(hint) if f.default is MISSING and f.default_factory is MISSING}
    _expect(needed <= given <= names, sorted(data), f"the fields of {hint.__name__}")
    try:
        return hint(**{name: decode(data[name], hints[name]) for name in given})
    except (AssertionError, TypeError, ValueError, KeyError) as error:
        raise ArtifactError(f"a record {hint.__name__} makes no sense: {error}") from error


def _decode_union(data: Any, members: tuple[Any, ...]) -> Any:
    if isinstance(data, dict) and KIND in data:
        known = {member.__name__: member for member in members if _is_record(member)}
        _expect(data[KIND] in known, data[KIND], f"one of {sorted(known)}")
        return decode(data, known[data[KIND]])
    for member in members:
        if not _is_record(member):
            try:
                return decode(data, member)
            except ArtifactError:
                continue
    raise ArtifactError(f"found {_short(data)} where {members} was expected")


def _decode_mapping(data: Any, arguments: tuple[Any, ...]) -> Any:
    if arguments[0] is str:
        _expect(isinstance(data, dict), data, "an object")
        return {str(key): decode(item, arguments[1]) for key, item in data.items()}
    _expect(isinstance(data, list), data, "a list of pairs")
    pairs = [decode(pair, tuple[arguments]) for pair in data]  # type: ignore[valid-type]
    return dict(pairs)


def _decode_plain(data: Any, hint: Any) -> Any:
    if hint is float:
        if isinstance(data, str) and data in SPECIAL:
            return SPECIAL[data]
        _expect(isinstance(data, int | float) and not isinstance(data, bool), data, "a number")
        return float(data)
    if hint in (int, str, bool):
        _expect(type(data) is hint, data, f"a {hint.__name__}")
        return data
    if hint is type(None):
        _expect(data is None, data, "null")
        return None
    if hint is torch.dtype:
        return torch_constant(data, torch.dtype)
    if hint is torch.device:
        _expect(data == "cpu", data, "the device 'cpu'")
        return torch.device("cpu")
    raise ArtifactError(f"found {_short(data)} where nothing can be read")


def encode_constant(value: Any) -> Any:
    """A number, string or the like, of any of these types."""
    match value:
        case None | bool() | str():
            return value
        case float() if not math.isfinite(value):
            return {"float": str(value)}
        case float():
            return value
        case complex():
            return {"complex": [encode(value.real, float), encode(value.imag, float)]}
        case bytes():
            return {"bytes": value.hex()}
        case torch.device():
            return {"device": str(value)}
    if type(value) is int:
        return value
    for kind in TORCH:
        if isinstance(value, kind):
            return {kind.__name__: str(value).removeprefix("torch.")}
    raise ArtifactError(f"a {type(value).__name__} among a graph's constants has no form in a file.")


def decode_constant(data: Any) -> Any:
    if data is None or isinstance(data, bool | int | float | str):
        return data
    _expect(isinstance(data, dict) and len(data) == 1, data, "a constant")
    ((kind, text),) = data.items()
    try:
        if kind == "float":
            return float(text)
        if kind == "complex":
            return complex(decode(text[0], float), decode(text[1], float))
        if kind == "bytes":
            return bytes.fromhex(text)
    except (ValueError, TypeError, IndexError) as error:
        raise ArtifactError(f"found {_short(data)} where a constant was expected") from error
    if kind == "device":
        return decode(text, torch.device)
    found = next((known for known in TORCH if known.__name__ == kind), None)
    _expect(found is not None, data, "a constant")
    return torch_constant(text, found)


def torch_constant(name: Any, kind: Any) -> Any:
    """`torch.float32` by the name "float32"."""
    found = getattr(torch, name, None) if isinstance(name, str) else None
    _expect(isinstance(found, kind), name, f"a {kind}")
    return found


def _is_record(hint: Any) -> bool:
    return is_dataclass(hint)


@cache
def _hints(cls: Any) -> dict[str, Any]:
    return get_type_hints(cls)


def _member_of(value: Any, members: tuple[Any, ...]) -> Any:
    for member in members:
        base = get_origin(member) or member
        if base in (object, Any) or isinstance(value, Mapping if base is Mapping else base):
            return member
    raise ArtifactError(f"a {type(value).__name__} has no form in a file where {members} is expected.")


def _expect(holds: bool, data: Any, what: str) -> None:
    if not holds:
        raise ArtifactError(f"found {_short(data)} where {what} was expected")


def _short(data: Any) -> str:
    text = repr(data)
    return text if len(text) < 80 else text[:77] + "..."
