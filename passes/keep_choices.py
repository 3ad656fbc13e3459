"""Keep what was decided for the weights of an earlier graph, so that both graphs share them packed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from sparsecomp.choice import Choice
from sparsecomp.layer import Layer
from sparsecomp.program import Program


@dataclass(frozen=True)
class KeepChoices:
    """A layer whose weight was packed before runs as before; the others stay with PyTorch."""

    name: ClassVar[str] = "keep-choices"
    settled: Mapping[Layer, Choice]
    """Reading of a parameter -> choice."""

    def __call__(self, program: Program) -> Program:
        choices = {}
        for site, layer in program.layers.items():
            settled = self.settled.get(layer.reading)
            kept = Choice(layer.name, None, "was left to PyTorch when the model was compiled")
            choices[site] = replace(settled, layer=layer.name) if settled else kept
        return replace(program, choices=choices)
