"""A model and a call of it, as a command takes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.export import ExportedProgram


@dataclass(frozen=True)
class Example:
    """A model and a call of it."""

    name: str
    model: nn.Module | ExportedProgram
    args: tuple[Any, ...] | None
    """None: no inputs are known."""
    kwargs: Mapping[str, Any]
    notes: tuple[str, ...] = ()
    """What was changed or assumed."""

    @property
    def module(self) -> nn.Module:
        """What PyTorch runs."""
        return self.model.module() if isinstance(self.model, ExportedProgram) else self.model
