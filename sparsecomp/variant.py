"""A compiled graph and the calls it covers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from sparsecomp.compile import Executable
from sparsecomp.contract import Capture


@dataclass(frozen=True)
class Variant:
    """A compiled graph and the calls it covers."""

    capture: Capture
    executable: Executable

    @property
    def reads(self) -> frozenset[str]:
        """Parameters, by name, that the graph reads as they are."""
        nodes = self.executable.graph.graph.nodes
        return frozenset(str(node.target) for node in nodes if node.op == "get_attr")

    def run(self, inputs: Sequence[Tensor]) -> Any:
        """Of the graph's input tensors, in order."""
        results = self.executable.call(*inputs)
        return results[0] if self._single else self.capture.unflatten(results)

    @cached_property
    def _single(self) -> bool:
        """Whether the model returns a tensor, and no structure of them."""
        return self.capture.out_spec.is_leaf() and not self.capture.out_constants
