"""What happens between the runs of a layer that is timed."""

from __future__ import annotations

import pytest
import torch

from sparsecomp.codegen import measure
from sparsecomp.codegen.machine import machine_of
from sparsecomp.codegen.measure import Meter, between_runs
from sparsecomp.layer import Layer
from sparsecomp.target import Target

FEW = Layer("few", "linear", "", (64, 48), (1, 48))
MANY = Layer("many", "linear", "", (64, 48), (128, 48))
WIDE = machine_of(Target(cpu="znver4"))


def test_a_layer_of_one_token_finds_its_weights_in_memory() -> None:
    assert between_runs([FEW], WIDE)
    assert between_runs([FEW, FEW], WIDE)
    assert not between_runs([MANY], WIDE)
    assert not between_runs([FEW, MANY], WIDE)
    assert not between_runs([], WIDE), "a region without layers reads no weights"
    assert not between_runs([FEW], machine_of(Target(cpu="x86-64-v2"))), "it has no kernel for few tokens"


def test_layers_are_timed_so(monkeypatch: pytest.MonkeyPatch) -> None:
    cold: list[bool] = []

    def recorded(contestants: list[object], between: object) -> list[float]:
        cold.append(between is not None)
        return [1.0] * len(contestants)

    monkeypatch.setattr(measure, "seconds_in_turn", recorded)
    monkeypatch.setattr(measure, "between_runs", lambda layers, _: layers == [FEW] or None)
    meter = Meter(Target(), 1)
    for layer in (FEW, MANY):
        meter.candidates(layer, torch.randn(64, 48) * (torch.rand(64, 48) < 0.1))
    assert cold == [True, False]
