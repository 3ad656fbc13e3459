"""Numbers of a saved module: each tensor once, in one section in the safetensors format."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from sparsecomp.errors import ArtifactError

ALIGNMENT = 64
"""Bytes."""
Reference = Any
"""JSON that stands for a tensor: its name, or `{"tensor": name, "order": [...]}` where its dimensions lie in
another order in memory."""


class TensorWriter:
    """Gives tensors names. The same data, seen in the same way, is written once."""

    def __init__(self) -> None:
        self._names: dict[object, str] = {}
        self._tensors: dict[str, Tensor] = {}
        self._seen: list[Tensor] = []
        """Kept alive: their addresses are keys."""

    def add(self, tensor: Tensor) -> Reference:
        """
        Raises:
            ArtifactError: a tensor that is not on the CPU, not strided, or of a type that the format lacks.
        """
        if tensor.device.type != "cpu" or tensor.layout is not torch.strided:
            raise ArtifactError(f"a tensor on {tensor.device}, {tensor.layout}, cannot be saved.")
        data = tensor.detach()
        order = sorted(range(data.dim()), key=data.stride().__getitem__, reverse=True)
        ordered = data.permute(order)
        if ordered.is_contiguous() and not data.is_contiguous():
            return {"tensor": self._name(ordered), "order": order}
        return self._name(data)

    def _name(self, data: Tensor) -> str:
        key = (data.data_ptr() or id(data), data.dtype, data.shape, data.stride())
        if key not in self._names:
            self._names[key] = f"t{len(self._names)}"
            self._tensors[self._names[key]] = data.contiguous()
            self._seen.append(data)
        return self._names[key]

    def section(self) -> bytes:
        try:
            data: bytes = safetensors.torch.save(
                {name: _alone(tensor) for name, tensor in self._tensors.items()}
            )
        except (SafetensorError, KeyError, RuntimeError, ValueError) as error:
            raise ArtifactError(f"a tensor of the model cannot be saved: {error}") from error
        return data


def _alone(tensor: Tensor) -> Tensor:
    """The format refuses tensors that share memory with others."""
    whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    return tensor if whole else tensor.clone()


def _aligned(tensor: Tensor) -> Tensor:
    """As PyTorch would allocate it, which kernels rely on."""
    return tensor if tensor.data_ptr() % ALIGNMENT == 0 else tensor.clone()


class TensorReader:
    """The tensors of a section, by reference; equal references give the same object."""

    def __init__(self, section: bytes) -> None:
        """
        Raises:
            ArtifactError: the section is not in the safetensors format.
        """
        try:
            found = safetensors.torch.load(section)
            self._tensors = {name: _aligned(tensor) for name, tensor in found.items()}
        except (SafetensorError, ValueError, KeyError, RuntimeError, TypeError) as error:
            raise ArtifactError(f"its weights cannot be read: {error}.") from error
        self._ordered: dict[str, Tensor] = {}

    def get(self, reference: Reference) -> Tensor:
        """
        Raises:
            ArtifactError: there is no such tensor.
        """
        if isinstance(reference, str) and reference in self._tensors:
            return self._tensors[reference]
        if not isinstance(reference, Mapping) or set(reference) != {"tensor", "order"}:
            raise ArtifactError(f"it refers to a tensor {str(reference)[:80]!r} that it does not have.")
        tensor, order = self.get(reference["tensor"]), reference["order"]
        if not isinstance(order, list) or sorted(map(str, order)) != sorted(map(str, range(tensor.dim()))):
            raise ArtifactError(f"it refers to dimensions {str(order)[:80]} of a tensor.")
        key = str(reference)
        if key not in self._ordered:
            places = [order.index(axis) for axis in range(len(order))]
            self._ordered[key] = tensor.permute(places)
        return self._ordered[key]
